"""Attention over a cache: queries that stand at each batch entry's own end, on every backend against plain loops in float64."""

from functools import cache
from typing import Any

import pytest
import torch
from torch.library import opcheck

import kpt
from kpt.ops import explain, flash_attention, prefer
from kpt.ops.flash_attention.backward import flash_attention_backward
from tests.ops import naive
from tests.ops.calls import arguments, through_torch
from tests.tolerances import assert_close

BACKENDS = ("reference", "numpy", "triton", "pallas")
CAPACITY = 200
LENGTHS = torch.tensor([1, 37, 199, CAPACITY + 3], dtype=torch.int32)
"""Fewer keys than queries, none that is level with a tile, and more than there is room for, which counts as all."""


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


OPTIONS: dict[str, dict[str, Any]] = {
    "causal": {"causal": True},
    "not causal": {},
    "window": {"window": 19, "causal": True},
    "sides": {"window": (30, 2)},
    "left padding": {"causal": True, "key_starts": torch.tensor([0, 5, 40, 199])},
    "cap and sinks": {"causal": True, "softcap": 1.5, "sinks": randn(2)},
    "alibi": {"causal": True, "alibi_slopes": randn(2).abs()},
}


def call(queries: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return randn(4, 2, queries, 24), randn(4, 1, CAPACITY, 24), randn(4, 1, CAPACITY, 16)


@cache
def exact(options: str, queries: int) -> tuple[torch.Tensor, torch.Tensor]:
    return naive.attention(*call(queries), cache_lengths=LENGTHS.tolist(), **OPTIONS[options])


SLOW = ("triton", "pallas")
"""Interpreters, which see a few of the options."""


@pytest.mark.parametrize(
    ("backend", "options", "queries"),
    [
        (backend, options, queries)
        for queries in (1, 5, 40)
        for options in OPTIONS
        for backend in BACKENDS
        if backend not in SLOW or options in (("window",) if queries == 1 else ("causal", "sides", "alibi"))
    ],
)
def test_queries_stand_at_each_entrys_own_end(backend: Any, options: str, queries: int) -> None:
    given = OPTIONS[options] | {"cache_lengths": LENGTHS}
    (q, k, v), (wanted, wanted_lse) = call(queries), exact(options, queries)
    for b, length in enumerate(LENGTHS):
        k[b, :, length:], v[b, :, length:] = float("nan"), float("inf")  # memory that nobody has written
    with prefer(backend):
        o, lse = flash_attention(q, k, v, return_lse=True, **given)
    assert_close(o, wanted, "f32", CAPACITY)
    assert torch.equal(lse.isinf(), wanted_lse.isinf())
    assert_close(lse[lse.isfinite()], wanted_lse[lse.isfinite()], "f32", CAPACITY)


@pytest.mark.parametrize("options", ["causal", "sides", "alibi"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_at_each_entrys_own_end(backend: Any, options: str) -> None:
    given = OPTIONS[options] | {"cache_lengths": torch.tensor([7, 37, 70])}
    q, k, v = (t.requires_grad_() for t in (randn(3, 2, 21, 16), randn(3, 1, 70, 16), randn(3, 1, 70, 16)))
    do, dlse = randn(3, 2, 21, 16), randn(3, 2, 21)
    with prefer(backend):
        o, lse = flash_attention(q, k, v, return_lse=True, **given)
        found = torch.autograd.grad((o, lse), (q, k, v), (do, dlse))
    exact = [t.detach().double().requires_grad_() for t in (q, k, v)]
    o, lse = naive.attention(*exact, **given)
    for got, want in zip(found, torch.autograd.grad((o * do).sum() + (lse * dlse)[lse.isfinite()].sum(), exact), strict=True):
        assert_close(got, want, "f32", 70)


@pytest.mark.parametrize("op", ["flash_attention", "flash_attention_backward"])
def test_opcheck(op: str) -> None:
    given = tuple(list(a) if isinstance(a, tuple) else a for a in arguments(op, cache_lengths=True, causal=True))
    opcheck(through_torch(op), given)


def test_lengths_that_exclude_each_other_are_named() -> None:
    q, lengths = torch.zeros(2, 2, 5, 16), torch.ones(2, dtype=torch.int32)
    calls = (
        lambda: flash_attention(q, q, q, key_lengths=lengths, cache_lengths=lengths),
        lambda: flash_attention_backward(q, q, q, q, q, q[..., 0], key_lengths=lengths, cache_lengths=lengths),
    )
    for call in calls:
        with pytest.raises(kpt.InputError, match="cache_lengths is given; accepted: one of key_lengths and cache_lengths"):
            call()
    with pytest.raises(kpt.InputError, match=r"cache_lengths is of shape \(1,\)"):
        flash_attention(q, q, q, cache_lengths=lengths[:1])
    with pytest.raises(kpt.InputError, match=r"cache_lengths is of dtype torch\.int16"):
        flash_attention(q, q, q, cache_lengths=lengths.short())


def test_lengths_are_read_on_the_device() -> None:
    """Other lengths make no other kernel, so that a CUDA graph follows them."""
    q, k = randn(2, 2, 5, 16), randn(2, 2, 50, 16)
    with prefer("numpy"):
        texts = {
            explain("flash_attention", q, k, k, causal=True, cache_lengths=torch.tensor(lengths)).kernels[0].binary
            for lengths in ([1, 50], [33, 2])
        }
    assert len(texts) == 1
