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
    """What a function was seen to compute. ``angles``: of ``ANGLES``. ``dims``: where heads may stand, first where they do if
    a call does not say. ``partial``: cos may have fewer columns than heads. ``wide``, ``promotes``: cos may be float32
    beside half precision, as under autocast, and the result is half, or float32. ``single``: without a dim for batch entries
    too."""

    interleaved: bool
    angles: str
    dims: tuple[int, ...]
    partial: bool = False
    wide: bool = False
    promotes: bool = False
    single: bool = False
    kind = KIND

    def instead_of(self, own: FunctionType) -> Callable[..., Any]:
        """What is called in the place of a function: the op, and the function where a call is none that was proven."""
        spread, pairs, halves = ANGLES[self.angles], self.interleaved, self.angles == "one a pair"
        dims, partial, wide, promotes, single = self.dims, self.partial, self.wide, self.promotes, self.single

        def fits(q: Any, k: Any, cos: Any, sin: Any, dim: Any) -> bool:
            """The op takes it, and the function would not broadcast otherwise."""
            if k is None or dim not in dims or not q.ndim == k.ndim == 4 or not cos.ndim == sin.ndim == 3:
                return False
            shape, dtype, columns = q.shape, q.dtype, cos.shape[2] * (2 if halves else 1)
            return (
                dtype == k.dtype
                and dtype in FLOATS
                and cos.dtype == sin.dtype
                and (cos.dtype == dtype or ((wide or promotes) and cos.dtype == torch.float32 and dtype.itemsize == 2))
                and shape[0] == k.shape[0]
                and shape[3 - dim] == k.shape[3 - dim] == cos.shape[1]
                and shape[3] == k.shape[3]
                and (columns == shape[3] or (partial and 2 <= columns < shape[3] and columns % 2 == 0))
                and cos.shape[0] in (1, shape[0])
                and cos.shape == sin.shape
            )

        def turned(q: Any, k: Any, cos: Any, sin: Any, *others: Any, **named: Any) -> Any:
            if single and not others and not named and q.ndim == 3 and k.ndim == 3 and cos.ndim == sin.ndim == 2:
                y, z = turned(q[None], k[None], cos[None], sin[None])
                return y[0], z[0]
            dim = named[DIM] if len(named) == 1 and DIM in named else dims[0]
            if others or len(named) > (DIM in named) or not fits(q, k, cos, sin, dim):
                return own(q, k, cos, sin, *others, **named)
            if promotes and q.dtype != cos.dtype:
                q, k = q.to(cos.dtype), k.to(cos.dtype)
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
    told = inspect.signature(own).parameters.get(DIM)
    dims = (1, 2) if told is None else (told.default,)
    for interleaved, angles, dim in product((False, True), ANGLES, dims):
        claim = Rotary(interleaved, angles, (dim,))
        difference = _difference(own, claim, proof.cases(torch.bfloat16))
        if difference is None:
            return _widened(own, claim)
        if difference.passed > passed:
            nearest, passed = difference.what, difference.passed
    return f"calls {name}, which is none of kpt's: {nearest.replace('its forward', 'it')}"


def _widened(own: FunctionType, claim: Rotary) -> Rotary:
    """With what else it was seen to do."""
    few = [case for case in proof.cases(torch.bfloat16) if case.x == case.parameters == 1.0]
    plain = [replace(case, gradients=False) for case in few]  # those of cos are float32
    half = [case for case in plain if case.dtype.itemsize == 2]
    promoted = [replace(case, dtype=torch.float32) for case in half]
    others = (1, 2) if DIM in inspect.signature(own).parameters else ()
    return replace(
        claim,
        dims=tuple(dict.fromkeys([*claim.dims, *(d for d in others if _difference(own, claim, few, dim=d) is None)])),
        partial=_difference(own, claim, few, columns=WIDTH // 2) is None,
        wide=_difference(own, claim, half, angles=torch.float32) is None,
        promotes=all(_difference(own, claim, promoted, heads=case.dtype) is None for case in half),
        single=_difference(own, claim, few, single=True) is None,
    )


def _difference(
    own: FunctionType,
    claim: Rotary,
    tests: Any,
    dim: int | None = None,
    columns: int = WIDTH,
    heads: torch.dtype | None = None,
    angles: torch.dtype | None = None,
    single: bool = False,
) -> proof.Difference | None:
    """Where a function does otherwise than claimed, its heads at a dim, with so many columns of cos, either of a type of its
    own."""
    spread, at = ANGLES[claim.angles], dim or claim.dims[0]

    def trial(case: proof.Case, draw: proof.Draw) -> proof.Run:
        batch, positions = 2, len(case.rows) + 2
        q, k = (draw(batch, n, positions, WIDTH, scale=case.x) for n in (3, 2))
        count = columns // 2 if claim.angles == "one a pair" else columns
        # one for all of the batch too, which is broadcast
        cos, sin = (draw(batch if case.gradients else 1, positions, count, scale=case.parameters) for _ in "cs")
        q, k = (t.to(heads or case.dtype) for t in (q, k))
        cos, sin = (t.to(angles or case.dtype) for t in (cos, sin))
        if at == 2:
            q, k = (t.transpose(1, 2).contiguous() for t in (q, k))
        given = [t[0] for t in (q, k, cos, sin)] if single else [q, k, cos, sin]

        def forward() -> Any:
            y, z = own(*given) if dim is None else own(*given, **{DIM: dim})
            return torch.cat((y, z), at - single)

        return proof.Run(dict(zip(NAMES, given, strict=True)), forward)

    def law(*given: torch.Tensor) -> torch.Tensor:
        q, k, cos, sin = (t[None] for t in given) if single else given
        cos, sin = (spread(t, claim.interleaved).unsqueeze(at) for t in (cos, sin))
        y = torch.cat(reference.rotary(q, k, cos, sin, claim.interleaved), at)
        return y[0] if single else y

    return proof.difference(trial, law, tuple(tests), CPU)
