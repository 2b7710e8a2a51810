"""Ugly cases of the kernels that train a linear layer with an activation: what its forward saves, and its gradients."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import hypothesis.strategies as st
import numpy as np
import torch

from kpt.ops.linear_act.activations import BACKWARD, FLAT
from kpt.ops.linear_act.backward_kernels import (
    linear_act_bwd_dw,
    linear_act_bwd_dx,
    linear_act_bwd_dz,
    linear_act_bwd_dz_recomputing,
    linear_act_bwd_dz_sums,
    linear_act_fwd_saving,
)
from tests.activations import slope
from tests.generated.arrays import Layout, empty, exact, layouts, or_tidy, place, random
from tests.generated.case import Array, Case, Close
from tests.generated.products import COLUMNS, ROWS, LinearAct, linear_act, weight_of, weights
from tests.tolerances import rounding, tolerance

_EXTENT = st.sampled_from([1, 2, 7, 16, 31, 37, 64, 65, 128, 130, 199]) | st.integers(1, 150)
_LENGTH = st.sampled_from([1, 3, 16, 32, 37, 64, 96, 199, 256, 760]) | st.integers(1, 300)

ACTIVATION = st.sampled_from(["relu", "gelu", "gelu_tanh", "silu"])
CURVATURE = 1.0
"""Largest second derivative of the smooth activations (gelu's is 0.8 at zero): how a slope passes an error of z on."""


@dataclass(frozen=True, kw_only=True)
class Saving(LinearAct):
    """``linear_act``'s cases, with the pre-activation as a second output."""

    kernel: ClassVar = linear_act_fwd_saving

    def arguments(self) -> dict[str, Any]:
        given = super().arguments()
        return given | {"z": empty((self.M, self.N), self.dtype, self.y_layout)}

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        x, weight = exact(arguments["x"]), weight_of(arguments)
        bias = exact(arguments["bias"]) if self.bias else np.zeros(self.N)
        z = x @ weight.T + bias
        terms = np.sqrt((x * x) @ (weight * weight).T) + np.abs(bias)
        held = np.clip(z, -FLAT, FLAT) if self.dtype == "f16" else z
        saved = Close(held, rounding(self.dtype, held) + tolerance("f32", self.K) * terms)
        return {**super().expected(arguments, cuda), "z": saved}


@dataclass(frozen=True, kw_only=True)
class Pointwise(Case):
    """``magnitude`` is that of z; the largest reach far beyond where activations bend."""

    kernel: ClassVar = linear_act_bwd_dz
    M: int
    N: int
    dtype: str = "f16"
    activation: str = "gelu"
    magnitude: float = 1.0
    dy_layout: Layout = ROWS
    z_layout: Layout = ROWS

    def arguments(self) -> dict[str, Any]:
        shape = (self.M, self.N)
        return {
            "dy": place(random(self.seed, shape), self.dtype, self.dy_layout),
            "z": place(random(self.seed + 1, shape, self.magnitude), self.dtype, self.z_layout),
            "dz": empty(shape, self.dtype, ROWS),
            "gradient": BACKWARD[self.activation],
        }

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        dy = exact(arguments["dy"])
        dz = dy * slope(self.activation, arguments["z"]).numpy()
        return {"dz": Close(dz, rounding(self.dtype, dz) + tolerance("f32") * np.abs(dy))}


@dataclass(frozen=True, kw_only=True)
class WithSums(Pointwise):
    """With sums of dz's columns over P shares of its rows, 8 or more each (a TPU's rows of registers), as the op has them."""

    kernel: ClassVar = linear_act_bwd_dz_sums
    P: int = 3

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"partial": empty((self.P, self.N), "f32", ROWS)}

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        dy = exact(arguments["dy"])
        dz = dy * slope(self.activation, arguments["z"]).numpy()
        terms = np.sqrt((dy * dy).sum(0))
        sums = Close(dz.sum(0), 2 * tolerance("f32", self.M) * terms, summed=0)
        return {**super().expected(arguments, cuda), "partial": sums}


@dataclass(frozen=True, kw_only=True)
class Recomputing(Case):
    """dz from x, weight and bias."""

    kernel: ClassVar = linear_act_bwd_dz_recomputing
    M: int
    N: int
    K: int
    dtype: str = "f16"
    activation: str = "gelu"
    bias: bool = False
    x_layout: Layout = ROWS
    weight_layout: Layout = ROWS
    dy_layout: Layout = ROWS
    transposed: bool = False

    def arguments(self) -> dict[str, Any]:
        shape, magnitude = (self.N, self.K), 1 / math.sqrt(max(1, self.K))
        return {
            "x": place(random(self.seed, (self.M, self.K)), self.dtype, self.x_layout),
            **weights(self.seed + 1, shape, magnitude, self.dtype, self.weight_layout, self.transposed),
            "bias": place(random(self.seed + 2, (self.N,)), self.dtype, Layout((0,))) if self.bias else None,
            "dy": place(random(self.seed + 3, (self.M, self.N)), self.dtype, self.dy_layout),
            "dz": empty((self.M, self.N), self.dtype, ROWS),
            "gradient": BACKWARD[self.activation],
        }

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        x, weight, dy = exact(arguments["x"]), weight_of(arguments), exact(arguments["dy"])
        bias = exact(arguments["bias"]) if self.bias else np.zeros(self.N)
        z = x @ weight.T + bias
        dz = dy * slope(self.activation, torch.from_numpy(z)).numpy()
        error = 2 * tolerance("f32", self.K) * (np.sqrt((x * x) @ (weight * weight).T) + np.abs(bias))
        passed_on = CURVATURE * error
        if self.activation == "relu":  # a sign that the error may turn
            passed_on = np.where(np.abs(z) <= error, 1.0, 0.0)
        return {"dz": Close(dz, rounding(self.dtype, dz) + (tolerance("f32") + passed_on) * np.abs(dy))}


@dataclass(frozen=True, kw_only=True)
class Product(Case):
    """dz with one of the other two matrices."""

    M: int
    N: int
    K: int
    dtype: str = "f16"
    dz_layout: Layout = ROWS
    other_layout: Layout = ROWS

    @abstractmethod
    def factors(self, arguments: Mapping[str, Any]) -> tuple[Array, Array]:
        """Whose product it is, in float64."""

    def made(self, output: str, arguments: Mapping[str, Any], length: int) -> Mapping[str, Close]:
        """What the product must be, of sums of this length."""
        a, b = self.factors(arguments)
        terms = np.sqrt((a * a) @ (b * b))
        return {output: Close(a @ b, rounding(self.dtype, a @ b) + 2 * tolerance("f32", length) * terms)}

    def dz(self) -> torch.Tensor:
        """The left operand."""
        return place(random(self.seed, (self.M, self.N)), self.dtype, self.dz_layout)


@dataclass(frozen=True, kw_only=True)
class Dx(Product):
    """dx = dz @ weight."""

    kernel: ClassVar = linear_act_bwd_dx
    transposed: bool = False

    def arguments(self) -> dict[str, Any]:
        given = weights(self.seed + 1, (self.N, self.K), 1.0, self.dtype, self.other_layout, self.transposed)
        return {"dz": self.dz(), **given, "dx": empty((self.M, self.K), self.dtype, ROWS)}

    def factors(self, arguments: Mapping[str, Any]) -> tuple[Array, Array]:
        return exact(arguments["dz"]), weight_of(arguments)

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        return self.made("dx", arguments, self.N)


@dataclass(frozen=True, kw_only=True)
class Dw(Product):
    """dw = dz.T @ x."""

    kernel: ClassVar = linear_act_bwd_dw

    def arguments(self) -> dict[str, Any]:
        x = place(random(self.seed + 1, (self.M, self.K)), self.dtype, self.other_layout)
        return {"dz": self.dz(), "x": x, "dw": empty((self.N, self.K), self.dtype, ROWS)}

    def factors(self, arguments: Mapping[str, Any]) -> tuple[Array, Array]:
        return exact(arguments["dz"]).T, exact(arguments["x"])

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        return self.made("dw", arguments, self.M)


@st.composite
def saving(draw: st.DrawFn) -> Saving:
    """The cases of ``linear_act``, saved."""
    return Saving(**vars(draw(linear_act())))


@st.composite
def backward(draw: st.DrawFn) -> Case:
    """Cases of all kernels, dtypes, activations and layouts, small enough for an interpreter."""
    common: dict[str, Any] = {
        "dtype": draw(st.sampled_from(["f32", "f16", "bf16"])), "seed": draw(st.integers(0, 1 << 20)),
    }  # fmt: skip
    extent, length = or_tidy(draw, _EXTENT), or_tidy(draw, _LENGTH)
    m, n, k = draw(extent), draw(extent), draw(extent)
    one, other, third = (draw(layouts(2, COLUMNS)) for _ in range(3))
    activation = draw(ACTIVATION)
    kind = draw(st.sampled_from([Pointwise, WithSums, Recomputing, Dx, Dw]))
    if kind is Recomputing:
        return Recomputing(
            M=m, N=n, K=draw(length), activation=activation, bias=draw(st.booleans()),
            x_layout=one, weight_layout=other, dy_layout=third, transposed=draw(st.booleans()), **common,
        )  # fmt: skip
    if kind is Dx:
        turned = draw(st.booleans())
        return Dx(M=m, N=draw(length), K=k, dz_layout=one, other_layout=other, transposed=turned, **common)
    if kind is Dw:
        return Dw(M=draw(length), N=n, K=k, dz_layout=one, other_layout=other, **common)
    magnitude = draw(st.sampled_from([1.0, 1.0, 1e-3, 8.0, 1e3 if common["dtype"] == "f16" else 1e15]))
    common |= {"activation": activation, "magnitude": magnitude, "dy_layout": one, "z_layout": other}
    if kind is Pointwise:
        return Pointwise(M=m, N=n, **common)
    m = draw(length)
    return WithSums(M=m, N=n, P=draw(st.sampled_from([p for p in (1, 2, 3, 7, 16) if p * 8 <= m or p == 1])), **common)


ALWAYS_SAVING = (
    Saving(M=1, N=1, K=1, bias=True, activation="gelu"),
    Saving(M=0, N=5, K=7),
    Saving(M=5, N=7, K=0, bias=True, activation="silu"),
    Saving(M=37, N=199, K=760, dtype="bf16", activation="gelu_tanh", bias=True),
)
ALWAYS_BACKWARD = (
    Pointwise(M=1, N=1),
    Pointwise(M=0, N=5),
    Pointwise(M=37, N=199, dtype="bf16", activation="gelu_tanh", magnitude=1e15),
    WithSums(M=1, N=1, P=1, activation="relu"),
    WithSums(M=199, N=37, dtype="f32", P=16, activation="silu"),
    Recomputing(M=37, N=65, K=199, dtype="f32", bias=True),
    Recomputing(M=5, N=7, K=0, bias=True, activation="silu"),
    Recomputing(M=64, N=128, K=64, bias=True, transposed=True),
    Dx(M=37, N=760, K=65, dtype="bf16"),
    Dx(M=5, N=0, K=7),
    Dx(M=64, N=128, K=64, transposed=True),
    Dw(M=760, N=37, K=65, dtype="bf16"),
    Dw(M=0, N=5, K=7),
    Dw(M=64, N=128, K=64, dtype="f32", dz_layout=Layout(COLUMNS)),
)
"""Cases that every run has."""
