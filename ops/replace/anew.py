"""A gate's product as the input of a layer that does not keep it for its gradient: it is made anew there, from gate and up,
which are kept anyway. Of a gated MLP's three wide tensors that leaves two (Chen et al. 2016, arXiv:1604.06174).

What a backward reads is held by a saved tensor, and how it is held is said by hooks (torch.autograd.graph); where others have
theirs in force, checkpointing and offloading among them, and while PyTorch traces, the product is kept as always: compilers
decide about such tensors themselves.
"""

from collections.abc import Callable
from typing import Any

import torch

from kpt.ops.gated_act.op import gated_act


def fed_anew(layer: Callable[..., Any], gate: torch.Tensor, up: torch.Tensor, activation: str) -> Any:
    """``layer(gated_act(gate, up, activation))``."""
    y = gated_act(gate, up, activation)
    if not _may_forget(gate, up, y):
        return layer(y)
    place, elements, dtype, version = y.untyped_storage().data_ptr(), y.numel(), y.dtype, y._version
    gate, up = gate.detach(), up.detach()

    def packed(saved: torch.Tensor) -> torch.Tensor | torch.Size:
        """All of y, in whatever shape, is held as a shape alone, unless the layer has written into it."""
        is_y = type(saved) is torch.Tensor and saved.untyped_storage().data_ptr() == place and saved._version == version
        return saved.shape if is_y and saved.dtype is dtype and saved.numel() == elements and saved.is_contiguous() else saved

    def unpacked(held: torch.Tensor | torch.Size) -> torch.Tensor:
        if isinstance(held, torch.Tensor):
            return held
        with torch.no_grad():
            return gated_act(gate, up, activation).view(held)

    with torch.autograd.graph.saved_tensors_hooks(packed, unpacked):
        return layer(y)


def _may_forget(gate: torch.Tensor, up: torch.Tensor, y: torch.Tensor) -> bool:
    """Both have gradients, whose own backward finds out if they were changed in place meanwhile, and no hooks are in force."""
    return (
        y.requires_grad
        and gate.requires_grad
        and up.requires_grad
        and y.numel() > 0
        and all(type(t) is torch.Tensor for t in (gate, up, y))
        and not torch.compiler.is_compiling()
        and torch._C._autograd._saved_tensors_hooks_get_disabled_error_message() is None
        and torch._C._autograd._top_saved_tensors_default_hooks(False) is None
    )
