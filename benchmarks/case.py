"""One measurement: a shape, the candidates that compute it, and what a microsecond of it is worth."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from kpt_dsl.problem import Problem

Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """``work`` in FLOPs or bytes (``unit``: "TFLOP/s" or "GB/s"); ``peers`` compute the same on the same inputs.

    ``problem`` and ``arrays`` are what kpt's kernel gets; ``bound`` names peers that do less work and only show a limit.
    """

    name: str
    problem: Problem
    arrays: Mapping[str, object]
    work: float
    unit: str
    peers: Mapping[str, Run]
    bound: frozenset[str] = field(default=frozenset())

    def rate(self, microseconds: float) -> float:
        """Work a second in ``unit``."""
        return self.work / microseconds / (1e6 if self.unit == "TFLOP/s" else 1e3)


class Suite(Protocol):
    """A module of this folder."""

    TITLE: str

    def cases(self) -> Iterator[Callable[[], Case]]:
        """Makers of cases, so that only one at a time holds device memory."""
        ...
