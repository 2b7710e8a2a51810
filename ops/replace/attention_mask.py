"""Attention masks of Transformers models, as kpt says them: causal or not, a window, and a number of keys a batch entry.

Transformers describes a mask by a function of (batch, head, query, key) built from its own parts. The parts that kpt knows are
recognised; whatever else comes (left padding, packed sequences, chunks, a user's own function, a static cache) gets the mask
that PyTorch's attention takes. Without a mask function of one's own, Transformers drops padding silently.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

log = logging.getLogger("kpt")


@dataclass(frozen=True)
class AttentionMask:
    """A mask in the terms of ``kpt.ops.flash_attention``; the last query stands at the last key."""

    causal: bool
    window: int | None
    key_lengths: torch.Tensor | None


class Inexpressible(Exception):
    """A mask that ``AttentionMask`` cannot say; the text says why."""


def attention_mask(**description: Any) -> AttentionMask | torch.Tensor | None:
    """The mask of one forward pass; registered with Transformers' AttentionMaskInterface, which names the arguments."""
    from transformers.masking_utils import sdpa_mask

    try:
        return _expressed(**description)
    except Inexpressible as reason:
        log_once(f"attention runs in PyTorch: {reason}")
        mask: torch.Tensor | None = sdpa_mask(**description)
        return mask


@cache
def log_once(message: str) -> None:
    """Warn, the first time."""
    log.warning("%s", message)


def _expressed(
    *,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Any],
    q_offset: int = 0,
    kv_offset: int = 0,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    **_: Any,
) -> AttentionMask:
    causal, window = _pattern(mask_function, local_size)
    if causal or window is not None:
        if isinstance(q_offset, torch.Tensor):
            raise Inexpressible("the position of the queries in a static cache is a tensor")
        if q_offset - kv_offset != kv_length - q_length:
            raise Inexpressible("the last query does not stand at the last key")
    return AttentionMask(causal, window, _key_lengths(attention_mask, kv_length, kv_offset))


def _pattern(mask_function: Callable[..., Any], local_size: int | None) -> tuple[bool, int | None]:
    """(causal, window) of a mask function."""
    from transformers import masking_utils as masks

    if mask_function is masks.causal_mask_function:
        return True, None
    if mask_function is masks.bidirectional_mask_function:
        return False, None
    if local_size is not None:
        if _same_function(mask_function, masks.sliding_window_causal_mask_function(local_size)):
            return True, local_size
        if _same_function(mask_function, masks.sliding_window_bidirectional_mask_function(local_size)):
            return False, local_size + 1  # Transformers counts the distance itself in
    raise Inexpressible("the mask is neither full, causal nor a sliding window")


def _same_function(a: Any, b: Any) -> bool:
    """The same code over the same closure: how a function built from known parts is recognised."""
    if callable(a) and callable(b) and hasattr(a, "__code__") and hasattr(b, "__code__"):
        cells = [[cell.cell_contents for cell in f.__closure__ or ()] for f in (a, b)]
        return a.__code__ is b.__code__ and _same_function(*cells)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_same_function(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and isinstance(a, int) and a == b


def _key_lengths(padding: torch.Tensor | None, kv_length: int, kv_offset: int) -> torch.Tensor | None:
    """How many keys each batch entry has; None where all have all. ``padding``: (B, keys seen), True where there is a token."""
    if padding is None:
        return None
    if torch.compiler.is_compiling():
        raise Inexpressible("the values of a padding mask are unknown while compiling")
    missing = kv_length + kv_offset - padding.shape[-1]
    padding = torch.nn.functional.pad(padding, (0, max(0, missing)))[:, kv_offset : kv_offset + kv_length].bool()
    lengths = padding.sum(-1, dtype=torch.int32)
    on_the_right = padding == (torch.arange(kv_length, device=padding.device) < lengths[:, None])
    # One wait for the device, a forward pass.
    expressible, full = torch.stack([on_the_right.all(), padding.all()]).tolist()
    if not expressible:
        raise Inexpressible("padding is not on the right")
    return None if full else lengths
