"""One call of an attention layer as kpt's op takes it: what it asks of the scores, why the op may not compute it, and the call.

Knows neither whose place it is called in nor who serves what it does not.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from kpt.ops.dispatch import DISPATCHERS
from kpt.ops.flash_attention.op import flash_attention
from kpt.ops.replace.attention_mask import NOTHING, AttentionMask
from kpt.ops.replace.keywords import PYTORCHS, WHOSE, not_understood
from kpt.ops.replace.proven import own_class
from kpt.ops.replace.rules import PLACE
from kpt_dsl.errors import InputError

log = logging.getLogger("kpt")

_said: set[tuple[int, str]] = set()
"""(model, reason) of what is in the log already."""


def why_not(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    queries: torch.Size,
    keys: torch.Size,
    mask: torch.Tensor | None,
    dropout: float,
    asked: list[str],
    keywords: dict[str, Any],
    causal: bool,
) -> str | None:
    """Why kpt's op does not compute a call, or None. ``queries`` and ``keys``: the shapes, which take long to ask for twice;
    ``asked``: those of the keywords that are not None."""
    if dropout:
        return "dropout is on"
    values = value.shape
    if (keys != values and keys[:3] != values[:3]) or queries[0] != keys[0] or queries[3] != keys[3]:
        return "queries, keys and values differ in batch, length or head dim"
    dtype = key.dtype
    same = query.dtype == dtype and dtype == value.dtype
    if not same and not torch.is_autocast_enabled(query.device.type):  # which makes them alike
        return "queries, keys and values differ in dtype"
    if mask is None:
        # As PyTorch's function reads it: query i stands at key i, whatever keys come after.
        if causal and queries[2] > keys[2]:
            return "there is no mask, and more queries than keys"
    elif isinstance(mask, AttentionMask):
        batch, _, rows, columns = mask.shape
        if batch != queries[0] or rows != queries[2] or columns != keys[2]:
            return "the mask was made for other lengths"
    elif not _fits(mask, queries, keys):
        return "the mask was made for other lengths"
    return _why_not_asked(queries, keys, asked, keywords) if asked else None


def _why_not_asked(
    queries: Sequence[int], keys: Sequence[int], asked: list[str], keywords: dict[str, Any]
) -> str | None:
    """Of queries and keys of these shapes."""
    for name in asked:
        if name in PYTORCHS:
            return f"the layer passes {name}"
        if name == "position_bias" and not _fits(keywords[name], queries, keys):
            return "the position bias was made for other lengths"
        if name == "s_aux" and tuple(keywords[name].shape) != (queries[1],):
            return "there is not one sink a head"
    return None


def _fits(mask: torch.Tensor, queries: Sequence[int], keys: Sequence[int]) -> bool:
    """It broadcasts to the scores."""
    shape, whole = mask.shape, (queries[0], queries[1], queries[2], keys[2])
    return len(shape) == 4 and all(mine in (1, theirs) for mine, theirs in zip(shape, whole, strict=True))


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    queries: torch.Size,
    keys: torch.Size,
    mask: torch.Tensor | None,
    scaling: float | None,
    asked: list[str],
    keywords: dict[str, Any],
    causal: bool,
) -> tuple[torch.Tensor, None]:
    """A call that kpt's op computes: (B, heads, length, head dim) in, (B, length, heads, head dim) out. ``causal`` is what
    holds where there is no mask."""
    window = lengths = starts = cached = values = softcap = sinks = bias = None
    seen = keys[2]
    if mask is None:
        if causal:
            seen = queries[2]
    elif isinstance(mask, AttentionMask):
        seen, causal, window = mask.seen, mask.causal, mask.window
        if mask.held != NOTHING:
            lengths, starts, cached, values = given = mask.lengths, mask.starts, mask.cached, mask.tokens
            if mask.device != query.device:  # of a model that is spread over several
                lengths, starts, cached, values = (None if t is None else t.to(query.device) for t in given)
            if values is not None:
                values = values[:, None, None]
    else:
        causal, values = False, mask
    if seen != keys[2]:
        key, value = key[:, :, :seen], value[:, :, :seen]
    if asked:
        softcap, sinks, bias = (keywords.get(name) for name in ("softcap", "s_aux", "position_bias"))
        if bias is not None:
            values = _biased(values, bias[..., :seen])
    o = flash_attention(
        query, key, value, causal=causal, scale=scaling, window=window, key_lengths=lengths, softcap=softcap, mask=values,
        sinks=sinks, key_starts=starts, cache_lengths=cached,
    )  # fmt: skip
    assert isinstance(o, torch.Tensor)
    return o.transpose(1, 2).contiguous(), None


def _biased(mask: torch.Tensor | None, bias: torch.Tensor) -> torch.Tensor:
    """A mask, of bools or added, and a bias, as one that is added."""
    if mask is None:
        return bias
    return bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask


def refuse_unknown(module: nn.Module, asked: list[str], former: str) -> None:
    """Raises InputError where a layer passes keywords that neither kpt's attention nor the former function understands."""
    unknown = not_understood(asked, former)
    if not unknown:
        return
    name, number = model_of(module)
    where = f"{path_of(module)} ({own_class(module).__name__})" if number else own_class(module).__name__
    raise InputError(
        f"attention of {name}: {where} passes {', '.join(unknown)}, which neither kpt's attention nor {WHOSE[former]} "
        "understands: without it the model may compute something else. If it came from you, leave it out; if the model needs "
        'it, kpt.restore_modules(model), then kpt.replace_modules(model, only=["layer_norm", "rms_norm", "linear_act"])'
    )


def count(module: nn.Module, reason: str) -> None:
    """Note that kpt's op did not serve a call of a layer; logged once a model and reason."""
    if torch.compiler.is_compiling():
        # The path of a layer is not looked at: it would be guarded, and layers that are compiled alone compiled anew each.
        _count_while_tracing(*model_of(module), reason)
    else:
        _count(*model_of(module), reason, path_of(module))


def model_of(module: nn.Module) -> tuple[str, int]:
    """Name and number of the replaced model that a layer is part of; of the layer where no model was replaced."""
    place = getattr(module, PLACE, None)
    return (type(module).__name__, 0) if place is None else (place.owner.name, place.owner.number)


def path_of(module: nn.Module) -> str:
    """Where a layer stands in its replaced model."""
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
