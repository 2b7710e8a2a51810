"""What attention layers of replaced Transformers models call: kpt's op where it computes the same, else PyTorch's function.

Imports Transformers and torch._dynamo: imported when a first model is replaced.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kpt.ops.dispatch import DISPATCHERS
from kpt.ops.flash_attention.op import flash_attention
from kpt.ops.replace.attention_mask import AttentionMask, why_not_ours
from kpt.ops.replace.keywords import PYTORCHS, not_understood
from kpt.ops.replace.rules import PLACE
from kpt.ops.replace.source import REPLACES
from kpt_dsl.errors import InputError

log = logging.getLogger("kpt")

_said: set[tuple[int, str]] = set()
"""(model, reason) of what is in the log already."""


def attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **keywords: Any,
) -> tuple[torch.Tensor, None]:
    """What an attention layer calls: (B, heads, length, head dim) in, (B, length, heads, head dim) out.

    A call that kpt's op does not compute goes to PyTorch's function, is counted and, once a model and reason, logged. Raises
    InputError for a keyword that neither understands.
    """
    asked = [name for name, value in keywords.items() if value is not None]
    if asked and (unknown := not_understood(asked)):
        raise InputError(_refusal(module, unknown))
    queries, keys = query.shape, key.shape  # read once: a layer calls this every time
    if _sees_all(module, queries[2], attention_mask, is_causal):
        attention_mask = None
    causal = queries[2] > 1 and bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    reason = _why_not(query, key, value, dropout, asked) or _why_not_mask(attention_mask, queries, keys, causal)
    if reason is None:
        window, lengths = None, None
        if isinstance(attention_mask, AttentionMask):
            seen, causal, window = attention_mask.seen, attention_mask.causal, attention_mask.window
            if seen != keys[2]:
                key, value = key[:, :, :seen], value[:, :, :seen]
            lengths = attention_mask.lengths.to(query.device) if attention_mask.limited else None
        o = flash_attention(query, key, value, causal=causal, scale=scaling, window=window, key_lengths=lengths)
        assert isinstance(o, torch.Tensor)
        return o.transpose(1, 2).contiguous(), None
    if torch.compiler.is_compiling():
        # The path of a layer is not looked at: it would be guarded, and layers that are compiled alone compiled anew each.
        _count_while_tracing(*_model(module), reason)
    else:
        _count(*_model(module), reason, _path(module))
    if _would_be_none(attention_mask, query, key, causal):
        attention_mask = None
    output: tuple[torch.Tensor, None] = ALL_ATTENTION_FUNCTIONS[REPLACES](
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **keywords
    )
    return output


def _sees_all(module: nn.Module, queries: int, mask: torch.Tensor | None, is_causal: bool | None) -> bool:
    """A layer that is not causal, under a causal mask that PyTorch's would leave to the layer: it masks nothing there.

    What the call says does not count alone: some models say that a call is not causal where they have a mask.
    """
    implied = isinstance(mask, AttentionMask) and mask.implied and queries == mask.seen
    return implied and not is_causal and not getattr(module, "is_causal", True)


def _would_be_none(mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, causal: bool) -> bool:
    """PyTorch's function would have no mask here: without one it computes what it did before replacing, to the last bit, in its
    kernels for causal attention."""
    if not isinstance(mask, AttentionMask) or not mask.implied:
        return False
    queries, keys = query.shape[2], key.shape[2]
    return (
        mask.shape[2] == queries
        and mask.shape[3] == mask.seen == keys
        and (queries == 1 or (causal and queries == keys))
    )


def _why_not(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, asked: list[str]
) -> str | None:
    if dropout:
        return "dropout is on"
    if taken := [name for name in asked if name in PYTORCHS]:
        return f"the layer passes {taken[0]}"
    queries, keys, values = query.shape, key.shape, value.shape
    if queries[3] != values[3]:
        return "values are not as wide as keys"
    if values != keys or queries[0] != keys[0] or queries[3] != keys[3]:
        return "queries, keys and values differ in batch, heads or head dim"
    dtype = key.dtype
    same = query.dtype == dtype and dtype == value.dtype
    if not same and not torch.is_autocast_enabled(query.device.type):  # which makes them alike
        return "queries, keys and values differ in dtype"
    return None


def _why_not_mask(
    mask: torch.Tensor | None, queries: Sequence[int], keys: Sequence[int], causal: bool
) -> str | None:
    """Of queries and keys of these shapes."""
    if mask is None:
        # As PyTorch's function reads it: query i stands at key i, whatever keys come after.
        other = causal and queries[2] != keys[2]
        return "there is no mask, and queries are not as many as keys" if other else None
    if not isinstance(mask, AttentionMask):
        return why_not_ours(mask)
    batch, _, rows, columns = mask.shape
    if batch != queries[0] or rows != queries[2] or columns != keys[2]:
        return "the mask was made for other lengths"
    return None


def _refusal(module: nn.Module, unknown: list[str]) -> str:
    name, number = _model(module)
    where = f"{_path(module)} ({type(module).__name__})" if number else type(module).__name__
    return (
        f"attention of {name}: {where} passes {', '.join(unknown)}, which neither kpt's attention nor PyTorch's understands: "
        "without it the model may compute something else. If it came from you, leave it out; if the model needs it, "
        'kpt.restore_modules(model), then kpt.replace_modules(model, only=["layer_norm", "rms_norm", "linear_act"])'
    )


def _model(module: nn.Module) -> tuple[str, int]:
    """Name and number of the replaced model that a layer is part of; of the layer where no model was replaced."""
    place = getattr(module, PLACE, None)
    return (type(module).__name__, 0) if place is None else (place.owner.name, place.owner.number)


def _path(module: nn.Module) -> str:
    place = getattr(module, PLACE, None)
    return type(module).__name__ if place is None else place.path


def _count(name: str, number: int, reason: str, path: str = "") -> None:
    DISPATCHERS["flash_attention"].count_outside(f"{name}: {reason}")
    if (number, reason) not in _said:
        _said.add((number, reason))
        log.warning("attention of %s runs in PyTorch: %s%s", name, reason, f" (first in {path})" if path else "")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # PyTorch leaves it untyped
def _count_while_tracing(name: str, number: int, reason: str) -> None:
    """As ``_count``, by torch.compile itself while it traces: once a graph, and the graph holds nothing of it."""
    _count(name, number, reason)
