"""Attention masks of Transformers models as kpt says them: causal or not, a window, and which keys a batch entry has.

Transformers describes a mask by a function of (batch, head, query, key) built from its own parts. The parts that kpt knows are
recognised; whatever else comes (packed sequences, chunks, a user's own function) gets the mask that PyTorch's attention takes.
Without a mask function of one's own, Transformers drops padding silently.

A causal mask is never None here, though PyTorch's may be: a layer that got None would have to guess where its queries stand.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map_only
from transformers import masking_utils as masks

from kpt.ops.flash_attention.reference import allowed_keys
from kpt.ops.replace import traced_mask

Context = tuple[tuple[str, ...], torch.dtype, int, bool, int | None, bool]
"""What a mask is beside its tensors: the names of those, its dtype, then seen, causal, window, implied."""


NOTHING = ("nothing",)
"""The tensors of a mask without any: a subclass has to hold something."""


class AttentionMask(torch.Tensor):
    """A mask (B, 1, queries, keys) that says what it is and holds next to nothing: of bools, as PyTorch's attention takes it,
    or floating, added to scores, as attention functions of models' own code take it.

    Only the first ``seen`` keys are there for anyone; the last query stands at the last of them, or, in a cache that has room,
    at the last of ``cached``. ``causal``, ``window`` and, where there are any, ``lengths``, ``starts``, ``cached``, (B,) int32,
    and ``tokens``, (B, seen) of bools, say which of them a query sees. ``implied``: PyTorch's would be None, so that a layer
    which is not causal sees all keys in spite of it.

    A tensor, since Transformers and model code may look at its shape, slice it or move it: its last queries are a mask again,
    whatever else is made of it is an ordinary tensor of its values. torch.compile follows it by what it flattens to; what
    changes from token to token is in tensors, so that a graph serves them all.
    """

    held: tuple[str, ...]
    seen: int
    causal: bool
    window: int | None
    implied: bool
    lengths: torch.Tensor | None
    starts: torch.Tensor | None
    cached: torch.Tensor | None
    tokens: torch.Tensor | None

    @staticmethod
    def __new__(cls, shape: Sequence[int], context: Context, tensors: dict[str, torch.Tensor]) -> "AttentionMask":
        device = next(iter(tensors.values())).device
        mask: AttentionMask = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=context[1], device=device)
        mask.held, _, mask.seen, mask.causal, mask.window, mask.implied = context
        mask.lengths = mask.starts = mask.cached = mask.tokens = None
        for name, tensor in tensors.items():
            setattr(mask, name, tensor)
        return mask

    def materialized(self) -> torch.Tensor:
        """The mask as an ordinary tensor."""
        batch, _, queries, keys = self.shape
        own_end = self.cached is not None
        lengths = self.cached if own_end else self.lengths
        allowed = allowed_keys(
            queries, self.seen, self.device, self.causal, self.window, lengths, self.starts, own_end=own_end
        )
        if self.tokens is not None:
            allowed = allowed & self.tokens[:, None, None]
        allowed = torch.nn.functional.pad(allowed, (0, keys - self.seen)).expand(batch, 1, queries, keys)
        return allowed if self.dtype == torch.bool else added(allowed, self.dtype)

    def __tensor_flatten__(self) -> tuple[list[str], Context]:
        return list(self.held), (self.held, self.dtype, self.seen, self.causal, self.window, self.implied)

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, torch.Tensor], context: Context, shape: Sequence[int], _: Any
    ) -> "AttentionMask":
        return AttentionMask(shape, context, inner)

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
            names, context = args[0].__tensor_flatten__()
            inner = {name: getattr(args[0], name) for name in names}
            return cls.__tensor_unflatten__(inner, context, (batch, 1, queries, keys), None)
        args, kwargs = tree_map_only(cls, cls.materialized, (args, kwargs or {}))
        return func(*args, **kwargs)


def added(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask of bools as Transformers adds it to scores."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


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
    dtype: torch.dtype,
    seen: int,
    causal: bool,
    window: int | None,
    implied: bool,
    device: torch.device,
    lengths: torch.Tensor | None = None,
    starts: torch.Tensor | None = None,
    cached: torch.Tensor | None = None,
    tokens: torch.Tensor | None = None,
) -> AttentionMask:
    """A mask, made where torch.compile may see it as one operation."""
    given = {"lengths": lengths, "starts": starts, "cached": cached, "tokens": tokens}
    tensors = {name: tensor for name, tensor in given.items() if tensor is not None}
    if not tensors:
        tensors = dict.fromkeys(NOTHING, torch.empty(0, dtype=torch.int32, device=device))
    return AttentionMask(shape, (tuple(tensors), dtype, seen, causal, window, implied), tensors)


class _Inexpressible(Exception):
    """A mask that kpt has no shorter words for than its values."""


def attention_mask(**description: Any) -> torch.Tensor | None:
    """The mask of one forward pass; registered with Transformers' AttentionMaskInterface, which names the arguments.

    An ``AttentionMask`` where kpt has words for it, else the mask that PyTorch's attention takes. None where nothing is masked
    and PyTorch's would be None: the layer itself says then whether it is causal, for both.
    """
    return _described(masks.sdpa_mask, description | {"dtype": torch.bool})


def own_attention_mask(**description: Any) -> torch.Tensor | None:
    """As ``attention_mask``, for models that run a function of their own code: their masks are added, and what else of their
    code looks at one finds what it found."""
    return _described(masks.eager_mask, description)


def _described(otherwise: Callable[..., torch.Tensor | None], description: dict[str, Any]) -> torch.Tensor | None:
    pattern = _pattern(description["mask_function"], description.get("local_size"))
    if pattern is not None:
        try:
            return _expressed(*pattern, **description)
        except _Inexpressible:
            pass
    elif torch.compiler.is_compiling():
        any_size = description.get("local_size") is None and not description.get("use_vmap")
        plain = {"allow_is_bidirectional_skip": False, "allow_is_causal_skip": False}
        bare = masks.sdpa_mask(**description | plain | {"attention_mask": None})
        pattern = traced_mask.pattern(bare, any_size)
        if pattern is not None:  # of all keys
            placed = {"q_offset": bare.shape[3] - bare.shape[2], "kv_offset": 0}
            padding = description.get("attention_mask")
            if padding is not None:
                padding = _counted(padding, description.get("kv_offset", 0), bare.shape[3])
            return _expressed(*pattern, **description | plain | placed | {"attention_mask": padding})
    return otherwise(**description | {"allow_is_causal_skip": False})


def _expressed(
    causal: bool,
    window: int | None,
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    attention_mask: torch.Tensor | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **_: Any,
) -> AttentionMask | None:
    device, seen, cached = torch.device(device), kv_length, None
    if causal or window is not None:
        position = q_offset - kv_offset
        has_room = isinstance(position, torch.Tensor) or position + q_length < kv_length
        if has_room and (q_length == 1 or not _may_read()):
            # Where it stands changes from token to token, and is the device's affair.
            cached = _of_all(position + q_length, batch_size, device)
        else:
            seen = q_length + (int(position) if isinstance(position, torch.Tensor) else position)
            if not q_length <= seen <= kv_length:
                raise _Inexpressible
    limits = {} if attention_mask is None else _of_padding(_counted(attention_mask, kv_offset, seen), cached)
    if cached is not None:
        limits["cached"] = cached
    if allow_is_bidirectional_skip and not causal and window is None and not limits:
        return None
    implied = False
    if allow_is_causal_skip and causal and not limits and q_length in (1, seen) and (window is None or kv_length < window):
        implied = True  # by a branch, which torch.compile guards: a comparison of sizes is no constant to it
    shape = (batch_size, 1, q_length, kv_length)
    made: AttentionMask = _mask(shape, dtype, seen, causal, window, implied, device, **limits)
    return made


def _of_all(length: int | torch.Tensor, batch: int, device: torch.device) -> torch.Tensor:
    """(B,) int32 on the device, without asking it."""
    if isinstance(length, torch.Tensor):
        return length.to(device, torch.int32).expand(batch).contiguous()
    return torch.full((batch,), length, dtype=torch.int32, device=device)


def _counted(padding: torch.Tensor, kv_offset: int, seen: int) -> torch.Tensor:
    """Which of the keys seen have a token, (B, seen), of ``padding``, (B, all keys), True where there is one; what it does not
    reach has none."""
    missing = seen + kv_offset - padding.shape[-1]
    return torch.nn.functional.pad(padding, (0, max(0, missing)))[:, kv_offset : kv_offset + seen].bool()


def _of_padding(tokens: torch.Tensor, cached: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """What of ``lengths``, ``starts`` and ``tokens`` a mask has for its padding: from where to where the tokens of each batch
    entry reach, as far as that hides keys, and which they are where there are holes between.

    Reads the device once to see that nothing is padding, twice where something is; where nothing can be read, all is said.
    """
    may_read = _may_read()
    if cached is None and may_read and bool(tokens.all()):
        return {}
    seen = tokens.shape[1]
    ends = torch.arange(1, seen + 1, dtype=torch.int32, device=tokens.device)
    lengths = (tokens * ends).amax(-1) if cached is None else cached
    hidden = (~tokens & (ends <= lengths[:, None])).sum(-1, dtype=torch.int32)
    if cached is not None and may_read and not bool(hidden.any()):
        return {}
    starts = tokens.to(torch.uint8).argmax(-1).to(torch.int32)
    said = [True, True, True]
    if may_read:
        said = torch.stack([(lengths < seen).any(), starts.any(), (hidden != starts).any()]).tolist()
    found = {"lengths": lengths, "starts": starts, "tokens": tokens}
    return {n: t for (n, t), needed in zip(found.items(), said, strict=True) if needed and t is not cached}


def _may_read() -> bool:
    """Values of tensors can be read here: nothing is traced, and no CUDA graph captured."""
    return not torch.compiler.is_compiling() and not (
        torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    )


def _pattern(mask_function: Callable[..., Any], local_size: int | None) -> tuple[bool, int | None] | None:
    """(causal, window) of a mask function, or None where it is another or, while compiling, cannot be looked into."""
    if mask_function is masks.causal_mask_function:
        return True, None
    if mask_function is masks.bidirectional_mask_function:
        return False, None
    if local_size is not None and not torch.compiler.is_compiling():
        if _same_function(mask_function, masks.sliding_window_causal_mask_function(local_size)):
            return True, local_size
        if _same_function(mask_function, masks.sliding_window_bidirectional_mask_function(local_size)):
            return False, local_size + 1  # Transformers counts the distance itself in
    return None


def _same_function(a: Any, b: Any) -> bool:
    """The same code over the same closure: how a function built from known parts is recognised."""
    if callable(a) and callable(b) and hasattr(a, "__code__") and hasattr(b, "__code__"):
        cells = [[cell.cell_contents for cell in f.__closure__ or ()] for f in (a, b)]
        return a.__code__ is b.__code__ and _same_function(*cells)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_same_function(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and isinstance(a, int) and a == b
