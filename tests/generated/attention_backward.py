"""Ugly cases of the kernels of attention's gradients, each on its own: what one makes for the next is an input like others."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import hypothesis.strategies as st
import numpy as np

from kpt.ops.flash_attention.backward_kernels import (
    flash_attention_dkdv,
    flash_attention_dq,
    flash_attention_group_sum,
    flash_attention_rows,
    flash_attention_scale,
)
from tests.generated.arrays import Layout, empty, exact, layouts, place, random
from tests.generated.attention import CONTIGUOUS, TOKENS_FIRST, Attention, attention
from tests.generated.case import Array, Case, Close
from tests.tolerances import rounding, tolerance

ROWS = Layout((0, 1, 2))
HEADS_LAST = (0, 2, 1)


@dataclass(frozen=True)
class _Exact:
    """The gradients in float64, of what the arguments hold, with the errors of the terms that they sum: ``rounded`` those of
    rounding to the inputs' type, which are as often up as down, and ``off`` the most that float32 arithmetic may add."""

    p: Array
    ds: Array
    rounded_p: Array
    rounded_ds: Array
    off_p: Array
    off_ds: Array

    def product(self, left: str, right: Array, transposed: bool, scale: float, dtype: str) -> Close:
        """p or ds times another matrix, and what a kernel may be off."""
        m, rounded, off = (getattr(self, name) for name in (left, f"rounded_{left}", f"off_{left}"))
        m, rounded, off = ((x.swapaxes(2, 3) if transposed else x) for x in (m, rounded, off))
        values = m @ right * scale
        summed = tolerance("f32", m.shape[3]) * np.sqrt((m * m) @ (right * right))
        allowed = np.sqrt((rounded * rounded) @ (right * right)) + off @ np.abs(right) + summed
        return Close(values, allowed * scale + rounding(dtype, values))


@dataclass(frozen=True, kw_only=True)
class _Gradients(Attention):
    """What both kernels read: the arguments of attention, ``do``, and two numbers a query."""

    rows_layout: Layout = ROWS

    def arguments(self) -> dict[str, Any]:
        given = super().arguments()
        up = place(random(self.seed + 3, given["o"].shape), self.dtype, self.out_layout)
        q, k, v = self.queries(given), exact(given["k"]), exact(given["v"])
        k, v = (np.repeat(x, self.groups, axis=1) for x in (k, v))
        scores = np.where(self.visible(given["key_lengths"]), q @ k.swapaxes(2, 3) * given["scale"], -np.inf)
        top = np.max(scores, axis=3, initial=-np.inf)
        top = np.where(np.isinf(top), 0.0, top)
        with np.errstate(divide="ignore"):
            lse = top + np.log(np.exp(scores - top[..., None]).sum(axis=3))
        shift = np.where(np.isinf(lse), 0.0, lse)
        delta = ((np.exp(scores - shift[..., None]) @ v) * exact(up)).sum(axis=3)
        rows = {"delta": delta, "shift": shift / math.log(2)}
        del given["o"], given["lse"]
        return given | {"do": up} | {name: place(x, "f32", self.rows_layout) for name, x in rows.items()}

    def exact(self, arguments: Mapping[str, Any]) -> _Exact:
        q, (k, v, up) = self.queries(arguments), (exact(arguments[name]) for name in ("k", "v", "do"))
        k, v = (np.repeat(x, self.groups, axis=1) for x in (k, v))
        shift = exact(arguments["shift"])[..., None]
        delta = np.zeros_like(shift) if arguments["delta"] is None else exact(arguments["delta"])[..., None]
        scores = q @ k.swapaxes(2, 3) * arguments["scale"]
        seen = self.visible(arguments["key_lengths"])
        p = np.where(seen, np.exp2(np.where(seen, scores / math.log(2) - shift, 0.0)), 0.0)
        dp = up @ v.swapaxes(2, 3) - delta
        along = np.sqrt((up * up) @ (v * v).swapaxes(2, 3)) + np.abs(delta)
        off_p = tolerance("f32", self.D) * (1 + np.abs(scores) + np.abs(shift)) * p + rounding("f32", p)
        off_ds = off_p * np.abs(dp) + p * tolerance("f32", self.width) * along
        return _Exact(p, p * dp, rounding(self.dtype, p), rounding(self.dtype, p * dp), off_p, off_ds)


@dataclass(frozen=True, kw_only=True)
class Queries(_Gradients):
    """dq."""

    kernel: ClassVar = flash_attention_dq

    def arguments(self) -> dict[str, Any]:
        given = super().arguments()
        return given | {"dq": empty(given["q"].shape, self.dtype, self.out_layout)}

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        k = np.repeat(exact(arguments["k"]), self.groups, axis=1)
        return {"dq": self.exact(arguments).product("ds", k, False, arguments["scale"], self.dtype)}


@dataclass(frozen=True, kw_only=True)
class KeysValues(_Gradients):
    """dk and dv, or one of them (``wanted``); ``summed``: with what is added to dq."""

    kernel: ClassVar = flash_attention_dkdv
    wanted: tuple[str, ...] = ("dk", "dv")
    summed: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        return (*self.wanted, "dq_sum") if self.summed else self.wanted

    @property
    def on_tpu(self) -> bool:
        return not self.summed

    @property
    def out_dtype(self) -> str:
        return self.dtype if self.groups == 1 else "f32"

    def arguments(self) -> dict[str, Any]:
        given = super().arguments()
        rows = (self.B, self.G * self.groups, self.N)
        made = {
            n: empty((*rows, width), self.out_dtype, self.out_layout) if n in self.wanted else None
            for n, width in (("dk", self.D), ("dv", self.width))
        }
        cleared = np.zeros(given["q"].shape)
        sums = {"dq_sum": place(cleared, "f32", self.out_layout) if self.summed else None}
        return given | made | sums | ({} if "dk" in self.wanted else {"delta": None})

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        found, q, up = self.exact(arguments), self.queries(arguments), exact(arguments["do"])
        both = {
            "dk": found.product("ds", q, True, arguments["scale"], self.out_dtype),
            "dv": found.product("p", up, True, 1.0, self.out_dtype),
        }
        if self.summed:
            k = np.repeat(exact(arguments["k"]), self.groups, axis=1)
            both["dq_sum"] = found.product("ds", k, False, 1.0, "f32")
        return {name: both[name] for name in self.outputs}


@dataclass(frozen=True, kw_only=True)
class Rows(Case):
    """Two numbers a query; ``blind``: every which row sees no key, 0 for none."""

    kernel: ClassVar = flash_attention_rows
    B: int = 1
    H: int = 1
    M: int
    D: int = 64
    dtype: str = "f16"
    dlse: bool = False
    blind: int = 0
    only_shift: bool = False
    cleared: bool = False
    layout: Layout = CONTIGUOUS
    rows_layout: Layout = ROWS

    @property
    def outputs(self) -> tuple[str, ...]:
        return (*(("shift",) if self.only_shift else ("delta", "shift")), *(("dq_sum",) if self.cleared else ()))

    def arguments(self) -> dict[str, Any]:
        shape = (self.B, self.H, self.M, self.D)
        lse = random(self.seed + 2, shape[:3], 10.0)
        if self.blind:
            lse[..., :: self.blind] = -np.inf
        given: dict[str, Any] = dict.fromkeys(self.kernel.tensors)
        if not self.only_shift:
            given["o"] = place(random(self.seed, shape), self.dtype, self.layout)
            given["do"] = place(random(self.seed + 1, shape), self.dtype, self.layout)
            if self.dlse:
                given["dlse"] = place(random(self.seed + 3, shape[:3]), "f32", self.rows_layout)
        given["lse"] = place(lse, "f32", self.rows_layout)
        made = {name: empty(shape[:3], "f32", ROWS) for name in self.outputs}
        return given | made | ({"dq_sum": empty(shape, "f32", self.layout)} if self.cleared else {})

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        lse = exact(arguments["lse"])
        shift = np.where(np.isinf(lse), 0.0, lse / math.log(2))
        found = {"shift": Close(shift, rounding("f32", shift))}
        if not self.only_shift:
            terms = exact(arguments["o"]) * exact(arguments["do"])
            dlse = exact(arguments["dlse"]) if self.dlse else np.zeros_like(lse)
            allowed = tolerance("f32", self.D) * (np.sqrt((terms * terms).sum(axis=3)) + np.abs(dlse))
            found["delta"] = Close(terms.sum(axis=3) - dlse, allowed)
        if self.cleared:
            found["dq_sum"] = Close(np.zeros(arguments["dq_sum"].shape), 0.0)
        return found


@dataclass(frozen=True, kw_only=True)
class Scaled(Case):
    """dq from its sum."""

    kernel: ClassVar = flash_attention_scale
    B: int = 1
    H: int = 1
    M: int
    D: int = 64
    dtype: str = "f16"
    layout: Layout = CONTIGUOUS

    def arguments(self) -> dict[str, Any]:
        shape = (self.B, self.H, self.M, self.D)
        given = {
            "dq_sum": place(random(self.seed, shape), "f32", CONTIGUOUS),
            "dq": empty(shape, self.dtype, self.layout),
        }
        return given | {"scale": 0.3}

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        values = exact(arguments["dq_sum"]) * arguments["scale"]
        return {"dq": Close(values, rounding(self.dtype, values) + rounding("f32", values))}


@dataclass(frozen=True, kw_only=True)
class GroupSum(Case):
    """Parts of R heads added up."""

    kernel: ClassVar = flash_attention_group_sum
    B: int = 1
    G: int = 1
    R: int
    N: int
    D: int = 64
    dtype: str = "f16"
    wanted: tuple[str, ...] = ("dk", "dv")
    layout: Layout = CONTIGUOUS

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.wanted

    def arguments(self) -> dict[str, Any]:
        given: dict[str, Any] = dict.fromkeys(self.kernel.tensors)
        for i, name in enumerate(self.wanted):
            parts = random(self.seed + i, (self.B, self.G, self.R, self.N, self.D))
            given[f"{name}_parts"] = place(parts, "f32", Layout((0, 1, 2, 3, 4)))
            given[name] = empty((self.B, self.G, self.N, self.D), self.dtype, self.layout)
        return given

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        found = {}
        for name in self.wanted:
            parts = exact(arguments[f"{name}_parts"])
            values, terms = parts.sum(axis=2), np.sqrt((parts * parts).sum(axis=2))
            found[name] = Close(values, rounding(self.dtype, values) + tolerance("f32", self.R) * terms)
        return found


_WANTED = st.sampled_from([("dk", "dv"), ("dk", "dv"), ("dk",), ("dv",)])
_LAYOUTS = layouts(4, TOKENS_FIRST)
_ROWS_LAYOUTS = layouts(3, HEADS_LAST)


@st.composite
def backward(draw: st.DrawFn) -> Case:
    """Cases of all four kernels, mostly of the two with products."""
    kernel = draw(st.sampled_from([Queries, Queries, KeysValues, KeysValues, KeysValues, Rows, GroupSum, Scaled]))
    case = draw(attention())
    shared = {"B": case.B, "D": case.D, "dtype": case.dtype, "seed": case.seed}
    if kernel is Rows:
        return Rows(
            **shared, H=case.G * case.groups, M=case.M, layout=draw(_LAYOUTS), rows_layout=draw(_ROWS_LAYOUTS),
            dlse=draw(st.booleans()), blind=draw(st.sampled_from([0, 1, 3])),
            only_shift=draw(st.sampled_from([False, False, True])), cleared=draw(st.booleans()),
        )  # fmt: skip
    if kernel is Scaled:
        return Scaled(**shared, H=case.G * case.groups, M=case.M, layout=draw(_LAYOUTS))
    if kernel is GroupSum:
        R = draw(st.sampled_from([2, 3, 4, 7, 8, 32]))
        return GroupSum(**shared, G=case.G, R=R, N=min(case.N, 70), wanted=draw(_WANTED), layout=draw(_LAYOUTS))
    given = {f.name: getattr(case, f.name) for f in fields(case)} | {"rows_layout": draw(_ROWS_LAYOUTS)}
    if kernel is Queries:
        return Queries(**given)
    wanted = draw(_WANTED)
    return KeysValues(**given, wanted=wanted, summed=len(wanted) == 2 and draw(st.booleans()))


_SEEN: tuple[dict[str, Any], ...] = (
    {"M": 1, "N": 1},
    {"M": 130, "N": 37, "causal": True},  # the first 93 rows see no key
    {"M": 37, "N": 199, "causal": True, "window": 16, "dtype": "bf16"},
    {"M": 199, "N": 37, "window": 3, "groups": 2},
    {"B": 2, "M": 64, "N": 128, "lengths": (0.0, 0.5), "dtype": "f32"},
    {
        "M": 128,
        "N": 128,
        "causal": True,
        "groups": 4,
        "layout": Layout(TOKENS_FIRST),
        "out_layout": Layout(TOKENS_FIRST),
    },
    {"B": 2, "M": 70, "N": 90, "causal": True, "window": 31, "lengths": (0.3, 0.97), "D": 80, "magnitude": 30.0},
    {"M": 37, "N": 199, "D": 80, "E": 32, "causal": True},
    {"B": 2, "M": 130, "N": 199, "sides": (40, 17), "starts": (0.0, 0.5)},
    {"M": 70, "N": 199, "causal": True, "groups": 2, "dtype": "bf16", "scaled": True, "magnitude": 10.0},
    {"M": 0, "N": 37},
    {"M": 37, "N": 0},
)
ALWAYS: tuple[Case, ...] = (
    *(Queries(**case) for case in _SEEN),
    *(KeysValues(**case) for case in _SEEN),
    *(KeysValues(**case, summed=True) for case in _SEEN),
    KeysValues(M=64, N=64, wanted=("dv",)),
    KeysValues(M=64, N=64, wanted=("dk",), causal=True),
    Rows(M=37, dlse=True, blind=3, D=80, cleared=True),
    Rows(M=0),
    GroupSum(R=4, N=37, D=80),
    Scaled(M=37, D=80),
)
"""Cases that every run has."""
