"""What a mask is while torch.compile traces it, when nobody knows the values of what goes into the graph.

A mask that depends on none of that is a constant: torch.compile computes it where it traces, and its pattern is read off. So
windows are recognised, and, without a cache as in training, batches that Transformers takes for packed ones since it cannot
look: their positions are counted up by the graph itself.
"""

from typing import Any

import torch
from torch import fx
from torch._dynamo.comptime import comptime

from kpt.ops.flash_attention.reference import allowed_keys

_UNKNOWN, _FULL, _CAUSAL = -1, 0, 1
"""Patterns as one number, which is what a function called while tracing may give; a causal window w is _CAUSAL + w."""

_constant = [False]
"""What ``_look`` found; read by torch.compile's own thread right after."""


def pattern(mask: torch.Tensor, any_size: bool) -> tuple[bool, int | None] | None:
    """(causal, window) of a mask, (B, 1, queries, keys), that is being traced, or None: it depends on inputs, or is another.

    ``any_size``: the mask has no size in it but its own, so that the pattern at one size is that of all; else a graph of
    unknown sizes gets None. So does what else traces, as torch.export does unless it is strict: it computes nothing meanwhile.
    """
    if not torch.compiler.is_dynamo_compiling():
        return None
    looked_at, sizes_may_change = mask, any_size  # named for ``_look``
    comptime(_look)
    if not _was_constant(sizes_may_change):
        return None
    found = _read_off(looked_at)
    if found == _UNKNOWN:
        return None
    return found != _FULL, None if found in (_FULL, _CAUSAL) else found - _CAUSAL


def _look(context: Any) -> None:
    """Run by torch.compile where it traces the call."""
    node = context.get_local("looked_at").as_proxy().node
    any_size = context.get_local("sizes_may_change").as_python_constant()
    _constant[0] = _depends_on_no_tensor(node, any_size)


def _depends_on_no_tensor(node: fx.Node, any_size: bool) -> bool:
    """Nothing that goes into the graph goes into the node; sizes may where ``any_size``, beside no numbers but -1, 0 and 1. Of
    a vmap, whose nodes mean nothing one by one, it says that something does."""
    seen: set[fx.Node] = set()
    waiting, sized, small = [node], False, True
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        value = current.meta.get("example_value")
        if isinstance(value, torch.Size) or (current.op == "placeholder" and not isinstance(value, torch.Tensor)):
            sized = True
            continue
        if current.op in ("placeholder", "get_attr") or "_functorch" in str(getattr(current.target, "__module__", "")):
            return False
        waiting += current.all_input_nodes
        numbers = [a for a in (*current.args, *current.kwargs.values()) if type(a) is int]
        small = small and all(abs(n) <= 1 for n in numbers)
    return not sized or (any_size and small)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # PyTorch leaves it untyped
def _was_constant(_: bool) -> bool:
    return _constant[0]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _read_off(mask: torch.Tensor) -> int:
    """Of the mask's values, which torch.compile computes to call this."""
    queries, keys = mask.shape[2:]
    for causal, window in ((False, None), (True, None), (True, int(mask[0, 0].sum(-1).max()))):
        allowed = allowed_keys(queries, keys, mask.device, causal, window, None)
        if window != 0 and torch.equal(mask, allowed.expand(mask.shape)):
            return _FULL if not causal else _CAUSAL if window is None else _CAUSAL + window
    return _UNKNOWN
