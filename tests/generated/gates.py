"""Ugly gates: every activation, far out and near zero, in any layout."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import hypothesis.strategies as st
import numpy as np
import torch

from kpt.ops.gated_act.kernels import gated_act_bwd, gated_act_fwd
from kpt.ops.linear_act.activations import ACTIVATIONS, ALIASES, BACKWARD, passed_on
from tests.activations import FORMULAS, slope
from tests.generated.arrays import Layout, empty, exact, layouts, or_tidy, place, random
from tests.generated.case import Case, Close
from tests.tolerances import rounding, tolerance

ROWS = Layout((0, 1))
COLUMNS = (1, 0)
_EXTENT = st.sampled_from([1, 2, 7, 16, 31, 37, 64, 65, 128, 130, 199, 760]) | st.integers(1, 150)
_ACTIVATION = st.sampled_from(sorted(ACTIVATIONS.keys() - ALIASES.keys()))


@dataclass(frozen=True, kw_only=True)
class Gate(Case):
    """``magnitude`` is that of the gate; the largest reach far beyond where activations bend."""

    kernel: ClassVar = gated_act_fwd
    M: int
    N: int
    dtype: str = "f16"
    activation: str = "silu"
    magnitude: float = 1.0
    gate_layout: Layout = ROWS
    up_layout: Layout = ROWS
    out_layout: Layout = ROWS

    def arguments(self) -> dict[str, Any]:
        shape = (self.M, self.N)
        return {
            "gate": place(random(self.seed, shape, self.magnitude), self.dtype, self.gate_layout),
            "up": place(random(self.seed + 1, shape), self.dtype, self.up_layout),
            "y": empty(shape, self.dtype, self.out_layout),
            "activation": ACTIVATIONS[self.activation],
        }

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        gate, up = arguments["gate"].double(), exact(arguments["up"])
        y = FORMULAS[self.activation](gate).numpy() * up
        return {"y": Close(y, rounding(self.dtype, y) + tolerance("f32") * self.size(gate) * np.abs(up))}

    def size(self, gate: torch.Tensor) -> Any:
        """What terms of the activation may cancel: it is of size one, or that of the gate near zero."""
        return np.minimum(np.abs(gate.numpy()), 1.0) if self.activation not in ("sigmoid", "laplace") else 1.0


@dataclass(frozen=True, kw_only=True)
class GateBackward(Gate):
    """``only``: the gradient that is wanted alone."""

    kernel: ClassVar = gated_act_bwd
    only: str | None = None

    def arguments(self) -> dict[str, Any]:
        given, shape = super().arguments(), (self.M, self.N)
        given.pop("y")
        outputs = {
            name: empty(shape, self.dtype, self.out_layout) if self.only in (None, name) else None
            for name in ("dgate", "dup")
        }
        dy = place(random(self.seed + 2, shape), self.dtype, self.up_layout)
        return given | outputs | {"dy": dy, "gradient": BACKWARD.get(self.activation, passed_on)}

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("dgate", "dup") if self.only is None else (self.only,)

    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close]:
        gate, up, dy = arguments["gate"].double(), exact(arguments["up"]), exact(arguments["dy"])
        dup = FORMULAS[self.activation](gate).numpy() * dy
        dgate = slope(self.activation, gate).numpy() * up * dy
        close = {
            "dgate": Close(dgate, rounding(self.dtype, dgate) + tolerance("f32") * np.abs(up * dy)),
            "dup": Close(dup, rounding(self.dtype, dup) + tolerance("f32") * self.size(gate) * np.abs(dy)),
        }
        return {name: close[name] for name in self.outputs}


def _common(draw: st.DrawFn) -> dict[str, Any]:
    dtype, extent = draw(st.sampled_from(["f32", "f16", "bf16"])), or_tidy(draw, _EXTENT)
    far = 10.0 if dtype == "f16" else 1e15  # float16 holds no more of relu2's squares
    return {
        "M": draw(extent), "N": draw(extent), "dtype": dtype, "activation": draw(_ACTIVATION),
        "magnitude": draw(st.sampled_from([1.0, 1.0, 1e-3, 8.0, far])),
        "gate_layout": draw(layouts(2, COLUMNS)), "up_layout": draw(layouts(2, COLUMNS)),
        "out_layout": draw(layouts(2, COLUMNS)), "seed": draw(st.integers(0, 1 << 20)),
    }  # fmt: skip


@st.composite
def gate(draw: st.DrawFn) -> Gate:
    """Cases of the forward."""
    return Gate(**_common(draw))


@st.composite
def gate_backward(draw: st.DrawFn) -> GateBackward:
    """Cases of the gradients, both or one."""
    return GateBackward(**_common(draw), only=draw(st.sampled_from([None, None, "dgate", "dup"])))


ALWAYS = (
    Gate(M=1, N=1, activation="gelu"),
    Gate(M=0, N=5),
    Gate(M=5, N=0),
    Gate(M=37, N=760, dtype="bf16", gate_layout=Layout((0, 1), 3), up_layout=Layout((0, 1), 1)),
    Gate(M=199, N=37, dtype="f32", activation="mish", magnitude=1e15),
)
ALWAYS_BACKWARD = (
    GateBackward(M=1, N=1, activation="none"),
    GateBackward(M=0, N=5),
    GateBackward(M=37, N=760, dtype="bf16", activation="gelu_tanh"),
    GateBackward(M=199, N=37, dtype="f32", activation="mish", magnitude=8.0),
    GateBackward(M=5, N=7, dtype="f32", only="dgate"),
    GateBackward(M=5, N=7, dtype="f32", only="dup"),
)
"""Cases that every run has."""
