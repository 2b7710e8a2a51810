"""Ugly rows for fp8 quantisation: each result must be the rounding of a number next to what float64 gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import hypothesis.strategies as st
import numpy as np
import torch

from kpt.ops.quantize_fp8.kernels import SMALLEST, quantize_rows, quantize_with_scale, row_amax
from tests.generated.arrays import Layout, empty, exact, layouts, place, random
from tests.generated.case import LARGEST, Case, Close, Rounded
from tests.generated.norms import COLUMNS, ROW_COUNT, ROWS, WIDTH
from tests.tolerances import tolerance


@dataclass(frozen=True, kw_only=True)
class Rows(Case):
    """``zeros``: the first row is all zero."""

    M: int
    N: int
    dtype: str = "bf16"
    to: str = "f8e4m3"
    magnitude: float = 1.0
    zeros: bool = False
    layout: Layout = ROWS
    y_layout: Layout = ROWS

    def x(self) -> torch.Tensor:
        x = random(self.seed, (self.M, self.N), self.magnitude)
        if self.zeros:
            x[:1] = 0.0
        return place(x, self.dtype, self.layout)


@dataclass(frozen=True, kw_only=True)
class QuantizeRows(Rows):
    kernel: ClassVar = quantize_rows

    def arguments(self) -> dict[str, Any]:
        return {
            "x": self.x(),
            "y": empty((self.M, self.N), self.to, self.y_layout),
            "scale": empty((self.M,), "f32", Layout((0,))),
            "largest": LARGEST[self.to],
        }

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close | Rounded]:
        x = exact(arguments["x"])
        scale = np.maximum(np.max(np.abs(x), axis=1, initial=0.0), SMALLEST) / LARGEST[self.to]
        return {"scale": Close(scale, tolerance("f32") * scale), "y": Rounded(x / scale[:, None], self.to)}


@dataclass(frozen=True, kw_only=True)
class RowAmax(Rows):
    kernel: ClassVar = row_amax

    def arguments(self) -> dict[str, Any]:
        return {"x": self.x(), "amax": empty((self.M,), "f32", Layout((0,)))}

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close | Rounded]:
        return {"amax": Close(np.max(np.abs(exact(arguments["x"])), axis=1, initial=0.0), 0.0)}


@dataclass(frozen=True, kw_only=True)
class QuantizeWithScale(Rows):
    """A scale below magnitude / 100 makes numbers that must saturate."""

    kernel: ClassVar = quantize_with_scale
    share: float = 0.01

    def arguments(self) -> dict[str, Any]:
        return {
            "x": self.x(),
            "scale": place(np.array([self.magnitude * self.share]), "f32", Layout((0,))),
            "y": empty((self.M, self.N), self.to, self.y_layout),
        }

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close | Rounded]:
        return {"y": Rounded(exact(arguments["x"]) / exact(arguments["scale"]), self.to)}


@st.composite
def quantize_fp8(draw: st.DrawFn) -> Rows:
    """Cases of the three kernels."""
    dtype = draw(st.sampled_from(["f32", "f16", "bf16"]))
    N = draw(WIDTH)
    common: dict[str, Any] = {
        "dtype": dtype,
        "N": N,
        "M": draw(ROW_COUNT) if N < 1000 else draw(st.integers(1, 5)),
        "to": draw(st.sampled_from(["f8e4m3", "f8e5m2"])),
        "magnitude": draw(st.sampled_from([1.0, 1.0, 1e-2, 1e3 if dtype == "f16" else 1e15])),
        "zeros": draw(st.booleans()),
        "layout": draw(layouts(2, COLUMNS)),
        "seed": draw(st.integers(0, 1 << 20)),
    }
    kinds: list[type[Rows]] = [QuantizeRows, QuantizeRows, QuantizeWithScale, RowAmax]
    kind = draw(st.sampled_from(kinds))
    if kind is QuantizeWithScale:
        common["share"] = draw(st.sampled_from([0.01, 1e-4]))
    if kind is not RowAmax:
        common["y_layout"] = draw(layouts(2, COLUMNS))
    return kind(**common)


ALWAYS_QUANTIZE = (
    QuantizeRows(M=1, N=1),
    QuantizeRows(M=0, N=64),
    QuantizeRows(M=5, N=0),
    QuantizeRows(M=37, N=760, zeros=True, to="f8e5m2"),
    QuantizeRows(M=1, N=262_144, dtype="f32"),
    RowAmax(M=5, N=0),
    RowAmax(M=31, N=199, dtype="f32", layout=Layout(COLUMNS, 1)),
    QuantizeWithScale(M=0, N=3),
    QuantizeWithScale(M=37, N=199, share=1e-4),
)
"""Cases that every run has."""
