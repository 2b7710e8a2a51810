"""Attention masks of Transformers models as kpt says them: causal or not, a window, and how many keys a batch entry has.

Transformers describes a mask by a function of (batch, head, query, key) built from its own parts. The parts that kpt knows are
recognised; whatever else comes (left padding, packed sequences, chunks, a user's own function, a static cache) gets the mask
that PyTorch's attention takes. Without a mask function of one's own, Transformers drops padding silently.

A causal mask is never None here, though PyTorch's may be: a layer that got None would have to guess where its queries stand.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map_only
from transformers import masking_utils as masks

from kpt.ops.flash_attention.reference import allowed_keys
from kpt.ops.replace import traced_mask

_REASON = "_kpt_reason"
"""The attribute of a mask of PyTorch's that says why it is not one of ours."""


Context = tuple[int, bool, int | None, bool, bool]
"""What a mask is beside its tensor: seen, causal, window, limited, implied."""


class AttentionMask(torch.Tensor):
    """A boolean mask (B, 1, queries, keys) that says what it is and holds nothing.

    Only the first ``seen`` keys are there for anyone (a static cache has room behind them); the last query stands at the last
    of them. ``causal``, ``window`` and, where ``limited``, ``lengths``, (B,) int32, say which of them a query sees.
    ``implied``: PyTorch's would be None, so that a layer which is not causal sees all keys in spite of it.

    A tensor, since Transformers and model code may look at its shape, slice it or move it: its last queries are a mask again,
    whatever else is made of it is an ordinary tensor of its values. torch.compile follows it by what it flattens to.
    """

    seen: int
    causal: bool
    window: int | None
    limited: bool
    implied: bool
    lengths: torch.Tensor

    @staticmethod
    def __new__(
        cls,
        shape: Sequence[int],
        seen: int,
        causal: bool,
        window: int | None,
        limited: bool,
        implied: bool,
        lengths: torch.Tensor,
    ) -> "AttentionMask":
        mask: AttentionMask = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool, device=lengths.device)
        mask.seen, mask.causal, mask.window = seen, causal, window
        mask.limited, mask.implied, mask.lengths = limited, implied, lengths
        return mask

    def materialized(self) -> torch.Tensor:
        """The mask as an ordinary tensor, True where a query sees a key."""
        batch, _, queries, keys = self.shape
        lengths = self.lengths if self.limited else None
        allowed = allowed_keys(queries, self.seen, self.device, self.causal, self.window, lengths)
        return torch.nn.functional.pad(allowed, (0, keys - self.seen)).expand(batch, 1, queries, keys)

    def __tensor_flatten__(self) -> tuple[list[str], Context]:
        return ["lengths"], (self.seen, self.causal, self.window, self.limited, self.implied)

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, torch.Tensor], context: Context, shape: Sequence[int], _: Any
    ) -> "AttentionMask":
        return AttentionMask(shape, *context, inner["lengths"])

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # PyTorch declares no signature
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        queries = None
        if func is torch.ops.aten.slice.Tensor:
            queries = _last_queries(*args)
        elif func in (torch.ops.aten.alias.default, torch.ops.aten.detach.default):  # slices that leave all
            queries = args[0].shape[2]
        if queries is not None:
            batch, _, _, keys = args[0].shape
            _, context = args[0].__tensor_flatten__()
            return cls.__tensor_unflatten__({"lengths": args[0].lengths}, context, (batch, 1, queries, keys), None)
        args, kwargs = tree_map_only(cls, cls.materialized, (args, kwargs or {}))
        return func(*args, **kwargs)


def _last_queries(
    mask: torch.Tensor, dim: int = 0, start: int | None = None, stop: int | None = None, step: int = 1
) -> int | None:
    """How many queries a slice of a mask leaves where it leaves the last ones, with all their keys; else None."""
    size = mask.shape[dim]
    first = 0 if start is None else max(0, start + size) if start < 0 else start
    if step != 1 or (stop is not None and stop < size) or not (first == 0 or (dim in (2, -2) and first < size)):
        return None
    return mask.shape[2] - first


@torch._dynamo.allow_in_graph  # type: ignore[untyped-decorator]  # PyTorch leaves it untyped
def _mask(
    shape: Sequence[int],
    seen: int,
    causal: bool,
    window: int | None,
    implied: bool,
    lengths: torch.Tensor | None,
    device: torch.device,
) -> AttentionMask:
    """A mask, made where torch.compile may see it as one operation."""
    limited = lengths is not None
    inner = torch.empty(0, dtype=torch.int32, device=device) if lengths is None else lengths
    return AttentionMask(shape, seen, causal, window, limited, implied, inner)


def why_not_ours(mask: torch.Tensor) -> str:
    """Why a mask that a layer got is one of PyTorch's."""
    return getattr(mask, _REASON, None) or "the mask is the model's or the user's own"


class Inexpressible(Exception):
    """A mask that kpt cannot say; the text says why."""


def attention_mask(**description: Any) -> torch.Tensor | None:
    """The mask of one forward pass; registered with Transformers' AttentionMaskInterface, which names the arguments.

    None where nothing is masked and PyTorch's would be None: the layer itself says then whether it is causal, for both.
    """
    tracing = torch.compiler.is_compiling()
    try:
        return _expressed(**description)
    except Inexpressible as inexpressible:
        reason = str(inexpressible)
    mask: torch.Tensor | None = masks.sdpa_mask(**description | {"allow_is_causal_skip": False})
    if mask is None:
        return None
    if tracing and description.get("attention_mask") is None:
        any_size = description.get("local_size") is None and not description.get("use_vmap")
        found = traced_mask.pattern(mask, any_size)
        if found is not None:
            made: AttentionMask = _mask(tuple(mask.shape), mask.shape[3], *found, False, None, mask.device)
            return made
    setattr(mask, _REASON, reason)
    return mask


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
    causal, window = _pattern(mask_function, local_size)
    seen = kv_length
    if causal or window is not None:
        if isinstance(q_offset, torch.Tensor):
            if not _may_read():
                raise Inexpressible("where a static cache stands is unknown while compiling or capturing")
            q_offset = int(q_offset)
        seen = q_offset - kv_offset + q_length
        if not q_length <= seen <= kv_length:
            raise Inexpressible("the last query stands at none of the keys")
    lengths = None if attention_mask is None else _key_lengths(attention_mask, kv_offset, seen)
    if allow_is_bidirectional_skip and not causal and window is None and lengths is None:
        return None
    all_within = window is None or kv_length < window
    implied = allow_is_causal_skip and causal and all_within and lengths is None and q_length in (1, seen)
    shape = (batch_size, 1, q_length, kv_length)
    made: AttentionMask = _mask(shape, seen, causal, window, implied, lengths, torch.device(device))
    return made


def _may_read() -> bool:
    """Values of tensors can be read here: nothing is traced, and no CUDA graph captured."""
    return not torch.compiler.is_compiling() and not (
        torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    )


def _pattern(mask_function: Callable[..., Any], local_size: int | None) -> tuple[bool, int | None]:
    """(causal, window) of a mask function."""
    if mask_function is masks.causal_mask_function:
        return True, None
    if mask_function is masks.bidirectional_mask_function:
        return False, None
    if local_size is not None and not torch.compiler.is_compiling():  # which cannot look into functions
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


def _key_lengths(padding: torch.Tensor, kv_offset: int, seen: int) -> torch.Tensor | None:
    """How many keys each batch entry has; None where all have all. ``padding``: (B, keys seen), True where there is a token."""
    if not _may_read():
        raise Inexpressible("the values of a padding mask are unknown while compiling or capturing")
    missing = seen + kv_offset - padding.shape[-1]
    padding = torch.nn.functional.pad(padding, (0, max(0, missing)))[:, kv_offset : kv_offset + seen].bool()
    lengths = padding.sum(-1, dtype=torch.int32)
    on_the_right = padding == (torch.arange(seen, device=padding.device) < lengths[:, None])
    # One wait for the device, a forward pass.
    expressible, full = torch.stack([on_the_right.all(), padding.all()]).tolist()
    if not expressible:
        raise Inexpressible("padding is not on the right")
    return None if full else lengths
