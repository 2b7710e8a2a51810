"""Calls of ops in small ugly shapes, the same for arrays and for tensors, and what float64 makes of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import kpt


@dataclass(frozen=True)
class Case:
    """A call of an op: its arguments, arrays as NumPy has them, and which of these have gradients. ``length``: of its longest
    sum."""

    op: str
    make: Callable[[np.random.Generator], tuple[Any, ...]]
    options: Mapping[str, Any] = field(default_factory=dict)
    graded: tuple[int, ...] = (0,)
    length: int = 64

    def arguments(self) -> tuple[Any, ...]:
        """Those of this call, alike on every run."""
        return tuple([_float32(a) for a in self.make(np.random.default_rng(7))])


def _float32(value: Any) -> Any:
    return value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype == np.float64 else value


CASES = {
    "rms_norm": Case(
        "rms_norm", lambda r: (r.normal(size=(3, 13, 70)), (70,), r.normal(size=70), 1e-5, 1.0), graded=(0, 2), length=70
    ),
    "layer_norm": Case(
        "layer_norm", lambda r: (r.normal(size=(39, 70)) + 3, (70,), r.normal(size=70), r.normal(size=70)), {}, (0, 2, 3), 70
    ),
    "add_rms_norm": Case(
        "add_rms_norm", lambda r: (r.normal(size=(19, 70)), r.normal(size=(19, 70)), (70,), r.normal(size=70)), {}, (0, 1, 3),
        70,
    ),
    "add_layer_norm": Case(
        "add_layer_norm", lambda r: (r.normal(size=(19, 70)), r.normal(size=(19, 70)), (70,), r.normal(size=70)), {}, (0, 1, 3),
        70,
    ),
    "linear_act": Case(
        "linear_act", lambda r: (r.normal(size=(2, 9, 40)), r.normal(size=(24, 40)), r.normal(size=24)), {"activation": "gelu"},
        (0, 1, 2), 40,
    ),
    "gated_act": Case("gated_act", lambda r: (r.normal(size=(11, 50)), r.normal(size=(11, 50)), "silu"), {}, (0, 1), 1),
    "rotary": Case(
        "rotary",
        lambda r: (r.normal(size=(2, 4, 5, 16)), r.normal(size=(2, 2, 5, 16)), r.normal(size=(5, 8)), r.normal(size=(5, 8))),
        {}, (0, 1), 2,
    ),
    "cross_entropy": Case(
        "cross_entropy", lambda r: (r.normal(size=(13, 37)), np.array([*range(12), -100])),
        {"label_smoothing": 0.1, "softcap": 2.0}, (0,), 37,
    ),
    "linear_cross_entropy": Case(
        "linear_cross_entropy", lambda r: (r.normal(size=(13, 16)), r.normal(size=(37, 16)), np.arange(13)),
        {"reduction": "sum", "softcap": 5.0}, (0, 1), 37,
    ),
    "flash_attention": Case(
        "flash_attention",
        lambda r: (r.normal(size=(1, 4, 17, 16)), r.normal(size=(1, 2, 23, 16)), r.normal(size=(1, 2, 23, 16))),
        {"causal": True}, (0, 1, 2), 23,
    ),
}  # fmt: skip


def loss(outputs: Any, cosines: Callable[[tuple[int, ...]], Any]) -> Any:
    """A number that depends on each element of each output otherwise."""
    return sum((o * cosines(tuple(o.shape))).sum() for o in (outputs if isinstance(outputs, tuple) else (outputs,)))


def cosines(shape: tuple[int, ...]) -> np.ndarray:
    """Weights of the elements of an output."""
    return np.cos(np.arange(int(np.prod(shape)), dtype=np.float64)).reshape(shape)


def in_float64(case: Case) -> tuple[tuple[Any, ...], list[Any]]:
    """The outputs, and the gradients of ``loss``, by PyTorch's own operations."""
    given = [torch.tensor(a) if isinstance(a, np.ndarray) else a for a in case.arguments()]
    given = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in given]
    for position in case.graded:
        given[position].requires_grad_()
    outputs = getattr(kpt.ops, case.op)(*given, **case.options)
    loss(outputs, lambda shape: torch.tensor(cosines(shape))).backward()
    return outputs if isinstance(outputs, tuple) else (outputs,), [given[p].grad for p in case.graded]
