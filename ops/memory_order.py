"""Outputs that lie in memory as an input does."""

import torch

from kpt.ops.eager import is_transformed


def empty_like(t: torch.Tensor, ordered: bool | None = None) -> torch.Tensor:
    """Room in the memory order of a tensor, contiguous where its last dim is not dense, or it is not to be ``ordered``."""
    if ordered is None:
        ordered = not t.ndim or t.stride(-1) == 1
    return torch.empty_like(t, memory_format=torch.preserve_format if ordered else torch.contiguous_format)


def laid_out(o: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """What was computed, in the room for it where it does not lie so already."""
    if is_transformed():  # what memory there is, is functorch's business, which does not follow writes into it
        return o
    return o if o.stride() == wanted.stride() else wanted.copy_(o)
