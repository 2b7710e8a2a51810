"""How long a launch takes: warm clocks, cold L2, launches of several candidates taken in turns, medians.

Cards change their clocks under load, so only times of one round are compared. torch is imported when a clock is made.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import Any, Protocol

from kpt_dsl.errors import InputError
from kpt_dsl.targets import Target

Launch = Callable[[], object]

WARM_SECONDS = 0.05
"""Work before a round, so that the clocks are where the work puts them."""

ROUNDS = (5, 200)
"""Fewest and most times that each launch is timed in a round."""

L2_ROUNDS = 2
"""The buffer that is written between launches is so many times the L2 cache, at least ``MIN_FLUSH_BYTES``."""

MIN_FLUSH_BYTES = 1 << 28
"""Writing it takes longer than the host needs to enqueue a launch, which is thus never waited for."""


class Clock(Protocol):
    """Times launches on one device."""

    def prepare(self, launch: Launch) -> Launch:
        """The launch as it will be timed, run at least once: captured in a graph where that can be."""
        ...

    def times(self, launches: Sequence[Launch], rounds: int) -> list[list[float]]:
        """Microseconds of each launch in each of so many turns."""
        ...

    def on_its_stream(self) -> AbstractContextManager[object]:
        """Where launches that differentiate must be made and timed: autograd runs a backward on its forward's stream, and only
        what runs on the clock's can be captured."""
        ...


def medians(clock: Clock, launches: Sequence[Launch], seconds: float) -> list[float]:
    """Median microseconds of each prepared launch, timed in turns for about so many seconds in all."""
    until = time.perf_counter() + WARM_SECONDS
    guess = sum(map(median, clock.times(launches, 2)))
    while time.perf_counter() < until:
        guess = min(guess, sum(map(median, clock.times(launches, 2))))
    fewest, most = ROUNDS
    rounds = max(fewest, min(most, int(seconds * 1e6 / max(guess, 1.0))))
    return [median(t) for t in clock.times(launches, rounds)]


def clock(target: Target) -> Clock:
    """The clock of the present device of a target. Raises InputError where the target cannot be timed here."""
    if target.backend == "triton":
        return _GpuClock(target)
    if target.backend == "numpy":
        return _WallClock()
    raise InputError(
        f"{target.name}: timing on this device is not supported; tune it offline with --target {target.name}"
    )


class _WallClock:
    """For work that ends before its launch returns."""

    def prepare(self, launch: Launch) -> Launch:
        launch()
        return launch

    def on_its_stream(self) -> AbstractContextManager[object]:
        return nullcontext()

    def times(self, launches: Sequence[Launch], rounds: int) -> list[list[float]]:
        found: list[list[float]] = [[] for _ in launches]
        for _ in range(rounds):
            for launch, taken in zip(launches, found, strict=True):
                start = time.perf_counter()
                launch()
                taken.append((time.perf_counter() - start) * 1e6)
        return found


class _GpuClock:
    """Events around a launch, with L2 overwritten before it; the overwriting also hides the host's time to launch."""

    def __init__(self, target: Target) -> None:
        import torch

        self._torch: Any = torch
        self._stream = torch.cuda.Stream()
        size = max(MIN_FLUSH_BYTES, L2_ROUNDS * target.l2_bytes)
        self._flush = torch.empty(size, dtype=torch.int8, device="cuda")

    def prepare(self, launch: Launch) -> Launch:
        torch = self._torch
        launch()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                launch()
            graph.replay()
            torch.cuda.synchronize()
        except RuntimeError:  # this launch cannot be captured; if the device has faulted, the next line says so
            torch.cuda.synchronize()
            return launch
        replay: Launch = graph.replay
        return replay

    def on_its_stream(self) -> AbstractContextManager[object]:
        on: AbstractContextManager[object] = self._torch.cuda.stream(self._stream)
        return on

    def times(self, launches: Sequence[Launch], rounds: int) -> list[list[float]]:
        torch = self._torch

        def event() -> Any:
            return torch.cuda.Event(enable_timing=True)

        marks = [[(event(), event()) for _ in range(rounds)] for _ in launches]
        for turn in range(rounds):
            for launch, pairs in zip(launches, marks, strict=True):
                self._flush.zero_()
                pairs[turn][0].record()
                launch()
                pairs[turn][1].record()
        torch.cuda.synchronize()
        return [[start.elapsed_time(end) * 1e3 for start, end in pairs] for pairs in marks]
