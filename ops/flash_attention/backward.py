"""The gradients of attention: an op of its own, and how autograd gets from the forward op to it."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from kpt.ops import checks
from kpt.ops.backends import Launch, kernel_implementations, record, unit_last_stride
from kpt.ops.flash_attention import contract, reference
from kpt.ops.flash_attention.backward_kernels import (
    flash_attention_dkdv,
    flash_attention_dq,
    flash_attention_group_sum,
    flash_attention_rows,
    flash_attention_scale,
)
from kpt.ops.flash_attention.shapes import BACKWARD_SHAPES, DIMS, backward_arguments
from kpt.ops.library import define
from kpt.ops.registry import Gradient, Op

OP = "flash_attention_backward"


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
    window: int | None = None,
    key_lengths: torch.Tensor | None = None,
    needed: Sequence[bool] = (True, True, True),
) -> list[torch.Tensor]:
    """The gradients of q, k and v, those that are ``needed`` (one bool for each), in this order.

    ``do``, (B, H, M, E), and ``dlse``, (B, H, M) or None, are the gradients of what ``flash_attention`` gave, ``o`` and
    ``lse``; the other arguments are its. Each gradient has the dtype and the memory order of its input. Two runs give the same
    bits, unless all three are needed and to add up dq in any order was measured to be quicker on this device; under
    ``torch.use_deterministic_algorithms(True)`` they always do. Raises InputError for arguments that do not fit. Dao 2023,
    arXiv:2307.08691.
    """
    gradients: list[torch.Tensor] = _dispatch(do, q, k, v, o, lse, dlse, causal, scale, window, key_lengths, needed)
    return gradients


def _check(
    do: Any, q: Any, k: Any, v: Any, o: Any, lse: Any, dlse: Any, causal: Any, scale: Any, window: Any, key_lengths: Any,
    needed: Any,
) -> None:  # fmt: skip
    contract.check(OP, q, k, v, causal, scale, window, key_lengths)
    rows, wide = q.shape[:3], contract.lse_dtype(q.dtype)
    for name, value in (("do", do), ("o", o)):
        checks.shape(OP, name, value, (*rows, v.shape[3]), "(batch, heads, queries, head dim of v)")
        checks.same_dtype(OP, "q", q, **{name: value})
    for name, value in (("dlse", dlse), ("lse", lse)):
        if value is not None or name == "lse":
            checks.shape(OP, name, value, rows, "(batch, heads, queries)")
            checks.dtype(OP, name, value.dtype, (wide,))
    checks.same_device(OP, "q", q, do=do, dlse=dlse, o=o, lse=lse)
    if len(needed) != 3 or not all(isinstance(n, bool) for n in needed):
        checks.reject(OP, "needed", repr(needed), "three bools, for q, k and v")


def _fake(
    do: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, o: Any, lse: Any, dlse: Any, causal: Any, scale: Any,
    window: Any, key_lengths: Any, needed: Sequence[bool],
) -> list[torch.Tensor]:  # fmt: skip
    return [reference.empty_like(t) for t, n in zip((q, k, v), needed, strict=True) if n]


def _why_not(
    do: Any, q: torch.Tensor, k: Any, v: torch.Tensor, o: Any, lse: Any, dlse: Any, causal: Any, scale: float | None, *_: Any
) -> str | None:
    return contract.why_not(q, v, scale)


def _run(
    launch: Launch, do: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, o: torch.Tensor,
    lse: torch.Tensor, dlse: torch.Tensor | None, causal: bool, scale: float | None, window: int | None,
    key_lengths: torch.Tensor | None, needed: Sequence[bool],
) -> list[torch.Tensor]:  # fmt: skip
    if not any(needed):
        return []
    dq, dk, dv = (reference.empty_like(t) if n else None for t, n in zip((q, k, v), needed, strict=True))
    factor, (q, scale) = contract.scale_of(q, scale), contract.positive(q, scale)
    q, k, v, o, do = (t if t.stride(3) == 1 else unit_last_stride(t) for t in (q, k, v, o, do))
    delta, shift = (torch.empty_like(lse, memory_format=torch.contiguous_format) for _ in range(2))
    takes_delta = dq is not None or dk is not None
    shared = q.shape[1] != k.shape[1]
    parts = [_parts(t, q.shape[1]) if t is not None and shared else t for t in (dk, dv)]
    flags = (scale, contract.window_of(q, k, window), causal)

    def apart(launch: Launch) -> None:
        """A kernel for dq and one for dk and dv: seven products."""
        given = (o, do, lse, dlse, delta) if takes_delta else (None, None, lse, None, None)
        launch(flash_attention_rows, *given, shift, None)
        if dq is not None:
            launch(flash_attention_dq, q, k, v, do, delta, shift, key_lengths, dq, *flags)
        if dk is not None or dv is not None:
            mine = delta if dk is not None else None
            launch(flash_attention_dkdv, q, k, v, do, mine, shift, key_lengths, *parts, None, *flags)

    def together(launch: Launch) -> None:
        """One kernel for all three, whose programs add to dq in any order: five products."""
        dq_sum = q.new_empty(q.shape, dtype=torch.float32)
        launch(flash_attention_rows, o, do, lse, dlse, delta, shift, dq_sum)
        launch(flash_attention_dkdv, q, k, v, do, delta, shift, key_lengths, *parts, dq_sum, *flags)
        launch(flash_attention_scale, dq_sum, dq, scale)

    if all(needed) and not torch.are_deterministic_algorithms_enabled():
        launch.quickest(apart, together)
    else:
        launch.quickest(apart)
    if shared and (dk is not None or dv is not None):
        grouped = (None if p is None else p.unflatten(1, (k.shape[1], -1)) for p in parts)
        launch(flash_attention_group_sum, *grouped, dk, dv)
    if dq is not None and scale != factor:  # it is the gradient of the queries that were scaled before
        dq *= factor
    return [t for t in (dq, dk, dv) if t is not None]


def _parts(gradient: torch.Tensor, heads: int) -> torch.Tensor:
    """Room for what each query head adds to a gradient that a group of them shares: (B, heads, N, D), float32."""
    batch, _, keys, head_dim = gradient.shape
    return gradient.new_empty((batch, heads, keys, head_dim), dtype=torch.float32)


_dispatch = define(
    Op(
        name=OP,
        schema="(Tensor do, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, Tensor? dlse, bool causal, float? scale, "
        "SymInt? window, Tensor? key_lengths, bool[] needed) -> Tensor[]",
        reference=reference.flash_attention_backward,
        public=flash_attention_backward,
        fake=_fake,
        check=_check,
        kernels=kernel_implementations(_run, _why_not),
        dims=DIMS,
        arguments=backward_arguments,
        record=partial(record, _run),
        shapes=BACKWARD_SHAPES,
        autocast={"cuda": "keep", "cpu": "keep"},
        multiplies=True,
        flops=lambda do, q, k, v, *_: contract.flops(q, k, v, 3, 2),
        shardings=lambda size, do, q, k, *_: contract.shardings(size, q, k, 3, (True,) * 7 + (False,) * 5),
    )
)


# ------------------------------------------------------------------ from the forward op
def _forward(
    dispatch: Any, needed: tuple[bool, ...], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool,
    scale: float | None, window: int | None, key_lengths: torch.Tensor | None, return_lse: bool,
) -> tuple[list[torch.Tensor], tuple[Any, ...]]:  # fmt: skip
    """The kernel makes the log-sum-exp in any case, and the backward takes it."""
    o, lse = dispatch(q, k, v, causal, scale, window, key_lengths, True)
    return [o, lse][: 1 + return_lse], (q, k, v, o, lse, causal, scale, window, key_lengths)


def _backward(
    saved: tuple[Any, ...], needed: tuple[bool, ...], do: torch.Tensor | None, dlse: torch.Tensor | None = None
) -> list[torch.Tensor]:
    if do is None:
        do = torch.zeros_like(saved[3])
    gradients: list[torch.Tensor] = _dispatch(do, *saved[:5], dlse, *saved[5:], needed)
    return gradients


GRADIENT = Gradient(("q", "k", "v"), _forward, _backward)
"""How autograd follows ``flash_attention``."""
