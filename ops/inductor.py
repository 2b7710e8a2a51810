"""Ops that torch.compile's Inductor writes itself, of PyTorch's own operations, together with what stands around them.

A norm, a gate: they multiply nothing, so what counts is how often memory is read and written, and how many kernels are started.
Inductor's tables would have to be imported with the ops, and take half a second.
"""

import sys
from collections.abc import Callable, Container
from typing import Any

from torch.fx.experimental import proxy_tensor

from kpt.ops.choice import preferred

_WRITTEN: dict[Any, Callable[..., Any]] = {}
"""Of such ops, as torch.library knows them, PyTorch's own operations."""


def enter(through_torch: Any, reference: Callable[..., Any]) -> None:
    """Note an op that Inductor is to write."""

    def written(*arguments: Any) -> Any:
        return NotImplemented if preferred() is not None else reference(*arguments)

    _WRITTEN[through_torch] = written


def tell() -> None:
    """Enter the ops in Inductor's tables, once it is loaded: before it compiles a graph, an op's fake is asked."""
    lowering = sys.modules.get("torch._inductor.lowering")
    if lowering is not None and not _WRITTEN.keys() <= lowering.decompositions.keys():
        for through_torch in _WRITTEN:  # for graphs that have it all the same
            lowering.make_fallback(through_torch, warn=False, override_decomp=True)
        lowering.decompositions.update(_WRITTEN)
        sys.modules["torch._inductor.decomposition"].fast_random_decomps.cache_clear()  # a copy of the table


def writes(through_torch: Any) -> bool:
    """Whether a graph is being made here for Inductor, of which autograd is to follow PyTorch's own operations as well."""
    mode = proxy_tensor.get_proxy_mode() if through_torch in _WRITTEN else None
    return mode is not None and through_torch in _decomposed(mode) and preferred() is None


def _decomposed(mode: Any) -> Container[Any]:
    """What such a graph is decomposed of, which older versions of PyTorch keep in the module."""
    own: Container[Any] | None = getattr(mode, "decomposition_table", None)
    return vars(proxy_tensor)["CURRENT_DECOMPOSITION_TABLE"] if own is None else own
