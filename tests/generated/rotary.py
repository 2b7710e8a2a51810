"""Ugly rotations: groups of heads of any size, pairs of any number, columns that are passed on, in any memory order."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import hypothesis.strategies as st
import numpy as np

from kpt.ops.rotary.kernels import rotary_halves, rotary_neighbours
from tests.generated.arrays import Layout, empty, exact, layouts, place, random
from tests.generated.case import Array, Case, Close
from tests.tolerances import rounding, tolerance

PLAIN = Layout((0, 1, 2, 3, 4, 5))
POSITIONS_FIRST = (0, 3, 1, 2, 4, 5)
"""(B, T, heads, columns), as projections give queries and keys."""


@dataclass(frozen=True, kw_only=True)
class Halves(Case):
    """``S`` columns are passed on; ``without``: "q" or "k", which is not given; ``wide``: cos and sin are float32."""

    kernel: ClassVar = rotary_halves
    B: int = 1
    K: int = 1
    N: int = 1
    M: int = 1
    T: int
    P: int
    S: int = 0
    dtype: str = "f16"
    wide: bool = False
    back: bool = False
    without: str | None = None
    magnitude: float = 1.0
    layout: Layout = PLAIN

    def columns(self) -> tuple[int, ...]:
        """Of what is turned."""
        return 2, self.P

    def arguments(self) -> dict[str, Any]:
        given: dict[str, Any] = {"back": self.back}
        for number, (name, heads) in enumerate((("q", self.N), ("k", self.M))):
            shape = (self.B, self.K, heads, self.T)
            there, rest = name != self.without, name != self.without and self.S > 0
            order = Layout(tuple(d for d in self.layout.order if d < 5), self.layout.gap)
            pairs, kept = (*shape, *self.columns()), (*shape, self.S)
            x = random(self.seed + number, pairs, self.magnitude)
            given |= {
                name: place(x, self.dtype, self.layout) if there else None,
                f"{name}_out": empty(pairs, self.dtype, self.layout) if there else None,
                f"{name}_rest": place(random(self.seed + 2 + number, kept), self.dtype, order) if rest else None,
                f"{name}_kept": empty(kept, self.dtype, order) if rest else None,
            }
        angle = random(self.seed + 4, (self.B, self.T, *self.columns()))
        kind = "f32" if self.wide else self.dtype
        rows = Layout((0, 1, 2, 3))
        return given | {"cos": place(np.cos(angle), kind, rows), "sin": place(np.sin(angle), kind, rows)}

    @property
    def outputs(self) -> tuple[str, ...]:
        names = [name for name in ("q", "k") if name != self.without]
        return tuple(f"{name}_{part}" for name in names for part in ("out", *(["kept"] if self.S else [])))

    def turned(self, x: Array, cos: Array, sin: Array) -> Array:
        """The definition; what is turned back is multiplied with each pair's transposed matrix."""
        pair = -2 if self.kernel is rotary_halves else -1
        (a, b), (cos_a, cos_b), (sin_a, sin_b) = (np.moveaxis(t, pair, 0) for t in (x, cos, sin))
        turned = (a * cos_a + b * sin_b, b * cos_b - a * sin_a) if self.back else (a * cos_a - b * sin_a, b * cos_b + a * sin_b)
        return np.stack(turned, pair)

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        cos, sin = (exact(arguments[name])[:, None, None] for name in ("cos", "sin"))
        close: dict[str, Close] = {}
        for name in ("q", "k"):
            if name == self.without:
                continue
            x = exact(arguments[name])
            y = self.turned(x, cos, sin)
            size = np.abs(x).max(initial=0.0)
            close[f"{name}_out"] = Close(y, rounding(self.dtype, y) + tolerance("f32") * size)
            if self.S:
                close[f"{name}_kept"] = Close(exact(arguments[f"{name}_rest"]), 0.0)
        return close


@dataclass(frozen=True, kw_only=True)
class Neighbours(Halves):
    kernel: ClassVar = rotary_neighbours

    def columns(self) -> tuple[int, ...]:
        return self.P, 2


@st.composite
def rotary(draw: st.DrawFn) -> Halves:
    """Cases of both pairings, forward and back."""
    kind, dtype = draw(st.sampled_from([Halves, Neighbours])), draw(st.sampled_from(["f32", "f16", "bf16"]))
    small = st.sampled_from([1, 1, 2, 3])
    return kind(
        B=draw(small), K=draw(small), N=draw(st.sampled_from([1, 2, 3, 4])), M=draw(st.sampled_from([1, 1, 2])),
        T=draw(st.sampled_from([1, 1, 2, 7, 16, 37, 64, 65, 199]) | st.integers(1, 100)),
        P=draw(st.sampled_from([1, 2, 8, 16, 32, 37, 64]) | st.integers(1, 70)),
        S=draw(st.sampled_from([0, 0, 1, 16, 37, 64])),
        dtype=dtype, wide=draw(st.booleans()), back=draw(st.booleans()),
        without=draw(st.sampled_from([None, None, None, "q", "k"])),
        magnitude=draw(st.sampled_from([1.0, 1.0, 1e-3, 1e3 if dtype == "f16" else 1e15])),
        layout=draw(layouts(6, POSITIONS_FIRST)), seed=draw(st.integers(0, 1 << 20)),
    )  # fmt: skip


ALWAYS = (
    Halves(T=1, P=1),
    Halves(T=0, P=8),
    Halves(B=2, K=2, N=4, T=37, P=32, dtype="bf16", layout=Layout(POSITIONS_FIRST)),
    Halves(K=1, N=3, M=2, T=199, P=16, S=37, dtype="f32", back=True),
    Halves(T=5, P=3, without="k"),
    Neighbours(T=1, P=1, dtype="f32"),
    Neighbours(B=2, K=2, N=4, T=37, P=32, S=64, dtype="bf16", wide=True, layout=Layout(POSITIONS_FIRST)),
    Neighbours(T=760, P=4, back=True, without="q"),
)
"""Cases that every run has."""
