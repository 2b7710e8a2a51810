"""What the scores of attention may have, beside queries and keys: the arguments that the op and its gradient share."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from kpt.ops import checks, softcap
from kpt.ops.devices import tpu
from kpt.ops.dtypes import FLOATS
from kpt.ops.flash_attention import pages
from kpt_dsl.language import SMALLEST_POSITIVE

FARTHEST = 2**31 - 1
"""As far ahead as no limit at all."""

LOWEST = -2.4e38
"""What is added to a score hides its key from here on down, as -inf does: over log 2 it is no float32."""

WINDOW = "None, a whole number of keys, 1 or more, or a pair (behind, ahead) of numbers of keys, -1 for no limit"

Window = int | tuple[int, int] | None

OTHER = 4
"""Where the arguments of a schema have one among those of the scores that is none of these."""

_PAIRS = (tuple, list)


def sides(op: str, window: Any) -> tuple[Any, Any]:
    """A window as the schema has it: how many positions away what is seen begins to end, and, of a pair, how far ahead."""
    if not isinstance(window, _PAIRS):
        return window, None
    if len(window) != 2 or not all(_whole(n) and n >= -1 for n in window):
        checks.reject(op, "window", repr(window), WINDOW)
    behind, ahead = window
    return None if behind < 0 else behind + 1, FARTHEST if ahead < 0 else ahead


class Scores(NamedTuple):
    """The arguments, as they follow ``q, k, v`` and what is the gradient's own. ``ahead``: see ``sides``."""

    causal: bool = False
    scale: float | None = None
    window: int | None = None
    key_lengths: torch.Tensor | None = None
    softcap: float | None = None
    mask: torch.Tensor | None = None
    alibi_slopes: torch.Tensor | None = None
    sinks: torch.Tensor | None = None
    key_starts: torch.Tensor | None = None
    cu_seqlens_q: torch.Tensor | None = None
    cu_seqlens_k: torch.Tensor | None = None
    max_seqlen_q: int | None = None
    max_seqlen_k: int | None = None
    cache_lengths: torch.Tensor | None = None
    block_table: torch.Tensor | None = None
    ahead: int | None = None

    @staticmethod
    def split(op: str, arguments: Sequence[Any]) -> "tuple[Scores, Any]":
        """From the arguments of a schema, and the one among them that is none of these: ``return_lse``, or ``needed``."""
        scores, window, other = Scores(*arguments[:OTHER], *arguments[OTHER + 1 :]), arguments[2], arguments[OTHER]
        if isinstance(window, _PAIRS):
            window, ahead = sides(op, window)
            return scores._replace(window=window, ahead=ahead), other
        return scores, other

    def around(self, other: Any) -> tuple[Any, ...]:
        """The reverse of ``split``."""
        return (*self[:OTHER], other, *self[OTHER:])

    def check(self, op: str, q: torch.Tensor, k: torch.Tensor) -> None:
        """Raises InputError, in the name of ``op``, for what does not fit."""
        batch, heads, queries = self.extents(op, q)
        checks.flag(op, "causal", self.causal)
        if self.scale is not None:
            checks.number(op, "scale", self.scale)
        softcap.check(op, self.softcap)
        if self.window is not None and not (_whole(self.window) and self.window >= 1):
            checks.reject(op, "window", repr(self.window), WINDOW)
        if self.ahead is not None and not (_whole(self.ahead) and self.ahead >= 0):
            checks.reject(op, "ahead", repr(self.ahead), "None, or a whole number of keys")
        for name in ("key_lengths", "key_starts", "cache_lengths"):
            if (value := getattr(self, name)) is not None:
                checks.shape(op, name, value, (batch,), "(batch,)")
                checks.dtype(op, name, value.dtype, (torch.int32, torch.int64))
        if self.cache_lengths is not None and self.key_lengths is not None:
            checks.reject(op, "cache_lengths", "given", "one of key_lengths and cache_lengths")
        if self.mask is not None:
            checks.tensor(op, "mask", self.mask)
            checks.dtype(op, "mask", self.mask.dtype, (torch.bool, *FLOATS))
            whole = (batch, heads, queries, self.key_extents(k)[2])
            fits = zip(reversed(self.mask.shape), reversed(whole), strict=False)
            if self.mask.ndim > 4 or not all(mine in (1, theirs) for mine, theirs in fits):
                accepted = f"what broadcasts to (batch, heads, queries, keys), here {whole}"
                checks.reject(op, "mask", checks.shape_of(self.mask), accepted)
        if self.alibi_slopes is not None:
            checks.tensor(op, "alibi_slopes", self.alibi_slopes)
            if tuple(self.alibi_slopes.shape) not in ((heads,), (batch, heads)):
                accepted = f"(heads,) or (batch, heads), here ({heads},) or {(batch, heads)}"
                checks.reject(op, "alibi_slopes", checks.shape_of(self.alibi_slopes), accepted)
            wide = torch.float64 if q.dtype == torch.float64 else torch.float32
            checks.dtype(op, "alibi_slopes", self.alibi_slopes.dtype, (torch.float32, wide))
        if self.sinks is not None:
            checks.shape(op, "sinks", self.sinks, (heads,), "(heads,)")
            checks.dtype(op, "sinks", self.sinks.dtype, FLOATS)
        checks.same_device(
            op, "q", q, key_lengths=self.key_lengths, key_starts=self.key_starts, mask=self.mask,
            alibi_slopes=self.alibi_slopes, sinks=self.sinks, cache_lengths=self.cache_lengths,
            cu_seqlens_q=self.cu_seqlens_q, cu_seqlens_k=self.cu_seqlens_k,
        )  # fmt: skip

    def extents(self, op: str, q: torch.Tensor) -> tuple[int, int, int]:
        """Entries, heads, queries of a call. Raises InputError for ``cu_seqlens`` that do not say how many entries."""
        if self.cu_seqlens_q is None:
            if self.cu_seqlens_k is not None:
                checks.reject(op, "cu_seqlens_k", "given", "None without cu_seqlens_q")
            batch, heads, queries, _ = q.shape
            return batch, heads, queries
        for name, value in (("cu_seqlens_q", self.cu_seqlens_q), ("cu_seqlens_k", self.cu_seqlens_k)):
            if value is not None:
                checks.rank(op, name, value, (1,), "(entries + 1,)")
                checks.dtype(op, name, value.dtype, (torch.int32, torch.int64))
        count = self.cu_seqlens_q.shape[0]
        if not count:
            checks.reject(op, "cu_seqlens_q", "empty", "(entries + 1,), where each entry begins and the last one ends")
        if self.cu_seqlens_k is not None and self.cu_seqlens_k.shape[0] != count:
            checks.reject(op, "cu_seqlens_k", checks.shape_of(self.cu_seqlens_k), f"the shape of cu_seqlens_q, ({count},)")
        return count - 1, q.shape[1], q.shape[0]

    def cu_seqlens(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a packed call: where the queries and the keys of each entry begin, and the last one's end."""
        assert self.cu_seqlens_q is not None
        return self.cu_seqlens_q, self.cu_seqlens_q if self.cu_seqlens_k is None else self.cu_seqlens_k

    def why_not(self) -> str | None:
        """Why kernels do not make these scores, or None."""
        if self.scale is not None and self.scale != self.scale:
            return "scale is NaN"
        if (reason := softcap.why_not(self.softcap)) is not None:
            return reason
        if self.alibi_slopes is not None and self.alibi_slopes.requires_grad and torch.is_grad_enabled():
            return "no kernel makes the gradient of alibi_slopes"
        return None

    def key_extents(self, k: torch.Tensor) -> tuple[int, int, int]:
        """Batch entries, key-value heads and keys of each entry, in pages or not."""
        return pages.extents(k, self.block_table)

    @property
    def lengths(self) -> torch.Tensor | None:
        """How many keys each batch entry has."""
        return self.key_lengths if self.cache_lengths is None else self.cache_lengths

    @property
    def own_end(self) -> bool | None:
        """True where the last query stands at the last key of its own batch entry; None: at key N - 1."""
        return None if self.cache_lengths is None else True

    def scale_of(self, q: torch.Tensor) -> float:
        """What products are multiplied with: 1 / sqrt(D) unless given, 1 of no features, whose products are 0."""
        default: float = max(1, q.shape[-1]) ** -0.5
        return default if self.scale is None else self.scale

    def positive(self, q: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Queries and a scale above zero of the same scores. Kernels mask before they scale, which another scale turns into
        NaN."""
        found = self.scale_of(q)
        return (q, found) if found >= SMALLEST_POSITIVE else (q * found, 1.0)

    def scaled(self, q: torch.Tensor) -> bool | None:
        """True where kernels, all alike, scale and round queries instead of scaling scores: in bfloat16 on TPUs, where that
        spares 6 to 10% of the forward's time by the compiler's code for v6e."""
        return True if q.dtype == torch.bfloat16 and tpu(q) is not None else None

    def sides(self, q: torch.Tensor, k: torch.Tensor) -> tuple[bool, int | None, int | None, int | None]:
        """What is seen, in as few words as say it: whether nothing ahead is, how many positions away a window of two like sides
        ends, and how far behind and ahead another one goes; no more than matters, for kernels count in 32 bits."""
        widest = max(q.shape[2], k.shape[2])
        window = None if self.window is None else min(self.window, widest)
        if self.ahead is None or self.causal or self.ahead == 0:
            return self.causal or self.ahead == 0, window, None, None
        if window is not None and self.ahead == window - 1:
            return False, window, None, None
        return False, None, None if window is None else window - 1, min(self.ahead, widest)

    def of_kernels(self, q: torch.Tensor, k: torch.Tensor, scale: float) -> tuple[Any, ...]:
        """What all kernels of scores take last, in their order."""
        causal, window, *apart = self.sides(q, k)
        seen = bias = slopes = None
        if self.mask is not None:
            whole = self.mask.expand(*q.shape[:3], k.shape[2])
            seen, bias = (whole, None) if self.mask.dtype == torch.bool else (None, whole)
        if self.alibi_slopes is not None:
            slopes = self.alibi_slopes if self.alibi_slopes.ndim == 2 else self.alibi_slopes.expand(*q.shape[:2])
        own = self.own_end, self.scaled(q)
        return scale, window, causal, *apart, self.key_starts, self.softcap, seen, bias, slopes, *own


def _whole(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)
