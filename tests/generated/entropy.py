"""Ugly logits for cross-entropy: classes from one up, ignored rows, impossible classes, logits far from zero."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import hypothesis.strategies as st
import numpy as np
import torch

from kpt.ops.cross_entropy.backward_kernels import cross_entropy_bwd
from kpt.ops.cross_entropy.kernels import cross_entropy_fwd, partial_losses, reduce_losses
from tests.generated.arrays import Layout, empty, exact, layouts, place, random
from tests.generated.case import Array, Case, Close
from tests.generated.norms import COLUMNS, ROW_COUNT, ROWS, WIDTH
from tests.generated.norms_backward import SUBLANES, VECTOR
from tests.tolerances import EPS_F32, rounding, tolerance

IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Logits(Case):
    """``ignored``: every so many rows are; 0 for none. ``hidden``: the first so many classes are impossible, but not the last
    one. ``wide``: targets are int64. ``smoothing``, ``z_loss`` and ``softcap`` None: the kernel has none."""

    M: int
    N: int
    dtype: str = "f16"
    ignored: int = 3
    hidden: int = 0
    wide: bool = True
    smoothing: float | None = None
    z_loss: float | None = None
    softcap: float | None = None
    magnitude: float = 1.0
    centre: float = 0.0
    layout: Layout = ROWS

    def logits(self) -> torch.Tensor:
        """(M, N)"""
        values = random(self.seed, (self.M, self.N), self.magnitude, self.centre)
        values[:, : min(self.hidden, self.N - 1)] = -np.inf
        return place(values, self.dtype, self.layout)

    def targets(self) -> torch.Tensor:
        """(M,), of classes that are possible."""
        first = min(self.hidden, self.N - 1)
        drawn = np.random.default_rng(self.seed + 1).integers(first, max(self.N, 1), self.M)
        if self.ignored:
            drawn[:: self.ignored] = IGNORED
        return torch.from_numpy(drawn).to(torch.int64 if self.wide else torch.int32)

    def capped(self, x: Array) -> Array:
        """The logits as the loss sees them."""
        return x if self.softcap is None else self.softcap * np.tanh(x / self.softcap)

    def sizes(self, x: Array) -> tuple[Array, Array]:
        """The log-sum-exps of such logits, and what float32 may make of them."""
        top = x.max(axis=1, initial=-np.inf)
        total = np.exp(x - top[:, None]).sum(axis=1)
        with np.errstate(divide="ignore"):
            return top + np.log(total), tolerance("f32", self.N) + 2 * EPS_F32 * np.abs(top)


def _picked(x: Array, target: Array) -> Array:
    """The logits of the targets; 0 where a row has none."""
    kept = target != IGNORED
    return np.where(kept, x[np.arange(len(x)), np.where(kept, target, 0)], 0.0)


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Logits):
    kernel: ClassVar = cross_entropy_fwd

    def arguments(self) -> dict[str, Any]:
        return {
            "x": self.logits(),
            "target": self.targets(),
            "loss": empty((self.M,), "f32", VECTOR),
            "lse": empty((self.M,), "f32", VECTOR),
            "ignored": IGNORED,
            "smoothing": self.smoothing,
            "z_loss": self.z_loss,
            "softcap": self.softcap,
        }

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        x, target = self.capped(exact(arguments["x"])), arguments["target"].numpy()
        lse, error = self.sizes(x)
        hit, s, z = _picked(x, target), self.smoothing or 0.0, self.z_loss or 0.0
        loss = lse - (1 - s) * hit + z * lse**2
        size = error * (1 + 2 * z * np.abs(lse)) + 8 * EPS_F32 * (np.abs(lse) + np.abs(hit) + z * lse**2)
        if s:
            loss = loss - s * x.mean(axis=1)
            size = size + tolerance("f32", self.N) * np.abs(x).mean(axis=1)
        kept = target != IGNORED
        beside = float(np.abs(lse).max(initial=0.0))
        return {
            "loss": Close(np.where(kept, loss, 0.0), np.where(kept, size, 0.0), beside=beside),
            "lse": Close(lse, error),
        }


@dataclass(frozen=True, kw_only=True)
class CrossEntropyBackward(Logits):
    """``mean``: the gradient is of a mean; ``along``: lse has a gradient as well; ``first``: of the columns, of which some
    targets are not one then."""

    kernel: ClassVar = cross_entropy_bwd
    mean: bool = True
    along: bool = False
    first: int | None = None
    dx_layout: Layout = ROWS

    def arguments(self) -> dict[str, Any]:
        x = self.logits()
        lse, _ = self.sizes(self.capped(exact(x)))
        return {
            "dloss": place(random(self.seed + 2, (self.M,)), "f32", VECTOR),
            "x": x,
            "target": torch.where(((t := self.targets()) == IGNORED) | (t % 3 == 0), t, t + (self.first or 0)),
            "lse": place(lse, "f32", VECTOR),
            "dx": empty((self.M, self.N), self.dtype, self.dx_layout),
            "ignored": IGNORED,
            "smoothing": self.smoothing,
            "spread": None if self.smoothing is None else self.smoothing / (2 * max(1, self.N)),
            "z_loss": self.z_loss,
            "first": self.first,
            "softcap": self.softcap,
            "count": torch.tensor([float(max(1, self.M // 2))]) if self.mean else None,
            "dlse": place(random(self.seed + 3, (self.M,)), "f32", VECTOR) if self.along else None,
        }

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        x, lse, target = self.capped(exact(arguments["x"])), exact(arguments["lse"]), arguments["target"].numpy()
        s, z = self.smoothing or 0.0, self.z_loss or 0.0
        kept = target != IGNORED
        factor = np.where(kept, exact(arguments["dloss"]), 0.0)
        if self.mean:
            factor = factor / float(arguments["count"])
        along = factor * (1 + 2 * z * lse)
        if self.along:
            along = along + exact(arguments["dlse"])
        one_hot = (np.arange(self.N) + (self.first or 0) == target[:, None]).astype(float)
        p = np.exp(x - lse[:, None])
        pull = factor[:, None] * ((1 - s) * one_hot + s / (2 * max(1, self.N)))
        dx = p * along[:, None] - pull
        # A probability is off, relatively, by some eps of the logit and of the log-sum-exp.
        finite = np.where(np.isfinite(x), np.abs(x), 0.0) + np.abs(lse)[:, None]
        size = np.abs(p * along[:, None]) * (tolerance("f32") + 2 * EPS_F32 * finite) + tolerance("f32") * np.abs(pull)
        slope = 1.0 if self.softcap is None else 1 - (x / self.softcap) ** 2
        size = size * slope + (0.0 if self.softcap is None else 4 * EPS_F32 * np.abs(dx))  # of 1 - tanh ** 2, which cancels
        dx = dx * slope
        return {"dx": Close(dx, rounding(self.dtype, dx) + size, beside=float(np.abs(pull).max(initial=0.0)))}


@dataclass(frozen=True, kw_only=True)
class PartialLosses(Logits):
    """Sums over shares of the rows."""

    kernel: ClassVar = partial_losses
    N: int = 5
    P: int = 1

    def arguments(self) -> dict[str, Any]:
        return {
            "losses": place(random(self.seed, (self.M,), self.magnitude), "f32", VECTOR),
            "target": self.targets(),
            "total": empty((self.P,), "f32", VECTOR),
            "kept": empty((self.P,), "f32", VECTOR),
            "ignored": IGNORED,
        }

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        losses = exact(arguments["losses"])
        kept = float((arguments["target"] != IGNORED).sum())
        allowed = tolerance("f32", self.M) * np.abs(losses).sum()
        return {
            "total": Close(losses.sum(axis=0), allowed, summed=0),
            "kept": Close(np.asarray(kept), 0.0, summed=0),
        }


@dataclass(frozen=True, kw_only=True)
class ReduceLosses(Case):
    """``none``: no row counts."""

    kernel: ClassVar = reduce_losses
    P: int
    mean: bool = True
    none: bool = False

    def arguments(self) -> dict[str, Any]:
        kept = np.zeros(self.P) if self.none else np.abs(random(self.seed + 1, (self.P,)).round()) + 1
        return {
            "total": place(random(self.seed, (self.P,)) * (kept > 0), "f32", VECTOR),
            "kept": place(kept, "f32", VECTOR),
            "loss": empty((1,), "f32", VECTOR),
            "count": empty((1,), "f32", VECTOR),
            "mean": self.mean,
        }

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        total, kept = exact(arguments["total"]), exact(arguments["kept"])
        count = kept.sum()
        with np.errstate(invalid="ignore"):
            loss = total.sum() / (count if self.mean else 1.0)
            allowed = tolerance("f32", self.P) * np.abs(total).sum() / (count if self.mean and count else 1.0)
        return {"loss": Close(np.asarray([loss]), allowed), "count": Close(np.asarray([count]), 0.0)}


def _logits(draw: st.DrawFn) -> dict[str, Any]:
    dtype = draw(st.sampled_from(["f32", "f16", "bf16"]))
    N = draw(WIDTH)
    return {
        "dtype": dtype,
        "N": N,
        "M": draw(ROW_COUNT) if N < 1000 else draw(st.integers(1, 5)),
        "ignored": draw(st.sampled_from([0, 1, 2, 3])),
        "hidden": draw(st.sampled_from([0, 0, 1, 70, 600])),
        "wide": draw(st.booleans()),
        "z_loss": draw(st.sampled_from([None, None, 1e-4, 0.5])),
        "softcap": draw(st.sampled_from([None, None, 30.0, 1.5, 1e4])),
        "magnitude": draw(st.sampled_from([1.0, 1.0, 10.0, 1e-3])),
        "centre": draw(st.sampled_from([0.0, 0.0, 50.0, -300.0])),
        "layout": draw(layouts(2, COLUMNS)),
        "seed": draw(st.integers(0, 1 << 20)),
    }


@st.composite
def cross_entropy(draw: st.DrawFn) -> Case:
    """Cases of the losses of rows, of their gradient, and of what adds them up."""
    kinds: list[type[Case]] = [*[CrossEntropy, CrossEntropyBackward] * 2, PartialLosses, ReduceLosses]
    kind = draw(st.sampled_from(kinds))
    if kind is ReduceLosses:
        return ReduceLosses(
            P=draw(st.sampled_from([1, 2, 3, 37, 128])), mean=draw(st.booleans()), seed=draw(st.integers(0, 1 << 20))
        )
    if kind is PartialLosses:
        M = draw(ROW_COUNT | st.sampled_from([199, 760]))
        shares = [p for p in (1, 2, 3, 5) if p == 1 or (p - 1) * SUBLANES < M]
        return PartialLosses(M=M, P=draw(st.sampled_from(shares)), ignored=draw(st.sampled_from([0, 1, 3])), seed=M)
    common = _logits(draw)
    smoothing = draw(st.sampled_from([None, 0.1, 1.0]))
    if kind is CrossEntropy:  # which spreads over all classes: an impossible one would cost infinitely much, uncapped
        return CrossEntropy(**common, smoothing=None if common["hidden"] and not common["softcap"] else smoothing)
    return CrossEntropyBackward(
        **common, smoothing=smoothing, mean=draw(st.booleans()), along=draw(st.booleans()),
        first=draw(st.sampled_from([None, None, 1, 760])), dx_layout=draw(layouts(2, COLUMNS)),
    )  # fmt: skip


ALWAYS = (
    CrossEntropy(M=1, N=1),
    CrossEntropy(M=0, N=37),
    CrossEntropy(M=2, N=32000, dtype="bf16", smoothing=0.1, z_loss=1e-4),
    CrossEntropy(M=37, N=760, dtype="f32", hidden=600, centre=-300.0),
    CrossEntropy(M=3, N=199, wide=False, ignored=1, layout=Layout(COLUMNS, 1)),
    CrossEntropy(M=37, N=199, dtype="bf16", softcap=30.0, magnitude=10.0, smoothing=0.1),
    PartialLosses(M=0, P=3),
    PartialLosses(M=760, P=5),
    ReduceLosses(P=128, mean=False),
    ReduceLosses(P=3, none=True),
    CrossEntropyBackward(M=1, N=1),
    CrossEntropyBackward(M=0, N=37),
    CrossEntropyBackward(M=2, N=32000, dtype="bf16", smoothing=0.1, z_loss=1e-4, along=True),
    CrossEntropyBackward(M=37, N=760, dtype="f32", hidden=600, centre=-300.0),
    CrossEntropyBackward(M=3, N=199, wide=False, ignored=1, mean=False, layout=Layout(COLUMNS, 1)),
    CrossEntropyBackward(M=37, N=199, dtype="bf16", softcap=30.0, magnitude=10.0, first=760, along=True),
)
"""Cases that every run has."""
