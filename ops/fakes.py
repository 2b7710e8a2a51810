"""Outputs without values, where many ops make them alike."""

from collections.abc import Callable, Sequence
from typing import Any

import torch


def like_first(x: torch.Tensor, *_: Any) -> torch.Tensor:
    """One of the shape and dtype of the first argument, contiguous."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def gradients_of(*positions: int, needed: int = -1) -> Callable[..., list[torch.Tensor]]:
    """Those of the arguments at some positions that are needed, which another says, as a rule the last; contiguous."""

    def fake(*arguments: Any) -> list[torch.Tensor]:
        which: Sequence[bool] = arguments[needed]
        wanted = [arguments[p] for p, n in zip(positions, which, strict=True) if n]
        return [t.new_empty(t.shape) for t in wanted]

    return fake
