"""The gradient of rotary: an op of its own, and what autograd is told."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from kpt.ops.backends import generated
from kpt.ops.library import define
from kpt.ops.registry import Gradient, Op, Ready
from kpt.ops.rotary import contract, reference
from kpt.ops.rotary.shapes import DIMS, TRAINED, arguments

OP = "rotary_backward"


def rotary_backward(
    dq: torch.Tensor | None,
    dk: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool = False,
) -> list[torch.Tensor]:
    """The gradients of q and k from those of what ``rotary`` made of them: turned back by the same angles.

    ``dq``, ``dk``: as q and k, one of which may be None. Gives a gradient for each that is given, in its memory order. Raises
    InputError for arguments that do not fit.
    """
    gradients: list[torch.Tensor] = _dispatch(dq, dk, cos, sin, interleaved)
    return gradients


def _check(dq: Any, dk: Any, cos: Any, sin: Any, interleaved: Any) -> None:
    contract.check(OP, {"dq": dq, "dk": dk}, cos, sin, interleaved)


_run = partial(contract.turn, back=True)

_dispatch = define(
    Op(
        schema="(Tensor? dq, Tensor? dk, Tensor cos, Tensor sin, bool interleaved) -> Tensor[]",
        reference=reference.rotary_backward,
        public=rotary_backward,
        fake=contract.fake,
        check=_check,
        kernels=generated(_run, contract.why_not),
        dims=DIMS,
        arguments=arguments,
        shapes=TRAINED,
        lengths={"dq": slice(2, 3), "dk": slice(2, 3), "cos": slice(-2, -1), "sin": slice(-2, -1)},
        autocast={"cuda": "keep", "cpu": "keep"},
        shardings=contract.shardings,
    )
)


def _forward(
    dispatch: Ready,
    needed: Sequence[bool],
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool,
) -> tuple[list[torch.Tensor], tuple[Any, ...]]:
    return dispatch(q, k, cos, sin, interleaved), (cos, sin, interleaved)


def _backward(
    saved: tuple[Any, ...], needed: Sequence[bool], dq: torch.Tensor | None, dk: torch.Tensor | None
) -> list[torch.Tensor | None]:
    arriving = [d if n else None for d, n in zip((dq, dk), needed, strict=True)]
    if all(d is None for d in arriving):  # only the other one's output was used
        return [None] * sum(needed)
    made = iter(_dispatch(*arriving, *saved))
    return [None if d is None else next(made) for d, n in zip(arriving, needed, strict=True) if n]


GRADIENT = Gradient(("q", "k"), _forward, _backward)
"""Saves the angles only."""
