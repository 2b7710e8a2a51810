"""Which implementation serves a call, and why the others do not. ``prefer`` forces one.

Reads devices, dtypes and shapes only, so it answers for tensors without values too.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, cached_property, partial
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch

from kpt.ops.eager import have_memory, is_transformed, tensors_in
from kpt.ops.recompute import checkpoint_frame, lay_around
from kpt.ops.registry import Implementation, Op
from kpt_dsl.errors import InputError, MissingPackageError

Name = Literal["reference", "triton", "pallas", "numpy"]

_preferred: ContextVar[str | None] = ContextVar("kpt_preferred", default=None)
preferred = _preferred.get
"""The implementation that the surrounding ``prefer`` forces, or None."""

_began_in: ContextVar[Any] = ContextVar("kpt_preferred_in", default=None)
"""The checkpoint inside which that block began."""

_standing_in: ContextVar[str | None] = ContextVar("kpt_standing_in", default=None)

NOTHING_FAILED: Mapping[str, str] = MappingProxyType({})


@contextmanager
def prefer(name: Name) -> Iterator[None]:
    """Force one implementation for every op called inside: ``with kpt.ops.prefer("reference"): …``.

    "triton" on CPU tensors runs the generated source under Triton's interpreter, "pallas" in interpret mode, "numpy" runs
    the tile program itself. A call that it cannot serve raises InputError there, MissingPackageError if its package is absent.
    Raises InputError for an unknown name. Holds for the present thread or task, and for the backward of what was called inside,
    wherever that runs, with what a checkpoint (``use_reentrant=False``) computes again for it; in a graph of torch.compile
    what counts is where each pass runs.
    """
    if name not in get_args(Name):
        raise InputError(f"prefer: implementation {name!r} is unknown; accepted: {', '.join(get_args(Name))}")
    with Holding(name):
        token = _began_in.set(checkpoint_frame())
        try:
            yield
        finally:
            _began_in.reset(token)


@contextmanager
def standing_in(device: str) -> Iterator[None]:
    """Within the block tensors count as those of a device of this type: what is served there is chosen, for calls that are only
    noted."""
    token = _standing_in.set(device)
    try:
        yield
    finally:
        _standing_in.reset(token)


def hold_for_recomputation(preference: str) -> None:
    """Let a preference hold for what the checkpoint that is being made computes again, unless the block is inside it."""
    frame = checkpoint_frame()
    if frame is not None and frame is not _began_in.get():
        lay_around(frame, partial(Holding, preference), "preference")


class Holding:
    """What ``preferred`` gives inside: the preference of another moment, as a backward pass holds its forward's.

    A class, since a generator as context manager takes a microsecond more.
    """

    __slots__ = ("_preference", "_token")

    def __init__(self, preference: str | None) -> None:
        self._preference = preference

    def __enter__(self) -> None:
        self._token = _preferred.set(self._preference)

    def __exit__(self, *_: object) -> None:
        _preferred.reset(self._token)


@dataclass(frozen=True, slots=True)
class PassedOver:
    """An implementation that does not serve a call. ``expected``: on this device one would have counted on it."""

    name: str
    reason: str
    expected: bool = False


@dataclass(frozen=True)
class Choice:
    """The implementation that serves a call, and those passed over on the way to it."""

    implementation: Implementation
    passed_over: tuple[PassedOver, ...]

    @cached_property
    def fallback_reason(self) -> str | None:
        """Why the implementation that this device leads one to expect does not serve; None where it does."""
        return next((f"{p.name}: {p.reason}" for p in self.passed_over if p.expected), None)


def choose(
    op: Op,
    arguments: tuple[Any, ...],
    needs_grad: bool,
    prefers: str | None,
    failed: Mapping[str, str] = NOTHING_FAILED,
) -> Choice:
    """The first implementation that serves the call. ``failed``: name -> error of those that were tried and refused it.

    Raises InputError, or MissingPackageError, where the preferred implementation cannot serve.
    """
    tensors = tensors_in(arguments)
    device = _standing_in.get() or tensors[0].device.type
    passed: list[PassedOver] = []
    for candidate in op.implementations:
        at_home = candidate.devices is None or device in candidate.devices
        if prefers is not None and candidate.name != prefers:
            passed.append(PassedOver(candidate.name, f"{prefers} is preferred"))
        elif prefers is None and not at_home:
            homes = " and ".join(sorted(candidate.devices or ()))
            unasked = f"{homes} tensors, and " if homes else ""
            passed.append(PassedOver(candidate.name, f"serves {unasked}{device} tensors only when preferred"))
        elif reason := _why_not(op, candidate, arguments, tensors, needs_grad, failed):
            if prefers is not None:
                _refuse(op, candidate, reason)
            passed.append(PassedOver(candidate.name, reason, expected=True))
        else:
            return _chosen(op, candidate, tuple(passed))
    raise AssertionError("the reference serves everything")


def _chosen(op: Op, serves: Implementation, passed: tuple[PassedOver, ...]) -> Choice:
    """One that serves, after what was passed over; calls of new lengths are served like others, as a rule."""
    alone = _first(op, serves.name)
    return Choice(serves, (*passed, *alone.passed_over)) if passed else alone


@cache
def _first(op: Op, served: str) -> Choice:
    """An implementation as the first one that was asked, with those that come after it."""
    names = [candidate.name for candidate in op.implementations]
    number = names.index(served)
    after = tuple([PassedOver(name, f"comes after {served}") for name in names[number + 1 :]])
    return Choice(op.implementations[number], after)


def _why_not(
    op: Op,
    candidate: Implementation,
    arguments: tuple[Any, ...],
    tensors: Sequence[torch.Tensor],
    needs_grad: bool,
    failed: Mapping[str, str],
) -> str | None:
    if candidate.name in failed:
        return failed[candidate.name]
    if candidate.package is not None and not _is_installed(candidate.package):
        return f"the package {candidate.package} is not installed"
    if not candidate.differentiable and not have_memory(tensors):
        return "a tensor is sparse, nested or of mkldnn"
    if needs_grad and not candidate.differentiable:
        if is_transformed():
            return "torch.func transforms and forward-mode differentiation follow PyTorch's own operations only"
        if op.gradient is None:
            return "an input needs grad, and this implementation has no backward"
    return candidate.why_not(*arguments)


def _is_installed(package: str) -> bool:
    """Without asking the disk for what is loaded: every new length comes by here."""
    return package in sys.modules or find_spec(package) is not None


def _refuse(op: Op, candidate: Implementation, reason: str) -> None:
    message = f"{op.name}: {candidate.name} is preferred but cannot serve this call: {reason}"
    if candidate.package is not None and not _is_installed(candidate.package):
        raise MissingPackageError(f"{message}; install it with: pip install {candidate.package}")
    raise InputError(message)
