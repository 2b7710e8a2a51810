"""Ugly rows for the gradients of the norms: those of the forward cases, shared out among programs, held whole and in tiles."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import hypothesis.strategies as st
import numpy as np

from kpt.ops.column_sums import column_sums, partial_column_sums
from kpt.ops.layer_norm import backward_kernels as layer
from kpt.ops.rms_norm import backward_kernels as rms
from tests.generated.arrays import Layout, empty, exact, layouts, place, random
from tests.generated.case import Array, Case, Close
from tests.generated.norms import COLUMNS, ROW_COUNT, ROWS, WIDTH, lost, off_centre
from tests.tolerances import EPS_F32, rounding, tolerance

VECTOR = Layout((0,))
SUBLANES = 8
"""Rows of a TPU's register: it wants a tile of so many for every share."""


@dataclass(frozen=True)
class Terms:
    """A norm's gradients in float64, with what float32 may make of each."""

    dx: Array
    dx_error: Array
    dweight: Array
    dweight_error: Array
    dbias: Array
    dbias_error: Array
    statistics: Mapping[str, tuple[Array, Array]]


def terms(x: Array, dy: Array, weight: Array | None, eps: float, centred: bool) -> Terms:
    """``centred``: layer norm, else RMS norm."""
    m, n = x.shape
    unit = tolerance("f32", n)

    def mean(a: Array) -> Array:
        return a.sum(axis=1, keepdims=True) / max(1, n)

    centre = mean(x) if centred else np.zeros((m, 1))
    rstd = 1 / np.sqrt(mean((x - centre) ** 2) + eps)
    normal = (x - centre) * rstd
    g = dy if weight is None else dy * weight
    across, along = (mean(g) if centred else np.zeros((m, 1))), mean(g * normal)
    # The mean is off by some eps of this, which rstd magnifies; deviations and rstd follow.
    far, first = (np.zeros((m, 1)), 0.0) if not centred else (off_centre(x, unit) * rstd, (lost(x, unit) * rstd) ** 2)
    shift = unit * (np.abs(normal) * (1 + far + first) + far)
    size, spread = mean(np.abs(g)), mean(np.abs(g * normal))
    along_error = unit * spread * (1 + far + first) + mean(np.abs(g) * shift)
    whole = np.abs(g) + size + np.abs(normal) * spread
    dx_error = rstd * (unit * whole * (1 + far + first) + shift * np.abs(along) + np.abs(normal) * along_error)
    rows = tolerance("f32", m)
    rounded = EPS_F32 * np.abs(centre)
    return Terms(
        dx=(g - across - normal * along) * rstd,
        dx_error=dx_error,
        dweight=(dy * normal).sum(axis=0),
        dweight_error=(np.abs(dy) * shift + rows * np.abs(dy * normal)).sum(axis=0),
        dbias=dy.sum(axis=0),
        dbias_error=rows * np.abs(dy).sum(axis=0),
        statistics={
            # The mean and what rounding dropped of it; how well they add up is seen in the op's tests.
            "origin": (centre[:, 0], (unit * off_centre(x, unit) + rounded)[:, 0]),
            "mean": (np.zeros(m), (unit * off_centre(x, unit) + rounded)[:, 0]),
            "rstd": (rstd[:, 0], (unit * rstd * (1 + far + first))[:, 0]),
            "across": (across[:, 0], (unit * size)[:, 0]),
            "along": (along[:, 0], along_error[:, 0]),
        },
    )


@dataclass(frozen=True, kw_only=True)
class Backward(Case):
    """``wants``: which of dx, dweight and dbias; ``wide``: the weight is float32; ``constant`` as in the forward's cases.

    ``offset``: what the gain is more than the weight, of RMS norm; ``added``: something is added to dx, where it is wanted.
    """

    centred: ClassVar[bool] = True
    M: int
    N: int
    P: int = 1
    dtype: str = "f16"
    weight: bool = True
    wide: bool = False
    wants: tuple[str, ...] = ("dx", "dweight", "dbias")
    eps: float = 1e-5
    magnitude: float = 1.0
    centre: float = 0.0
    constant: bool = False
    offset: float | None = None
    added: bool = False
    layout: Layout = ROWS
    dy_layout: Layout = ROWS
    dx_layout: Layout = ROWS

    def arguments(self) -> dict[str, Any]:
        shape = (self.M, self.N)
        x = random(self.seed, shape, self.magnitude, self.centre)
        if self.constant:
            x[:1] = self.centre + self.magnitude
        found: dict[str, Any] = {
            "dy": place(random(self.seed + 1, shape), self.dtype, self.dy_layout),
            "x": place(x, self.dtype, self.layout),
            "weight": None,
            "eps": self.eps,
            "offset": self.offset if self.weight else None,
            "added": place(random(self.seed + 3, shape), self.dtype, self.dy_layout) if self.adds else None,
        }
        if self.weight:
            found["weight"] = place(random(self.seed + 2, (self.N,)), "f32" if self.wide else self.dtype, VECTOR)
        made = {
            "dx": lambda: empty(shape, self.dtype, self.dx_layout),
            "dweight": lambda: empty((self.P, self.N), "f32", ROWS),
            "dbias": lambda: empty((self.P, self.N), "f32", ROWS),
        }
        found |= {name: make() if name in self.wants else None for name, make in made.items()}
        return {name: found[name] for name in self.kernel.signature.parameters if name in found}

    @property
    def adds(self) -> bool:
        """Whether something is added to dx."""
        return self.added and "dx" in self.wants

    def gain(self, arguments: Mapping[str, Any]) -> Array | None:
        """What normalised rows are multiplied with."""
        return exact(arguments["weight"]) + (self.offset or 0.0) if self.weight else None

    def with_added(self, dx: Array, error: Array, arguments: Mapping[str, Any]) -> Close:
        """The gradient of the rows, once what is added is, and rounded."""
        whole = dx + exact(arguments["added"]) if self.adds else dx
        return Close(whole, rounding(self.dtype, whole) + error + tolerance("f32") * np.abs(whole))

    def terms(self, arguments: Mapping[str, Any]) -> Terms:
        """What is expected, of the values that the arguments really hold."""
        weight = self.gain(arguments)
        return terms(exact(arguments["x"]), exact(arguments["dy"]), weight, self.eps, self.centred)

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        t = self.terms(arguments)
        found = {
            "dx": self.with_added(t.dx, t.dx_error, arguments),
            "dweight": Close(t.dweight, t.dweight_error, summed=0),
            "dbias": Close(t.dbias, t.dbias_error, summed=0),
        }
        return {name: found[name] for name in self.outputs}

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(name for name in super().outputs if name in self.wants)


@dataclass(frozen=True, kw_only=True)
class LayerNorm(Backward):
    kernel: ClassVar = layer.layer_norm_bwd


@dataclass(frozen=True, kw_only=True)
class LayerNormDx(Backward):
    kernel: ClassVar = layer.layer_norm_bwd_dx
    wants: tuple[str, ...] = ("dx",)


@dataclass(frozen=True, kw_only=True)
class RmsNorm(Backward):
    kernel: ClassVar = rms.rms_norm_bwd
    centred: ClassVar[bool] = False
    wants: tuple[str, ...] = ("dx", "dweight")


@dataclass(frozen=True, kw_only=True)
class RmsNormDx(RmsNorm):
    kernel: ClassVar = rms.rms_norm_bwd_dx
    wants: tuple[str, ...] = ("dx",)


@dataclass(frozen=True, kw_only=True)
class LayerNormRows(Backward):
    """What the gradients take of a whole row."""

    kernel: ClassVar = layer.layer_norm_bwd_rows
    wants: tuple[str, ...] = ("origin", "mean", "rstd", "across", "along")

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {name: empty((self.M,), "f32", VECTOR) for name in self.wants}

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        statistics = self.terms(arguments).statistics
        mean = float(np.abs(statistics["origin"][0]).max(initial=0.0))
        return {n: Close(*statistics[n], beside=mean if n == "mean" else 0.0) for n in self.wants}


@dataclass(frozen=True, kw_only=True)
class RmsNormRows(LayerNormRows):
    kernel: ClassVar = rms.rms_norm_bwd_rows
    centred: ClassVar[bool] = False
    wants: tuple[str, ...] = ("rstd", "along")


@dataclass(frozen=True, kw_only=True)
class LayerNormTiles(Backward):
    """The gradients where the statistics of the rows are given."""

    kernel: ClassVar = layer.layer_norm_bwd_tiles
    given: ClassVar[tuple[str, ...]] = ("origin", "mean", "rstd", "across", "along")

    def arguments(self) -> dict[str, Any]:
        found = super().arguments()
        statistics = self.terms(found).statistics
        found |= {name: place(statistics[name][0], "f32", VECTOR) for name in self.given}
        if self.centred:
            found["mean"] = place(statistics["origin"][0] - exact(found["origin"]), "f32", VECTOR)
        return found

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        x, dy = exact(arguments["x"]), exact(arguments["dy"])
        gain = self.gain(arguments)
        g = dy if gain is None else dy * gain
        known = {name: exact(arguments[name])[:, None] for name in self.given}
        origin, mean, across = (known.get(name, np.zeros((self.M, 1))) for name in ("origin", "mean", "across"))
        rstd, along = known["rstd"], known["along"]
        x = x - origin
        normal = (x - mean) * rstd
        dx = (g - across - normal * along) * rstd
        unit, rows = tolerance("f32"), tolerance("f32", self.M)
        size = (np.abs(x) + np.abs(mean)) * rstd
        dx_error = unit * rstd * (np.abs(g) + np.abs(across) + size * np.abs(along))
        found = {
            "dx": self.with_added(dx, dx_error, arguments),
            "dweight": Close((dy * normal).sum(axis=0), (rows * np.abs(dy) * size).sum(axis=0), summed=0),
            "dbias": Close(dy.sum(axis=0), rows * np.abs(dy).sum(axis=0), summed=0),
        }
        return {name: found[name] for name in self.outputs}


@dataclass(frozen=True, kw_only=True)
class RmsNormTiles(LayerNormTiles):
    kernel: ClassVar = rms.rms_norm_bwd_tiles
    centred: ClassVar[bool] = False
    given: ClassVar[tuple[str, ...]] = ("rstd", "along")
    wants: tuple[str, ...] = ("dx", "dweight")


@dataclass(frozen=True, kw_only=True)
class PartialSums(Case):
    """Sums of columns over shares of the rows."""

    kernel: ClassVar = partial_column_sums
    M: int
    N: int
    P: int = 1
    dtype: str = "f16"
    layout: Layout = ROWS

    def arguments(self) -> dict[str, Any]:
        x = place(random(self.seed, (self.M, self.N)), self.dtype, self.layout)
        return {"x": x, "partial": empty((self.P, self.N), "f32", ROWS)}

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        x = exact(arguments["x"])
        return {"partial": Close(x.sum(axis=0), tolerance("f32", self.M) * np.abs(x).sum(axis=0), summed=0)}


@dataclass(frozen=True, kw_only=True)
class ColumnSums(Case):
    """Sums of columns of one or two matrices, each rounded to a type of its own."""

    kernel: ClassVar = column_sums
    P: int
    N: int
    dtype: str = "bf16"
    second: str | None = "f32"

    def arguments(self) -> dict[str, Any]:
        found: dict[str, Any] = dict.fromkeys(self.kernel.tensors)
        for seed, (name, dtype) in enumerate((("first", self.dtype), ("second", self.second))):
            if dtype is not None:
                found[name] = place(random(self.seed + seed, (self.P, self.N)), "f32", ROWS)
                found[f"{name}_sum"] = empty((self.N,), dtype, VECTOR)
        return found

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        found = {}
        for name, dtype in (("first", self.dtype), ("second", self.second)):
            if dtype is not None:
                partial = exact(arguments[name])
                total = partial.sum(axis=0)
                error = tolerance("f32", self.P) * np.abs(partial).sum(axis=0)
                found[f"{name}_sum"] = Close(total, rounding(dtype, total) + error)
        return found

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(name for name in super().outputs if name == "first_sum" or self.second is not None)


def _shares(draw: st.DrawFn, rows: int) -> int:
    return draw(st.sampled_from([p for p in (1, 2, 3, 4, 5) if p == 1 or (p - 1) * SUBLANES < rows]))


def _common(draw: st.DrawFn, kind: type[Backward]) -> dict[str, Any]:
    dtype = draw(st.sampled_from(["f32", "f16", "bf16"]))
    N = draw(WIDTH)
    M = draw(ROW_COUNT) if N < 1000 else draw(st.integers(1, 5))
    found: dict[str, Any] = {
        "dtype": dtype,
        "N": N,
        "M": M,
        "P": _shares(draw, M),
        "weight": draw(st.booleans()),
        "wide": dtype != "f32" and draw(st.booleans()),
        "eps": draw(st.sampled_from([1e-5, 1e-6, 1e-3])),
        # Gradients grow as rows shrink: float16 holds those of rows of a hundredth.
        "magnitude": draw(
            st.sampled_from([1.0, 1.0, 1e-2 if dtype == "f16" else 1e-4, 1e3 if dtype == "f16" else 1e10])
        ),
        "constant": draw(st.booleans()),
        "added": draw(st.booleans()),
        "layout": draw(layouts(2, COLUMNS)),
        "dy_layout": draw(layouts(2, COLUMNS)),
        "dx_layout": draw(layouts(2, COLUMNS)),
        "seed": draw(st.integers(0, 1 << 20)),
    }
    if not kind.centred:
        found["offset"] = draw(st.sampled_from([None, None, 1.0, -0.5]))
    else:
        centre = draw(st.sampled_from([0.0, 0.0, 3.0, -30.0, 1e4 if dtype == "f32" else 1000.0])) * found["magnitude"]
        found["centre"] = float(np.clip(centre, -3e4, 3e4)) if dtype == "f16" else centre
    return found


@st.composite
def layer_norm(draw: st.DrawFn) -> Case:
    """Cases of all kernels, with means up to ten thousand deviations away."""
    kinds: list[type[Backward]] = [LayerNorm, LayerNorm, LayerNorm, LayerNormDx, LayerNormRows, LayerNormTiles]
    kind = draw(st.sampled_from(kinds))
    common = _common(draw, kind)
    if kind in (LayerNorm, LayerNormTiles):
        wants = [("dx", "dweight", "dbias"), ("dx", "dweight"), ("dx", "dbias"), ("dweight", "dbias"), ("dweight",)]
        common["wants"] = draw(st.sampled_from(wants))
    return kind(**common)


@st.composite
def rms_norm(draw: st.DrawFn) -> Case:
    """Cases of all kernels, and of the sums of columns."""
    kinds: list[type[Case]] = [RmsNorm, RmsNorm, RmsNormDx, RmsNormRows, RmsNormTiles, PartialSums, ColumnSums]
    kind = draw(st.sampled_from(kinds))
    if kind is PartialSums:
        M, dtype = draw(ROW_COUNT), draw(st.sampled_from(["f32", "f16", "bf16"]))
        return PartialSums(M=M, N=draw(WIDTH), P=_shares(draw, M), dtype=dtype, layout=draw(layouts(2, COLUMNS)))
    if kind is ColumnSums:
        dtype, second = draw(st.sampled_from([("bf16", "f32"), ("f16", None), ("f32", "f32"), ("f32", "bf16")]))
        return ColumnSums(P=draw(st.sampled_from([1, 2, 3, 33, 132])), N=draw(WIDTH), dtype=dtype, second=second)
    assert issubclass(kind, Backward)
    common = _common(draw, kind)
    if kind in (RmsNorm, RmsNormTiles):
        common["wants"] = draw(st.sampled_from([("dx", "dweight"), ("dweight",)]))
    return kind(**common)


ALWAYS_LAYER_NORM = (
    LayerNorm(M=1, N=1),
    LayerNorm(M=0, N=64, P=3),
    LayerNorm(M=5, N=0),
    LayerNorm(M=37, N=760, P=4, centre=1e4, dtype="f32"),
    LayerNorm(M=2, N=16384, dtype="bf16"),
    LayerNorm(M=3, N=199, constant=True, dtype="f32", layout=Layout(COLUMNS, 1)),
    LayerNormDx(M=1, N=262_144, dtype="f32", weight=False),
    LayerNormRows(M=37, N=4099, centre=1e4, dtype="f32"),
    LayerNormTiles(M=37, N=4099, P=4, dtype="bf16", wide=True),
)
ALWAYS_RMS_NORM = (
    RmsNorm(M=1, N=1),
    RmsNorm(M=0, N=64, P=3),
    RmsNorm(M=5, N=0),
    RmsNorm(M=37, N=760, P=4, dtype="f32"),
    RmsNorm(M=2, N=16384, dtype="bf16"),
    RmsNormDx(M=1, N=262_144, dtype="f32", weight=False),
    RmsNormRows(M=37, N=4099, dtype="f32"),
    RmsNormTiles(M=37, N=4099, P=4, dtype="bf16", wide=True),
    PartialSums(M=0, N=5, P=3),
    PartialSums(M=37, N=199, P=4, dtype="bf16"),
    ColumnSums(P=1024, N=65),
)
"""Cases that every run has."""
