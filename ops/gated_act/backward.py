"""The gradients of a gate: an op of its own, the kernel call behind it, and what autograd is told."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from kpt.ops import checks
from kpt.ops.backends import Launch, as_matrix, generated, wide_dtype
from kpt.ops.dtypes import FLOATS
from kpt.ops.gated_act import reference
from kpt.ops.gated_act.kernels import gated_act_bwd
from kpt.ops.gated_act.shapes import DIMS, TRAINED, backward_arguments
from kpt.ops.library import define
from kpt.ops.linear_act.activations import ACTIVATIONS, BACKWARD, passed_on
from kpt.ops.linear_act.contract import check_activation
from kpt.ops.registry import Gradient, Op, Sharding

OP = "gated_act_backward"


def gated_act_backward(
    dy: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, activation: str, needed: Sequence[bool]
) -> list[torch.Tensor]:
    """The gradients of ``gated_act``: of gate and up those that are ``needed`` (one bool for each), in this order.

    ``dy``: the gradient of its output, of the shape and dtype of ``gate``; the other arguments are its. Each gradient is
    contiguous, of that shape and dtype. Raises InputError for arguments that do not fit.
    """
    gradients: list[torch.Tensor] = _dispatch(dy, gate, up, activation, tuple(needed))
    return gradients


def check_gate(op: str, gate: Any, up: Any, activation: Any) -> None:
    """Raises InputError unless gate and up are alike and the activation is known."""
    checks.tensor(op, "gate", gate)
    checks.dtype(op, "gate", gate.dtype, FLOATS)
    if gate.ndim == 0:
        checks.reject(op, "gate", "of rank 0", "rank 1 or more")
    checks.shape(op, "up", up, gate.shape, "the shape of gate")
    checks.same_dtype(op, "gate", gate, up=up)
    checks.same_device(op, "gate", gate, up=up)
    check_activation(op, activation)


def _check(dy: Any, gate: Any, up: Any, activation: Any, needed: Any) -> None:
    check_gate(OP, gate, up, activation)
    checks.shape(OP, "dy", dy, gate.shape, "the shape of gate")
    checks.same_dtype(OP, "gate", gate, dy=dy)
    checks.same_device(OP, "gate", gate, dy=dy)
    if not isinstance(needed, Sequence) or len(needed) != 2 or not all(isinstance(n, bool) for n in needed):
        checks.reject(OP, "needed", repr(needed), "two bools, for gate and up")


def _fake(dy: Any, gate: torch.Tensor, up: Any, activation: Any, needed: Sequence[bool]) -> list[torch.Tensor]:
    return [torch.empty_like(gate, memory_format=torch.contiguous_format) for wanted in needed if wanted]


def _why_not(dy: Any, gate: torch.Tensor, *_: Any) -> str | None:
    return wide_dtype(gate)


def _shardings(
    _: int, dy: Any, gate: torch.Tensor, up: Any, activation: Any, needed: Sequence[bool]
) -> Iterator[Sharding]:
    for dim in range(gate.ndim):
        yield Sharding((dim,) * sum(needed), (dim, dim, dim, None, None))


def _run(
    launch: Launch, dy: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, activation: str, needed: Sequence[bool]
) -> list[torch.Tensor]:
    if not any(needed):
        return []
    dgate, dup = (torch.empty_like(gate, memory_format=torch.contiguous_format) if n else None for n in needed)
    given = (None if t is None else as_matrix(t, gate.shape[-1]) for t in (dy, gate, up, dgate, dup))
    launch(gated_act_bwd, *given, ACTIVATIONS[activation], BACKWARD.get(activation, passed_on))
    return [t for t in (dgate, dup) if t is not None]


_dispatch = define(
    Op(
        schema="(Tensor dy, Tensor gate, Tensor up, str activation, bool[] needed) -> Tensor[]",
        reference=reference.gated_act_backward,
        public=gated_act_backward,
        fake=_fake,
        check=_check,
        kernels=generated(_run, _why_not),
        dims=DIMS,
        arguments=backward_arguments,
        shapes=TRAINED,
        lengths={"dy": slice(0, -1), "gate": slice(0, -1), "up": slice(0, -1)},
        autocast={"cuda": "keep", "cpu": "keep"},
        shardings=_shardings,
    )
)


def _backward(saved: tuple[Any, ...], needed: Sequence[bool], dy: torch.Tensor) -> list[torch.Tensor]:
    gradients: list[torch.Tensor] = _dispatch(dy, *saved, needed)
    return gradients


GRADIENT = Gradient.of_arguments(("gate", "up"), _backward)
"""Saves gate and up themselves; the activation costs nothing beside reading the gate."""
