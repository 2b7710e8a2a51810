"""Ugly matrix products: linear layers with activations, and fp8 products with scales."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import hypothesis.strategies as st
import numpy as np
import torch
from numpy.typing import NDArray

from kpt.ops.fp8_matmul.kernels import fp8_matmul_fwd
from kpt.ops.linear_act.activations import ACTIVATIONS
from kpt.ops.linear_act.kernels import linear_act_fwd
from tests.activations import FORMULAS
from tests.generated.arrays import Layout, empty, exact, layouts, or_tidy, place, random
from tests.generated.case import Case, Close
from tests.tolerances import rounding, tolerance

ROWS = Layout((0, 1))
COLUMNS = (1, 0)
_EXTENT = st.sampled_from([1, 2, 7, 16, 31, 37, 64, 65, 128, 130, 199]) | st.integers(1, 150)
_LENGTH = st.sampled_from([1, 3, 16, 32, 37, 64, 96, 199, 256, 760]) | st.integers(1, 300)


ACTIVATION = st.sampled_from(["none", "relu", "gelu", "gelu_tanh", "silu"])
"""Slopes are at most 1.13. The others differ by the formula alone, which is asked for elsewhere (``tests.generated.gates``)."""


def weights(
    seed: int, shape: tuple[int, int], magnitude: float, dtype: str, layout: Layout, transposed: bool
) -> dict[str, Any]:
    """A weight (N, K), or in its place its transpose."""
    values = random(seed, shape, magnitude)
    if transposed:
        return {"weight": None, "weight_t": place(values.T, dtype, layout)}
    return {"weight": place(values, dtype, layout), "weight_t": None}


def weight_of(arguments: Mapping[str, Any]) -> NDArray[np.float64]:
    """The weight (N, K) in float64."""
    weight, weight_t = arguments["weight"], arguments["weight_t"]
    return exact(weight_t).T if weight is None else exact(weight)


@dataclass(frozen=True, kw_only=True)
class LinearAct(Case):
    """``magnitude`` is that of x; weights are about 1 / sqrt(K), as in a network."""

    kernel: ClassVar = linear_act_fwd
    M: int
    N: int
    K: int
    dtype: str = "f16"
    activation: str = "none"
    bias: bool = False
    magnitude: float = 1.0
    x_layout: Layout = ROWS
    weight_layout: Layout = ROWS
    y_layout: Layout = ROWS
    transposed: bool = False

    def arguments(self) -> dict[str, Any]:
        shape, magnitude = (self.N, self.K), 1 / math.sqrt(max(1, self.K))
        return {
            "x": place(random(self.seed, (self.M, self.K), self.magnitude), self.dtype, self.x_layout),
            **weights(self.seed + 1, shape, magnitude, self.dtype, self.weight_layout, self.transposed),
            "bias": place(random(self.seed + 2, (self.N,)), self.dtype, Layout((0,))) if self.bias else None,
            "y": empty((self.M, self.N), self.dtype, self.y_layout),
            "activation": ACTIVATIONS[self.activation],
        }

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        x, weight = exact(arguments["x"]), weight_of(arguments)
        bias = exact(arguments["bias"]) if self.bias else np.zeros(self.N)
        y = FORMULAS[self.activation](torch.from_numpy(x @ weight.T + bias)).numpy()
        terms = np.sqrt((x * x) @ (weight * weight).T) + np.abs(bias)
        return {"y": Close(y, rounding(self.dtype, y) + 2 * tolerance("f32", self.K) * terms)}


@st.composite
def linear_act(draw: st.DrawFn) -> LinearAct:
    """Cases of all dtypes, activations and layouts, small enough for an interpreter."""
    dtype = draw(st.sampled_from(["f32", "f16", "bf16"]))
    extent, length = or_tidy(draw, _EXTENT), or_tidy(draw, _LENGTH)
    return LinearAct(
        M=draw(extent), N=draw(extent), K=draw(length), dtype=dtype,
        activation=draw(ACTIVATION),
        bias=draw(st.booleans()),
        magnitude=draw(st.sampled_from([1.0, 1.0, 1e-3, 1e3 if dtype == "f16" else 1e15])),
        x_layout=draw(layouts(2, COLUMNS)), weight_layout=draw(layouts(2, COLUMNS)), y_layout=draw(layouts(2, COLUMNS)),
        transposed=draw(st.booleans()), seed=draw(st.integers(0, 1 << 20)),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Fp8Matmul(Case):
    """``by_row``: row-wise scales, else one number seen through stride 0, as the op passes it."""

    kernel: ClassVar = fp8_matmul_fwd
    M: int
    N: int
    K: int
    a_dtype: str = "f8e4m3"
    b_dtype: str = "f8e4m3"
    out: str = "bf16"
    by_row: bool = False
    bias: bool = False
    magnitude: float = 1.0
    a_layout: Layout = ROWS
    b_layout: Layout = ROWS
    y_layout: Layout = ROWS

    def arguments(self) -> dict[str, Any]:
        return {
            "a": place(random(self.seed, (self.M, self.K), self.magnitude), self.a_dtype, self.a_layout),
            "b": place(random(self.seed + 1, (self.N, self.K), self.magnitude), self.b_dtype, self.b_layout),
            "scale_a": self._scale(self.M, self.seed + 2),
            "scale_b": self._scale(self.N, self.seed + 3),
            "bias": place(random(self.seed + 4, (self.N,)), self.out, Layout((0,))) if self.bias else None,
            "y": empty((self.M, self.N), self.out, self.y_layout),
        }

    def _scale(self, extent: int, seed: int) -> torch.Tensor:
        count = extent if self.by_row else 1
        scale = place(np.abs(random(seed, (count,))) * 0.1 + 0.01, "f32", Layout((0,)))
        return scale if self.by_row else scale.expand(extent)

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        a = exact(arguments["a"]) * exact(arguments["scale_a"])[:, None]
        b = exact(arguments["b"]) * exact(arguments["scale_b"])[:, None]
        bias = exact(arguments["bias"]) if self.bias else np.zeros(self.N)
        y = a @ b.T + bias
        terms = np.sqrt((a * a) @ (b * b).T) + np.abs(bias)
        # The fp8 units of a Hopper GPU keep 14 bits of a sum: as many as "tf32" allows for.
        sums = tolerance("tf32" if cuda else "f32", self.K)
        return {"y": Close(y, rounding(self.out, y) + 2 * sums * terms)}


@st.composite
def fp8_matmul(draw: st.DrawFn) -> Fp8Matmul:
    """Cases of both fp8 types, in any mix that PyTorch has, all scales and outputs."""
    a_dtype, b_dtype = draw(st.sampled_from([("f8e4m3", "f8e4m3"), ("f8e4m3", "f8e5m2"), ("f8e5m2", "f8e4m3")]))
    extent, length = or_tidy(draw, _EXTENT), or_tidy(draw, _LENGTH)
    return Fp8Matmul(
        M=draw(extent), N=draw(extent), K=draw(length), a_dtype=a_dtype, b_dtype=b_dtype,
        out=draw(st.sampled_from(["bf16", "f16", "f32"])),
        by_row=draw(st.booleans()), bias=draw(st.booleans()),
        magnitude=draw(st.sampled_from([1.0, 1.0, 0.01, 20.0])),
        a_layout=draw(layouts(2, COLUMNS)), b_layout=draw(layouts(2, COLUMNS)), y_layout=draw(layouts(2, COLUMNS)),
        seed=draw(st.integers(0, 1 << 20)),
    )  # fmt: skip


ALWAYS_LINEAR = (
    LinearAct(M=1, N=1, K=1, bias=True, activation="gelu"),
    LinearAct(M=0, N=5, K=7),
    LinearAct(M=5, N=0, K=7, bias=True),
    LinearAct(M=5, N=7, K=0, bias=True, activation="silu"),  # what is left is the bias
    LinearAct(M=37, N=199, K=760, dtype="bf16", activation="gelu_tanh", bias=True),
    LinearAct(M=64, N=64, K=64, dtype="f32", activation="relu", weight_layout=Layout(COLUMNS)),
    LinearAct(M=64, N=128, K=64, bias=True, transposed=True),
)
ALWAYS_FP8 = (
    Fp8Matmul(M=1, N=1, K=1),
    Fp8Matmul(M=0, N=5, K=16),
    Fp8Matmul(M=5, N=0, K=16, by_row=True),
    Fp8Matmul(M=5, N=7, K=0, bias=True),
    Fp8Matmul(M=199, N=37, K=760, by_row=True, bias=True, out="f32"),
    Fp8Matmul(M=64, N=128, K=128, b_dtype="f8e5m2", magnitude=20.0),
)
"""Cases that every run has."""
