"""One measurement: a shape, the candidates that compute it, and what a microsecond of it is worth."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from kpt_dsl.problem import Problem

Run = Callable[[], object]
"""Computes once. What it gives, a tensor or a sequence of them, is compared between candidates of an ``OpCase``."""


@dataclass(frozen=True)
class Case:
    """``work`` in FLOPs or bytes (``unit``: "TFLOP/s" or "GB/s"); ``peers`` compute the same on the same inputs.

    ``problem`` and ``arrays`` are what kpt's kernel gets; ``bound`` names peers that do less work and only show a limit;
    ``missing`` says of other peers why they are not here.
    """

    name: str
    problem: Problem
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
    problems: tuple[Problem, ...]
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


def rate(work: float, unit: str, microseconds: float) -> float:
    """FLOPs a microsecond as TFLOP/s, bytes a microsecond as GB/s."""
    return work / microseconds / (1e6 if unit == "TFLOP/s" else 1e3)


class Suite(Protocol):
    """A module of this folder."""

    TITLE: str

    def cases(self) -> Iterator[tuple[str, Callable[[], Case | OpCase]]]:
        """Names and makers of cases: only one at a time holds device memory, and only what is asked for is made."""
        ...
