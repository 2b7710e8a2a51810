"""The attention op: public function, checks, and the kernel call behind it."""

from functools import partial
from typing import Any

import torch

from kpt.ops import checks
from kpt.ops.backends import Launch, kernel_implementations, record, unit_last_stride
from kpt.ops.flash_attention import contract, decoding, reference
from kpt.ops.flash_attention.backward import GRADIENT
from kpt.ops.flash_attention.kernels import flash_attention_fwd
from kpt.ops.flash_attention.shapes import DIMS, SHAPES, arguments
from kpt.ops.library import define
from kpt.ops.registry import Op


def flash_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    key_lengths: torch.Tensor | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention, ``softmax(scale * q @ k.T + mask) @ v``, without the score matrix in memory.

    ``q``: (B, H, M, D); ``k``: (B, G, N, D) with H a multiple of G (query head h reads head h // (H // G)); ``v``:
    (B, G, N, E); float16, bfloat16, float32 or float64, all alike, any strides (a transposed (B, M, H, D) is not copied). Query
    i stands at key position i + N - M, so that the last query meets the last key. ``causal``: it sees no key ahead of it.
    ``window``: it sees keys less than ``window`` positions away. ``key_lengths``: (B,) int32, batch entry b has only its first
    key_lengths[b] keys (right padding); positions still count from N. ``scale``: 1 / sqrt(D) unless given.

    Gives o, (B, H, M, E) in the memory order of q; with ``return_lse`` also the natural log-sum-exp of the scaled scores,
    (B, H, M), float32 (float64 for float64). A query that sees no key gets zeros, and -inf. Raises InputError for arguments
    that do not fit. Dao 2023, arXiv:2307.08691.
    """
    outputs = _dispatch(q, k, v, causal, scale, window, key_lengths, return_lse)
    return (outputs[0], outputs[1]) if return_lse else outputs[0]


def _check(q: Any, k: Any, v: Any, causal: Any, scale: Any, window: Any, key_lengths: Any, return_lse: Any) -> None:
    contract.check("flash_attention", q, k, v, causal, scale, window, key_lengths)
    checks.flag("flash_attention", "return_lse", return_lse)


def _fake(
    q: torch.Tensor, k: Any, v: torch.Tensor, causal: bool, scale: Any, window: Any, key_lengths: Any, return_lse: bool
) -> list[torch.Tensor]:
    o = reference.empty_output(q, v)
    return [o, q.new_empty(q.shape[:3], dtype=contract.lse_dtype(q.dtype))] if return_lse else [o]


def _why_not(q: torch.Tensor, k: Any, v: torch.Tensor, causal: Any, scale: float | None, *_: Any) -> str | None:
    return contract.why_not(q, v, scale)


def _run(
    launch: Launch,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool,
    scale: float | None,
    window: int | None,
    key_lengths: torch.Tensor | None,
    return_lse: bool,
) -> list[torch.Tensor]:
    o = reference.empty_output(q, v)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    q, factor = contract.positive(q, scale)
    q, k, v = (t if t.stride(3) == 1 else unit_last_stride(t) for t in (q, k, v))
    given = (q, k, v, key_lengths, o, lse, factor, contract.window_of(q, k, window), causal)
    parts = decoding.part_count(q, k)

    def in_parts(launch: Launch) -> None:
        """Programs share out the keys."""
        decoding.attend(launch, *given, parts)

    def in_twice_as_many(launch: Launch) -> None:
        decoding.attend(launch, *given, 2 * parts)

    def whole(launch: Launch) -> None:
        """Each program sees all keys of its queries."""
        launch(flash_attention_fwd, *given)

    if parts:
        launch.quickest(in_parts, in_twice_as_many, whole)
    else:
        whole(launch)
    return [o, lse] if return_lse else [o]


_dispatch = define(
    Op(
        name="flash_attention",
        schema="(Tensor q, Tensor k, Tensor v, bool causal, float? scale, SymInt? window, Tensor? key_lengths, bool return_lse)"
        " -> Tensor[]",
        reference=reference.flash_attention,
        public=flash_attention,
        fake=_fake,
        check=_check,
        kernels=kernel_implementations(_run, _why_not),
        dims=DIMS,
        arguments=arguments,
        record=partial(record, _run),
        shapes=SHAPES,
        autocast={"cuda": "lower", "cpu": "lower"},
        gradient=GRADIENT,
        multiplies=True,
        flops=lambda q, k, v, *_: contract.flops(q, k, v, 1, 1),
        shardings=lambda size, q, k, *_: contract.shardings(size, q, k, 2, (True,) * 3 + (False,) * 5),
    )
)
