"""Ugly rows for the norms: widths from one up, means far from zero, constant rows, tiny and huge numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import hypothesis.strategies as st
import numpy as np

from kpt.ops.layer_norm.kernels import layer_norm_fwd
from kpt.ops.rms_norm.kernels import rms_norm_fwd
from tests.generated.arrays import Layout, empty, exact, layouts, place, random
from tests.generated.case import Array, Case, Close
from tests.tolerances import rounding, tolerance

ROWS = Layout((0, 1))
COLUMNS = (1, 0)
ROW_COUNT = st.sampled_from([1, 2, 3, 8, 31, 37]) | st.integers(1, 40)
WIDTH = st.sampled_from([1, 2, 3, 7, 16, 31, 64, 65, 127, 128, 130, 199, 257, 760, 1024, 4097]) | st.integers(1, 600)


@dataclass(frozen=True, kw_only=True)
class Norm(Case):
    """``constant``: the first row has one value throughout."""

    M: int
    N: int
    dtype: str = "f16"
    weight: bool = True
    eps: float = 1e-5
    magnitude: float = 1.0
    centre: float = 0.0
    constant: bool = False
    residual: bool = False
    layout: Layout = ROWS
    y_layout: Layout = ROWS

    def arguments(self) -> dict[str, Any]:
        x = random(self.seed, (self.M, self.N), self.magnitude, self.centre)
        if self.constant:
            x[:1] = self.centre + self.magnitude
        weight = place(random(self.seed + 1, (self.N,)), self.dtype, Layout((0,))) if self.weight else None
        return {
            "x": place(x, self.dtype, self.layout),
            "weight": weight,
            "y": empty((self.M, self.N), self.dtype, self.y_layout),
            "eps": self.eps,
            **self.around(),
        }

    @property
    def rounds_on_the_way(self) -> bool:
        return self.residual

    def around(self) -> dict[str, Any]:
        """What a sum takes and gives beside its norm."""
        if not self.residual:
            return {"residual": None, "new_residual": None}
        residual = random(self.seed + 3, (self.M, self.N), self.magnitude)
        return {
            "residual": place(residual, self.dtype, self.y_layout),
            "new_residual": empty((self.M, self.N), self.dtype, self.layout),
        }

    def rows(self, arguments: Mapping[str, Any]) -> Array:
        """What the norm is taken of."""
        return exact(summed(arguments)) if self.residual else exact(arguments["x"])

    def found(self, arguments: Mapping[str, Any], y: Close) -> Mapping[str, Close]:
        """All outputs: a sum is rounded as PyTorch rounds it, to the last bit."""
        if not self.residual:
            return {"y": y}
        return {"y": y, "new_residual": Close(exact(summed(arguments)), 0.0)}

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("y", "new_residual") if self.residual else ("y",)


def summed(arguments: Mapping[str, Any]) -> Any:
    return arguments["x"] + arguments["residual"]


@dataclass(frozen=True, kw_only=True)
class LayerNorm(Norm):
    kernel: ClassVar = layer_norm_fwd
    bias: bool = True

    def arguments(self) -> dict[str, Any]:
        bias = place(random(self.seed + 2, (self.N,)), self.dtype, Layout((0,))) if self.bias else None
        return super().arguments() | {"bias": bias}

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        x = self.rows(arguments)
        weight = exact(arguments["weight"]) if self.weight else np.ones(self.N)
        bias = exact(arguments["bias"]) if self.bias else np.zeros(self.N)
        mean = x.sum(axis=1, keepdims=True) / max(1, self.N)
        centred = x - mean
        rstd = 1 / np.sqrt((centred * centred).sum(axis=1, keepdims=True) / max(1, self.N) + self.eps)
        y = centred * rstd * weight + bias
        unit = tolerance("f32", self.N)
        size = (
            off_centre(x, unit) * rstd * np.abs(weight) + np.abs(y) * (1 + (lost(x, unit) * rstd) ** 2) + np.abs(bias)
        )
        return self.found(arguments, Close(y, rounding(self.dtype, y) + unit * size))


def lost(x: Array, unit: float) -> Array:
    """How far a row's mean may be off when it is first taken: some eps of the row's largest number."""
    return unit * np.abs(x).max(axis=1, keepdims=True, initial=0)


def off_centre(x: Array, unit: float) -> Array:
    """What a row's mean may still be off by some eps of, once what the first one lost is taken off."""
    return np.abs(x - x[:, :1]).max(axis=1, keepdims=True, initial=0) + lost(x, unit)


@dataclass(frozen=True, kw_only=True)
class RmsNorm(Norm):
    kernel: ClassVar = rms_norm_fwd
    offset: float | None = None

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"offset": self.offset if self.weight else None}

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        x = self.rows(arguments)
        weight = exact(arguments["weight"]) + (self.offset or 0.0) if self.weight else np.ones(self.N)
        y = x / np.sqrt((x * x).sum(axis=1, keepdims=True) / max(1, self.N) + self.eps) * weight
        return self.found(arguments, Close(y, rounding(self.dtype, y) + tolerance("f32", self.N) * np.abs(y)))


def _common(draw: st.DrawFn) -> dict[str, Any]:
    dtype = draw(st.sampled_from(["f32", "f16", "bf16"]))
    huge = 1e3 if dtype == "f16" else 1e10
    N = draw(WIDTH)
    return {
        "dtype": dtype,
        "N": N,
        "M": draw(ROW_COUNT) if N < 1000 else draw(st.integers(1, 5)),
        "weight": draw(st.booleans()),
        "residual": draw(st.booleans()),
        "eps": draw(st.sampled_from([1e-5, 1e-6, 1e-3])),
        "magnitude": draw(st.sampled_from([1.0, 1.0, 1e-4, huge])),
        "layout": draw(layouts(2, COLUMNS)),
        "y_layout": draw(layouts(2, COLUMNS)),
        "seed": draw(st.integers(0, 1 << 20)),
    }


@st.composite
def layer_norm(draw: st.DrawFn) -> LayerNorm:
    """Layer-norm cases, with means up to a thousand deviations away."""
    common = _common(draw)
    centre = draw(st.sampled_from([0.0, 0.0, 3.0, -30.0, 1000.0])) * common["magnitude"]
    if common["dtype"] == "f16":
        centre = float(np.clip(centre, -3e4, 3e4))
    return LayerNorm(**common, centre=centre, bias=draw(st.booleans()), constant=draw(st.booleans()))


@st.composite
def rms_norm(draw: st.DrawFn) -> RmsNorm:
    """RMS-norm cases."""
    return RmsNorm(**_common(draw), constant=draw(st.booleans()), offset=draw(st.sampled_from([None, None, 1.0, -0.5])))


ALWAYS_LAYER_NORM = (
    LayerNorm(M=1, N=1),
    LayerNorm(M=0, N=64),
    LayerNorm(M=5, N=0),
    LayerNorm(M=37, N=760, centre=1000.0, dtype="f32"),
    LayerNorm(M=2, N=16384, dtype="bf16"),
    LayerNorm(M=37, N=199, dtype="bf16", residual=True, centre=30.0),
    LayerNorm(M=1, N=262_144, dtype="f32", weight=False, bias=False),
    LayerNorm(M=3, N=199, constant=True, dtype="f32", layout=Layout(COLUMNS, 1)),
)
ALWAYS_RMS_NORM = (
    RmsNorm(M=1, N=1),
    RmsNorm(M=0, N=64),
    RmsNorm(M=5, N=0),
    RmsNorm(M=37, N=760, dtype="f32"),
    RmsNorm(M=2, N=16384, dtype="bf16"),
    RmsNorm(M=37, N=199, dtype="bf16", residual=True, offset=1.0),
    RmsNorm(M=1, N=262_144, dtype="f32", weight=False),
)
"""Cases that every run has."""
