"""Rotary position embedding as models write it: a function of ``(q, k, cos, sin, …)`` beside the attention that calls it.

It is known by these four names and compared with the op: with cosines and sines that are all unlike, so that it is seen which
column each element takes its own from.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from types import FunctionType
from typing import Any

import torch

from kpt.ops.dtypes import FLOATS
from kpt.ops.replace import proof
from kpt.ops.replace.exchange import global_names
from kpt.ops.rotary import reference
from kpt.ops.rotary.op import rotary

KIND = "rotary"

NAMES = ("q", "k", "cos", "sin")
DIM = "unsqueeze_dim"
"""What Transformers calls the argument that says where heads stand."""

WIDTH = 8
"""Of the heads that are drawn."""

CPU = torch.device("cpu")


def _each(t: torch.Tensor, interleaved: bool) -> torch.Tensor:
    return t


def _whole(t: torch.Tensor, interleaved: bool) -> torch.Tensor:
    return t.repeat_interleave(2, -1) if interleaved else torch.cat((t, t), -1)


def _first_half(t: torch.Tensor, interleaved: bool) -> torch.Tensor:
    return _whole(t[..., : t.shape[-1] // 2], interleaved)


ANGLES: dict[str, Callable[[torch.Tensor, bool], torch.Tensor]] = {
    "each": _each,
    "first half": _first_half,
    "one a pair": _whole,
}
"""What a function reads of cos and sin, as the op takes them: a column for each element (Llama), the first half of them, one a
pair (GLM), or all, which are one a pair (gpt-oss)."""


@dataclass(frozen=True, slots=True)
class Rotary:
    """What a function was seen to compute. ``angles``: of ``ANGLES``. ``dims``: where heads may stand. ``partial``: cos may
    have fewer columns than heads. ``wide``: cos may be float32 beside half precision, and the result is none the less."""

    interleaved: bool
    angles: str
    dims: tuple[int, ...] = ()
    partial: bool = False
    wide: bool = False
    kind = KIND

    def instead_of(self, own: FunctionType) -> Callable[..., Any]:
        """What is called in the place of a function: the op, and the function where a call is none that was proven."""
        default = _default(own)
        spread, pairs, halves = ANGLES[self.angles], self.interleaved, self.angles == "one a pair"
        dims, partial, wide = self.dims, self.partial, self.wide

        def fits(q: Any, k: Any, cos: Any, sin: Any, dim: Any) -> bool:
            """The op takes it, and the function would not broadcast otherwise."""
            if k is None or dim not in dims or not q.ndim == k.ndim == 4 or not cos.ndim == sin.ndim == 3:
                return False
            shape, dtype, columns = q.shape, q.dtype, cos.shape[2] * (2 if halves else 1)
            return (
                dtype == k.dtype
                and dtype in FLOATS
                and cos.dtype == sin.dtype
                and (cos.dtype == dtype or (wide and cos.dtype == torch.float32 and dtype.itemsize == 2))
                and shape[0] == k.shape[0]
                and shape[3 - dim] == k.shape[3 - dim] == cos.shape[1]
                and shape[3] == k.shape[3]
                and (columns == shape[3] or (partial and 2 <= columns < shape[3] and columns % 2 == 0))
                and cos.shape[0] in (1, shape[0])
                and cos.shape == sin.shape
            )

        def turned(q: Any, k: Any, cos: Any, sin: Any, *others: Any, **named: Any) -> Any:
            dim = named[DIM] if len(named) == 1 and DIM in named else default
            if others or len(named) > (DIM in named) or not fits(q, k, cos, sin, dim):
                return own(q, k, cos, sin, *others, **named)
            return rotary(q, k, spread(cos, pairs).unsqueeze(dim), spread(sin, pairs).unsqueeze(dim), pairs)

        return turned


def find(forward: FunctionType) -> Iterator[str]:
    """The global names of functions of q, k, cos and sin in a forward."""
    for name in global_names(forward.__code__):
        function = forward.__globals__.get(name)
        if isinstance(function, FunctionType) and tuple(inspect.signature(function).parameters)[:4] == NAMES:
            yield name


@cache
def prove(name: str, own: FunctionType) -> Rotary | str:
    """What a function computes, or how it differs from what comes nearest."""
    nearest, passed = "", -1
    for interleaved, angles in product((False, True), ANGLES):
        claim = Rotary(interleaved, angles)
        difference = _difference(own, claim, proof.cases(torch.bfloat16))
        if difference is None:
            return _widened(own, claim)
        if difference.passed > passed:
            nearest, passed = difference.what, difference.passed
    return f"calls {name}, which is none of kpt's: {nearest.replace('its forward', 'it')}"


def _widened(own: FunctionType, claim: Rotary) -> Rotary:
    """With what else it was seen to do."""
    few = [case for case in proof.cases(torch.bfloat16) if case.x == case.parameters == 1.0]
    half = [replace(case, gradients=False) for case in few if case.dtype.itemsize == 2]  # those of cos are float32
    takes = DIM in inspect.signature(own).parameters
    return replace(
        claim,
        dims=tuple([d for d in (1, 2) if d == _default(own) or (takes and _difference(own, claim, few, dim=d) is None)]),
        partial=_difference(own, claim, few, columns=WIDTH // 2) is None,
        wide=_difference(own, claim, half, angles=torch.float32) is None,
    )


def _default(own: FunctionType) -> int:
    """Where heads stand if a call does not say."""
    found = inspect.signature(own).parameters.get(DIM)
    return found.default if found is not None and isinstance(found.default, int) else 1


def _difference(
    own: FunctionType,
    claim: Rotary,
    tests: Any,
    dim: int | None = None,
    columns: int = WIDTH,
    angles: torch.dtype | None = None,
) -> proof.Difference | None:
    """Where a function does otherwise than claimed, its heads at a dim, with so many columns of cos, of a type of their own."""
    spread, at = ANGLES[claim.angles], dim or _default(own)

    def trial(case: proof.Case, draw: proof.Draw) -> proof.Run:
        batch, positions = 2, len(case.rows) + 2
        q, k = (draw(batch, n, positions, WIDTH, scale=case.x) for n in (3, 2))
        count = columns // 2 if claim.angles == "one a pair" else columns
        # one for all of the batch too, which is broadcast
        cos, sin = (draw(batch if case.gradients else 1, positions, count, scale=case.parameters) for _ in "cs")
        if angles is not None:
            cos, sin = cos.to(angles), sin.to(angles)
        if at == 2:
            q, k = (t.transpose(1, 2).contiguous() for t in (q, k))

        def forward() -> Any:
            y, z = own(q, k, cos, sin) if dim is None else own(q, k, cos, sin, **{DIM: dim})
            return torch.cat((y, z), at)

        return proof.Run(dict(zip(NAMES, (q, k, cos, sin), strict=True)), forward)

    def law(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        cos, sin = (spread(t, claim.interleaved).unsqueeze(at) for t in (cos, sin))
        return torch.cat(reference.rotary(q, k, cos, sin, claim.interleaved), at)

    return proof.difference(trial, law, tuple(tests), CPU)
