"""Attention masks of Transformers models as kpt says them: causal or not, a window, and how many keys a batch entry has.

Transformers describes a mask by a function of (batch, head, query, key) built from its own parts. The parts that kpt knows are
recognised; whatever else comes (left padding, packed sequences, chunks, a user's own function, a static cache) gets the mask
that PyTorch's attention takes. Without a mask function of one's own, Transformers drops padding silently.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from kpt.ops.flash_attention.reference import allowed_keys

log = logging.getLogger("kpt")


class AttentionMask(torch.Tensor):
    """A boolean mask (B, 1, queries, keys) that says what it is and holds nothing; the last query stands at the last key.

    A tensor, since Transformers and model code may look at its shape, slice it or move it; what they then get is an ordinary
    tensor of its values.
    """

    causal: bool
    window: int | None
    key_lengths: torch.Tensor | None

    @staticmethod
    def __new__(
        cls,
        shape: tuple[int, int, int, int],
        device: torch.device,
        causal: bool,
        window: int | None,
        key_lengths: torch.Tensor | None,
    ) -> "AttentionMask":
        mask: AttentionMask = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool, device=device)
        mask.causal, mask.window, mask.key_lengths = causal, window, key_lengths
        return mask

    def materialized(self) -> torch.Tensor:
        """The mask as an ordinary tensor, True where a query sees a key."""
        batch, _, queries, keys = self.shape
        allowed = allowed_keys(queries, keys, self.device, self.causal, self.window, self.key_lengths)
        return allowed.expand(batch, 1, queries, keys)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # PyTorch declares no signature
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map_only(cls, cls.materialized, (args, kwargs or {}))
        return func(*args, **kwargs)


class Inexpressible(Exception):
    """A mask that kpt cannot say; the text says why."""


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
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Any],
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    device: torch.device | str = "cpu",
    **_: Any,
) -> AttentionMask | None:
    """None where the layer itself knows the mask, as sdpa has it."""
    causal, window = _pattern(mask_function, local_size)
    if causal or window is not None:
        if isinstance(q_offset, torch.Tensor):
            raise Inexpressible("the position of the queries in a static cache is a tensor")
        if q_offset - kv_offset != kv_length - q_length:
            raise Inexpressible("the last query does not stand at the last key")
    lengths = _key_lengths(attention_mask, kv_length, kv_offset)
    may_skip = allow_is_causal_skip and q_length in (1, kv_length) if causal else allow_is_bidirectional_skip
    if may_skip and window is None and lengths is None:
        return None
    if torch.compiler.is_compiling():
        raise Inexpressible("only masks that need no tensor can be said while compiling")
    return AttentionMask((batch_size, 1, q_length, kv_length), torch.device(device), causal, window, lengths)


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
