"""Attention in bfloat16 as TPUs compute it, interpreted: all kernels scale and round queries alike, so that gradients are those
of what the forward computed, however large the scores."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

import kpt.ops
from tests.tolerances import as_float64, tolerance

jax = pytest.importorskip("jax")

import kpt.jax  # noqa: E402

SCALE = 128**-0.5
DEVIATION = 10.0
"""Standard deviation of the scores: rounding shows in exponents."""

CASES: Mapping[str, tuple[int, int, dict[str, Any]]] = {
    "all keys": (256, 256, {}),
    "some": (100, 300, {"causal": True, "window": 150}),
    "few queries": (3, 1024, {"causal": True}),
    "capped": (100, 300, {"softcap": 25.0, "alibi_slopes": np.float32([0.01, 0.1]), "sinks": np.float32([3.0, -3.0])}),
    "biased": (100, 300, {"mask": np.sin(np.arange(300, dtype=np.float32))}),
}
"""Queries, keys, and what scores have besides."""


def drawn(*shapes: tuple[int, ...]) -> list[Any]:
    rng = np.random.default_rng(0)
    return [jax.numpy.asarray(rng.normal(size=shape), "bfloat16") for shape in shapes]


def in_float64(q: Any, k: Any, v: Any, do: Any, options: Mapping[str, Any]) -> list[torch.Tensor]:
    """The output, and the gradients of q, k and v, by PyTorch."""
    tensors = [torch.tensor(as_float64(x), requires_grad=True) for x in (q, k, v)]
    others = {name: torch.tensor(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
    out = kpt.ops.flash_attention(*tensors, scale=SCALE, **others)
    return [out.detach(), *torch.autograd.grad(out, tensors, torch.tensor(as_float64(do)))]


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_forwards_queries(case: str) -> None:
    queries, keys, options = CASES[case]
    q, k, v, do = drawn((1, 2, queries, 128), (1, 1, keys, 128), (1, 1, keys, 128), (1, 2, queries, 128))
    q = q * DEVIATION

    def attend(q: Any, k: Any, v: Any) -> Any:
        return kpt.jax.flash_attention(q, k, v, scale=SCALE, **options)

    @jax.jit
    def run(q: Any, k: Any, v: Any) -> tuple[Any, ...]:
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(do)

    with kpt.jax.prefer("pallas"):
        found = run(q, k, v)
    factor = np.float32(SCALE) * np.float32(math.log2(math.e))
    rounded = (q.astype("float32") * factor).astype("bfloat16").astype("float32") / factor
    # By norm. Of the rounded queries half of it: nothing is left but what all kernels round, weights and results.
    for of, allowed in ((q, tolerance("bf16")), (rounded, tolerance("bf16") / 2)):
        wanted = in_float64(of, k, v, do, options)
        for name, got, right in zip(("o", "dq", "dk", "dv"), map(as_float64, found), map(as_float64, wanted), strict=True):
            off = np.linalg.norm(got - right) / np.linalg.norm(right)
            assert off <= allowed, f"{name} is off by {off:.2%}"
