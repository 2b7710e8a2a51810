"""The attention op: public function, checks, and the kernel call behind it."""

from typing import Any

import torch

from kpt.ops import checks
from kpt.ops.backends import Launch, generated, unit_last_stride
from kpt.ops.flash_attention import contract, decoding, packed, reference
from kpt.ops.flash_attention.backward import GRADIENT
from kpt.ops.flash_attention.kernels import flash_attention_fwd
from kpt.ops.flash_attention.pages import keys_of
from kpt.ops.flash_attention.scores import Scores, Window, sides
from kpt.ops.flash_attention.shapes import DIMS, SHAPES, arguments
from kpt.ops.library import define
from kpt.ops.registry import Op

OP = "flash_attention"


def flash_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: Window = None,
    key_lengths: torch.Tensor | None = None,
    return_lse: bool = False,
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
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention, ``softmax(scale * q @ k.T + mask) @ v``, without the score matrix in memory.

    ``q``: (B, H, M, D); ``k``: (B, G, N, D) with H a multiple of G (query head h reads head h // (H // G)); ``v``:
    (B, G, N, E); float16, bfloat16, float32 or float64, all alike, any strides (a transposed (B, M, H, D) is not copied). Query
    i stands at key position i + N - M, so that the last query meets the last key.

    Which keys a query sees: ``causal``: none ahead of it. ``window``: those less than ``window`` positions away, or, of a pair
    (behind, ahead), at most so many positions away, -1 for no limit. ``key_lengths``, ``key_starts``: (B,) int32, or int64 of
    numbers that fit it: batch entry b has only the keys from key_starts[b] (left padding) up to key_lengths[b] (right
    padding); positions still count from N. ``cache_lengths``, in place of key_lengths: such lengths, where the last query of
    entry b stands at the last of its own keys, cache_lengths[b] - 1, and N is only what there is room for. ``mask``: what
    broadcasts to (B, H, M, N), of bools (True: seen) or added to the scores, where -2.4e38 and less hides.

    ``block_table``, (B, W) int32, with cache_lengths: keys lie in pages, ``k`` (pages, page size, G, D) and ``v`` (pages, page
    size, G, E), and key j of entry b is k[block_table[b, j // page size], j % page size]; N is W times the page size, which may
    be any. What the table holds behind an entry's length is not looked at. Gradients of pages are PyTorch's.

    What becomes of scores, in this order: ``scale``, 1 / sqrt(D) unless given; ``softcap``: cap * tanh(score / cap);
    ``alibi_slopes``: (H,) or (B, H) float32, less the slope times the distance in positions; ``mask``. ``sinks``: (H,), of any
    floating dtype, one more score of each head, of a key that has no value.

    Packed: with ``cu_seqlens_q``, (B + 1,) int32 or int64 on the device, ``q`` is (T, H, D), ``k`` (S, G, D), ``v`` (S, G, E),
    o (T, H, E) and its log-sum-exp (H, T), as flash-attn has them. Entry b, of the queries from cu_seqlens_q[b] up to
    cu_seqlens_q[b + 1] and the keys from cu_seqlens_k[b] up to cu_seqlens_k[b + 1] (unless given, where its queries are), is
    what a batch entry of these alone would be. Rows before the first entry and behind the last one see no key. There is no
    key_lengths, key_starts or mask then. ``max_seqlen_q`` and ``max_seqlen_k`` are taken for flash-attn's sake, and not used.

    Gives o, (B, H, M, E) in the memory order of q; with ``return_lse`` also the natural log-sum-exp of the scores, (B, H, M),
    float32 (float64 for float64). A query that sees no key gets zeros, and -inf or its sink. There are gradients of q, k, v,
    sinks and a mask that is added. Raises InputError for arguments that do not fit, and on CPUs and within
    ``kpt_dsl.checking()`` IndexRangeError, one of these, for ``cu_seqlens`` that descend. Dao 2023, arXiv:2307.08691.
    """
    window, ahead = sides(OP, window)
    outputs = _dispatch(
        q, k, v, causal, scale, window, key_lengths, return_lse, softcap, mask, alibi_slopes, sinks, key_starts,
        cu_seqlens_q, cu_seqlens_k, None, None, cache_lengths, block_table, ahead,
    )  # fmt: skip
    return (outputs[0], outputs[1]) if return_lse else outputs[0]


def _check(q: Any, k: Any, v: Any, *others: Any) -> None:
    scores, return_lse = Scores.split(OP, others)
    contract.check(OP, q, k, v, scores)
    checks.flag(OP, "return_lse", return_lse)


def _fake(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *others: Any) -> list[torch.Tensor]:
    _, return_lse = Scores.split(OP, others)
    o = reference.empty_output(q, v)
    return [o, q.new_empty(contract.lse_shape(q), dtype=contract.lse_dtype(q.dtype))] if return_lse else [o]


def _why_not(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *others: Any) -> str | None:
    return contract.why_not(q, v, Scores.split(OP, others)[0])


def _run(launch: Launch, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *others: Any) -> list[torch.Tensor]:
    scores, return_lse = Scores.split(OP, others)
    outputs = [reference.empty_output(q, v), q.new_empty(contract.lse_shape(q), dtype=torch.float32)]
    o, lse = outputs
    ends = packed.ends(launch, OP, q, k, scores)
    if scores.cu_seqlens_q is not None:
        q, k, v, o, lse = map(packed.batched, (q, k, v, o, lse))
    q, factor = scores.positive(q)
    q, k, v = (t if t.stride(3) == 1 else unit_last_stride(t) for t in (q, k, v))
    given, keys = (q, k, v, o, lse), keys_of(k, v, scores.block_table)
    parts = decoding.part_count(q, keys.like, scores)

    def in_parts(launch: Launch) -> None:
        """Programs share out the keys."""
        decoding.attend(launch, *given, scores, factor, parts)

    def in_twice_as_many(launch: Launch) -> None:
        decoding.attend(launch, *given, scores, factor, 2 * parts)

    def whole(launch: Launch) -> None:
        """Each program sees all keys of its queries."""
        last = *scores.of_kernels(q, keys.like, factor), scores.sinks, *ends.queries
        launch(flash_attention_fwd, q, *keys.whole, scores.lengths, o, lse, *last, *keys.pages)

    if parts:
        launch.quickest(in_parts, in_twice_as_many, whole)
    else:
        whole(launch)
    return outputs[: 1 + return_lse]


_dispatch = define(
    Op(
        schema="(Tensor q, Tensor k, Tensor v, bool causal, float? scale, SymInt? window, Tensor? key_lengths, bool return_lse"
        ", float? softcap=None, Tensor? mask=None, Tensor? alibi_slopes=None, Tensor? sinks=None, Tensor? key_starts=None, "
        "Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, SymInt? max_seqlen_q=None, SymInt? max_seqlen_k=None, "
        "Tensor? cache_lengths=None, Tensor? block_table=None, SymInt? ahead=None) -> Tensor[]",
        reference=reference.flash_attention,
        public=flash_attention,
        fake=_fake,
        check=_check,
        kernels=generated(_run, _why_not),
        dims=DIMS,
        arguments=arguments,
        shapes=SHAPES,
        autocast={"cuda": "lower", "cpu": "lower"},
        precise=("alibi_slopes", "sinks"),
        gradient=GRADIENT,
        multiplies=True,
        lengths={"q": slice(2, 3), "k": slice(2, 3), "v": slice(2, 3)},
        flops=lambda q, k, v, *others: contract.flops(q, k, v, Scores.split(OP, others)[0], 1, 1),
        shardings=lambda size, q, k, v, *others: contract.shardings(
            size, q, k, Scores.split(OP, others)[0], ("o", "lse"), ("q", "k", "v")
        ),
        opaque=lambda q, k, v, *others: packed.is_traced(Scores.split(OP, others)[0]),
    )
)
