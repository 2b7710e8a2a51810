"""The gradients of attention: an op of its own, and how autograd gets from the forward op to it."""

from collections.abc import Sequence
from typing import Any

import torch

from kpt.ops import checks
from kpt.ops.backends import Launch, generated, rooms, unit_last_stride
from kpt.ops.flash_attention import contract, packed, reference
from kpt.ops.flash_attention.backward_kernels import (
    flash_attention_dkdv,
    flash_attention_dq,
    flash_attention_group_sum,
    flash_attention_rows,
    flash_attention_scale,
)
from kpt.ops.flash_attention.scores import OTHER, Scores, Window, sides
from kpt.ops.flash_attention.shapes import BACKWARD_SHAPES, DIMS, backward_arguments
from kpt.ops.library import define
from kpt.ops.memory_order import empty_like
from kpt.ops.registry import Gradient, Op

OP = "flash_attention_backward"

INPUTS = ("q", "k", "v", "sinks", "mask")
"""What has a gradient, in the order in which it is given."""


def flash_attention_backward(
    do: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    o: torch.Tensor,
    lse: torch.Tensor,
    dlse: torch.Tensor | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: Window = None,
    key_lengths: torch.Tensor | None = None,
    needed: Sequence[bool] = (True, True, True),
    softcap: float | None = None,
    mask: torch.Tensor | None = None,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    key_starts: torch.Tensor | None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    cache_lengths: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """The gradients of q, k, v, sinks and mask, those that are ``needed`` (one bool for each; of the last two False where it is
    left out), in this order.

    ``do``, (B, H, M, E), and ``dlse``, (B, H, M) or None, are the gradients of what ``flash_attention`` gave, ``o`` and
    ``lse``, packed or not; the other arguments are its. Each gradient has the dtype and the memory order of its input. Two runs
    give the same bits, unless those of q, k and v are needed and to add up dq in any order was measured to be quicker on this
    device; under ``torch.use_deterministic_algorithms(True)`` they always do. Raises InputError for arguments that do not fit.
    Dao 2023, arXiv:2307.08691.
    """
    window, ahead = sides(OP, window)
    gradients: list[torch.Tensor] = _dispatch(
        do, q, k, v, o, lse, dlse, causal, scale, window, key_lengths, needed, softcap, mask, alibi_slopes, sinks, key_starts,
        cu_seqlens_q, cu_seqlens_k, None, None, cache_lengths, block_table, ahead,
    )  # fmt: skip
    return gradients


def _check(do: Any, q: Any, k: Any, v: Any, o: Any, lse: Any, dlse: Any, *others: Any) -> None:
    scores, needed = Scores.split(OP, others)
    contract.check(OP, q, k, v, scores)
    rows, wide = contract.lse_shape(q), contract.lse_dtype(q.dtype)
    of_o, of_lse = ("batch, heads, queries",) * 2 if scores.cu_seqlens_q is None else ("queries, heads", "heads, queries")
    for name, value in (("do", do), ("o", o)):
        checks.shape(OP, name, value, (*q.shape[:-1], v.shape[-1]), f"({of_o}, head dim of v)")
        checks.same_dtype(OP, "q", q, **{name: value})
    for name, value in (("dlse", dlse), ("lse", lse)):
        if value is not None or name == "lse":
            checks.shape(OP, name, value, rows, f"({of_lse})")
            checks.dtype(OP, name, value.dtype, (wide,))
    checks.same_device(OP, "q", q, do=do, dlse=dlse, o=o, lse=lse)
    if len(needed) not in (3, 4, 5) or not all(isinstance(n, bool) for n in needed):
        checks.reject(OP, "needed", repr(needed), "three bools, for q, k and v, and two more for sinks and mask")
    for name, given, wanted in zip(INPUTS[3:], (scores.sinks, scores.mask), needed[3:], strict=False):
        if wanted and (given is None or not given.dtype.is_floating_point):
            checks.reject(OP, "needed", repr(needed), f"False for {name}, which has no gradient")


def _wanted(needed: Sequence[bool], q: Any, k: Any, v: Any, scores: Scores) -> list[torch.Tensor]:
    """The tensors whose gradients are needed."""
    return [t for t, n in zip((q, k, v, scores.sinks, scores.mask), needed, strict=False) if n]


def _fake(do: Any, q: Any, k: Any, v: Any, o: Any, lse: Any, dlse: Any, *others: Any) -> list[torch.Tensor]:
    scores, needed = Scores.split(OP, others)
    return [empty_like(t) for t in _wanted(needed, q, k, v, scores)]


def _why_not(do: Any, q: Any, k: Any, v: Any, o: Any, lse: Any, dlse: Any, *others: Any) -> str | None:
    scores = Scores.split(OP, others)[0]
    if scores.block_table is not None:
        return "no kernel makes gradients of keys and values in pages"
    return contract.why_not(q, v, scores)


def _run(
    launch: Launch, do: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, o: torch.Tensor,
    lse: torch.Tensor, dlse: torch.Tensor | None, *others: Any,
) -> list[torch.Tensor]:  # fmt: skip
    scores, needed = Scores.split(OP, others)
    if not any(needed):
        return []
    needs_q, needs_k, needs_v, needs_sinks, needs_mask = (*needed, False, False)[:5]
    dq = empty_like(q) if needs_q or needs_mask else None
    dk, dv = (empty_like(t) if n else None for t, n in ((k, needs_k), (v, needs_v)))
    made, ends = (dq, dk, dv), packed.ends(launch, OP, q, k, scores)
    if scores.cu_seqlens_q is not None:
        do, q, k, v, o, lse = map(packed.batched, (do, q, k, v, o, lse))
        dlse, dq, dk, dv = (None if t is None else packed.batched(t) for t in (dlse, dq, dk, dv))
    factor, (q, scale) = scores.scale_of(q), scores.positive(q)
    q, k, v, o, do = (t if t.stride(3) == 1 else unit_last_stride(t) for t in (q, k, v, o, do))
    delta, shift = rooms(lse, lse.shape, 2)
    sinks_parts = torch.empty_like(delta) if needs_sinks else None
    dbias = _bias_parts(scores.mask, q, k) if needs_mask and scores.mask is not None else None
    takes_delta = dq is not None or dk is not None or needs_sinks
    shared = q.shape[1] != k.shape[1]
    parts = [_parts(t, q.shape[1]) if t is not None and shared else t for t in (dk, dv)]
    last = scores.of_kernels(q, k, scale)
    sinks = scores.sinks if needs_sinks else None

    def apart(launch: Launch) -> None:
        """A kernel for dq and one for dk and dv: seven products."""
        given = (o, do, lse, dlse, delta) if takes_delta else (None, None, lse, None, None)
        launch(flash_attention_rows, *given, shift, None, sinks, sinks_parts)
        if dq is not None:
            launch(flash_attention_dq, q, k, v, do, delta, shift, scores.lengths, dq, *last, dbias, *ends.queries)
        if dk is not None or dv is not None:
            mine = delta if dk is not None else None
            launch(flash_attention_dkdv, q, k, v, do, mine, shift, scores.lengths, *parts, None, *last, *ends.keys)

    def together(launch: Launch) -> None:
        """One kernel for all three, whose programs add to dq in any order: five products."""
        dq_sum = q.new_empty(q.shape, dtype=torch.float32)
        launch(flash_attention_rows, o, do, lse, dlse, delta, shift, dq_sum, sinks, sinks_parts)
        launch(flash_attention_dkdv, q, k, v, do, delta, shift, scores.lengths, *parts, dq_sum, *last, *ends.keys)
        launch(flash_attention_scale, dq_sum, dq, scale)

    if all(needed[:3]) and not needs_mask and not torch.are_deterministic_algorithms_enabled():
        launch.quickest(apart, together)
    else:
        launch.quickest(apart)
    if shared and (dk is not None or dv is not None):
        grouped = (None if p is None else p.unflatten(1, (k.shape[1], -1)) for p in parts)
        launch(flash_attention_group_sum, *grouped, dk, dv)
    if dq is not None and scale != factor:  # it is the gradient of the queries that were scaled before
        dq *= factor
    dsinks = None if sinks_parts is None or sinks is None else sinks_parts.sum((0, 2)).to(sinks.dtype)
    dmask = None if dbias is None or scores.mask is None else reference.summed_to(dbias, scores.mask)
    dq, dk, dv = made
    return [t for t in (dq if needs_q else None, dk, dv, dsinks, dmask) if t is not None]


def _parts(gradient: torch.Tensor, heads: int) -> torch.Tensor:
    """Room for what each query head adds to a gradient that a group of them shares: (B, heads, N, D), float32."""
    batch, _, keys, head_dim = gradient.shape
    return gradient.new_empty((batch, heads, keys, head_dim), dtype=torch.float32)


def _bias_parts(mask: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Room for the gradient of each score, cleared, in float32 where it is summed over what a mask is broadcast along."""
    whole = (*q.shape[:3], k.shape[2])
    return mask.new_zeros(whole, dtype=mask.dtype if mask.shape == whole else torch.float32)


_dispatch = define(
    Op(
        schema="(Tensor do, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, Tensor? dlse, bool causal, float? scale, "
        "SymInt? window, Tensor? key_lengths, bool[] needed, float? softcap=None, Tensor? mask=None, "
        "Tensor? alibi_slopes=None, Tensor? sinks=None, Tensor? key_starts=None, Tensor? cu_seqlens_q=None, "
        "Tensor? cu_seqlens_k=None, SymInt? max_seqlen_q=None, SymInt? max_seqlen_k=None, Tensor? cache_lengths=None, "
        "Tensor? block_table=None, SymInt? ahead=None) -> Tensor[]",
        reference=reference.flash_attention_backward,
        public=flash_attention_backward,
        fake=_fake,
        check=_check,
        kernels=generated(_run, _why_not),
        dims=DIMS,
        arguments=backward_arguments,
        shapes=BACKWARD_SHAPES,
        lengths=dict.fromkeys(("do", "q", "k", "v", "o", "lse", "dlse"), slice(2, 3)),
        autocast={"cuda": "keep", "cpu": "keep"},
        multiplies=True,
        flops=lambda do, q, k, v, o, lse, dlse, *others: contract.flops(q, k, v, Scores.split(OP, others)[0], 3, 2),
        shardings=lambda size, do, q, k, v, o, lse, dlse, *others: _shardings(size, q, k, others),
    )
)


def _shardings(size: int, q: torch.Tensor, k: torch.Tensor, others: Sequence[Any]) -> Any:
    scores, needed = Scores.split(OP, others)
    names = [name for name, n in zip(INPUTS, needed, strict=False) if n]
    return contract.shardings(size, q, k, scores, names, ("do", "q", "k", "v", "o", "lse", "dlse"))


# ------------------------------------------------------------------ from the forward op
def _forward(
    dispatch: Any, needed: tuple[bool, ...], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *others: Any
) -> tuple[list[torch.Tensor], tuple[Any, ...]]:
    """The kernel makes the log-sum-exp in any case, and the backward takes it."""
    o, lse = dispatch(q, k, v, *others[:OTHER], True, *others[OTHER + 1 :])
    return [o, lse][: 1 + others[OTHER]], (q, k, v, o, lse, *others)


def _backward(
    saved: tuple[Any, ...], needed: tuple[bool, ...], do: torch.Tensor | None, dlse: torch.Tensor | None = None
) -> list[torch.Tensor]:
    if do is None:
        do = torch.zeros_like(saved[3])
    tensors, others = saved[:5], saved[5:]
    gradients: list[torch.Tensor] = _dispatch(do, *tensors, dlse, *others[:OTHER], needed, *others[OTHER + 1 :])
    return gradients


GRADIENT = Gradient(INPUTS, _forward, _backward)
"""How autograd follows ``flash_attention``."""
