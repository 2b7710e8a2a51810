"""One measurement: a shape, the candidates that compute it, and what a microsecond of it is worth; what a suite is."""

from argparse import Namespace
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from benchmarks.report import Picture
from kpt_dsl.instance import Instance

Run = Callable[[], object]
"""Computes once. What it gives, a tensor or a sequence of them, is compared between candidates of an ``OpCase``."""


@dataclass(frozen=True)
class Case:
    """``work`` in FLOPs or bytes (``unit``: "TFLOP/s" or "GB/s"); ``peers`` compute the same on the same inputs.

    ``problem`` and ``arrays`` are what kpt's kernel gets; ``bound`` names peers that do less work and only show a limit;
    ``missing`` says of other peers why they are not here.
    """

    name: str
    problem: Instance
    arrays: Mapping[str, object]
    work: float
    unit: str
    peers: Mapping[str, Run]
    bound: frozenset[str] = field(default=frozenset())
    missing: Mapping[str, str] = field(default_factory=dict)

    def rate(self, microseconds: float) -> float:
        """Work a second in ``unit``."""
        return rate(self.work, self.unit, microseconds)


@dataclass(frozen=True)
class OpCase:
    """What is measured through PyTorch, autograd included, on both sides: kpt too is called as people call it.

    ``kpt``: "kpt", which is judged, and other ways that it offers. ``problems`` are the kernels behind these calls, to be tuned
    and to be named with their configs; ``launches`` tells, once they are tuned, which of them "kpt" takes if it has a
    choice. The rest is as in ``Case``.
    """

    name: str
    problems: tuple[Instance, ...]
    kpt: Mapping[str, Run]
    work: float
    unit: str
    peers: Mapping[str, Run]
    bound: frozenset[str] = field(default=frozenset())
    missing: Mapping[str, str] = field(default_factory=dict)
    launches: Callable[[], tuple[str, ...]] = tuple

    def rate(self, microseconds: float) -> float:
        """Work a second in ``unit``."""
        return rate(self.work, self.unit, microseconds)


class Rated(Protocol):
    """A case of any kind, as far as rates of it are concerned."""

    @property
    def unit(self) -> str: ...

    def rate(self, microseconds: float) -> float: ...


def rate(work: float, unit: str, microseconds: float) -> float:
    """FLOPs a microsecond as TFLOP/s, bytes a microsecond as GB/s."""
    return work / microseconds / (1e6 if unit == "TFLOP/s" else 1e3)


def compared(
    case: Rated, taken: Mapping[str, float], kpt: Collection[str], bound: Collection[str] = frozenset()
) -> dict[str, Any]:
    """The part of a row that says how long candidates took, in microseconds, and how much longer the best peer than kpt.

    ``kpt``: kpt's own among them, "kpt" and others whose names begin so; ``bound`` as in ``Case``.
    """
    peers = {name: t for name, t in taken.items() if name not in kpt and name not in bound}
    best = min(peers, key=peers.__getitem__, default=None)

    def ratio(other: str | None, name: str) -> float | None:
        return None if other is None else round(taken[other] / taken[name], 4)

    return {
        "unit": case.unit,
        "microseconds": {name: round(t, 2) for name, t in taken.items()},
        "rate": {name: round(case.rate(t), 1) for name, t in taken.items()},
        "best peer": best,
        **{name.replace("kpt", "ratio", 1): ratio(best, name) for name in sorted(kpt)},
        "ratios": {name: ratio(name, "kpt") for name in taken if name not in kpt},
    }


@dataclass(frozen=True)
class Found:
    """What a suite found: a row a case, how many cases failed, what there is to say of all together, how to draw it, whether
    somebody stopped it, and the device that it is about where that is not here (results go to a folder of its name)."""

    rows: Sequence[Mapping[str, Any]]
    failed: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)
    picture: Picture = field(default_factory=Picture)
    stopped: bool = False
    device: str = ""


class Stopping(AbstractContextManager["Stopping"]):
    """Cases until somebody stops them, by Ctrl-C or SIGTERM: the rows that are there by then are worth having."""

    stopped = False

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self.stopped = kind is KeyboardInterrupt
        return self.stopped


class Suite(Protocol):
    """A module of this folder whose cases are timed against their peers."""

    TITLE: str

    def cases(self) -> Iterator[tuple[str, Callable[[], Case | OpCase]]]:
        """Names and makers of cases: only one at a time holds device memory, and only what is asked for is made."""
        ...


class OwnSuite(Protocol):
    """A module of this folder that measures something else than how fast kernels are, and so in its own way."""

    TITLE: str

    def measure(self, given: Namespace) -> Found:
        """``given``: the command's arguments, of which ``only`` and ``seconds`` are for suites."""
        ...


class PredictingSuite(Protocol):
    """A module of this folder that runs nothing on a device, and says what several that are not here would take."""

    TITLE: str

    def predict(self, given: Namespace) -> Iterator[Found]:
        """One for each device. ``given``: the command's arguments, of which ``only`` and ``tune`` are for suites."""
        ...
