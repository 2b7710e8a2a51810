"""What a timing process holds: the arguments of one instance on one device, a clock, and launches that are ready to be timed.

Lives in a child of the tuner (``crew``), so that a config that crashes or hangs takes nothing else with it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autotune_db import inputs, measure, verify
from kpt_dsl import ir, runtime, targets
from kpt_dsl.errors import CompileError
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config

SEARCH_SECONDS = 0.1
"""Timing of one candidate, and of the reference in turns with it."""

_KEPT = 16
"""Launches that stay ready; more would hold device memory."""


class Bench:
    """Times and verifies configs of one instance."""

    def __init__(self, instance: Instance, target: str, device: int, seed: int) -> None:
        self._instance = instance
        self._target = targets.get(target)
        self._seed = seed
        self._on_gpu = self._target.backend == "triton"
        if self._on_gpu:
            import torch

            torch.cuda.set_device(device)
        self._clock = measure.clock(self._target)
        self._arguments: dict[str, Any] = inputs.make(instance, "cuda" if self._on_gpu else "cpu", seed)
        self._ready: dict[Config, measure.Launch] = {}

    def time(self, config: Config, reference: Config | None) -> tuple[float, float | None]:
        """Median microseconds of a config, and of the reference in turns with it."""
        if reference is None or reference == config:
            (taken,) = measure.medians(self._clock, [self._launch(config)], SEARCH_SECONDS / 2)
            return taken, taken if reference else None
        launches = [self._launch(config), self._launch(reference)]
        taken, other = measure.medians(self._clock, launches, SEARCH_SECONDS)
        return taken, other

    def compare(self, configs: list[Config], seconds: float) -> list[float]:
        """Median microseconds of several configs in one interleaved round."""
        return measure.medians(self._clock, [self._launch(c) for c in configs], seconds)

    def wrong(self, config: Config) -> str:
        """What is wrong with what a config computes; "" for nothing."""
        launch = self._launch(config)  # which may run it, and so add to outputs
        added = ir.added(self._instance.lower(config))
        for name, role in self._instance.kernel.roles.items():
            array = self._arguments[name]
            if role == "out" and array is not None:
                array.fill_(0 if name in added else float("nan") if array.is_floating_point() else -1)
        launch()
        self._synchronise()
        return verify.wrong(self._instance, config, self._arguments, self._seed)

    def _synchronise(self) -> None:
        if self._on_gpu:
            import torch

            torch.cuda.synchronize()

    def _launch(self, config: Config) -> measure.Launch:
        ready = self._ready.pop(config, None)
        if ready is None:
            if len(self._ready) >= _KEPT:
                self._ready.pop(next(iter(self._ready)))  # the one not used for longest
            try:
                launch = runtime.launcher(self._instance, self._arguments, config, self._target)
                ready = self._clock.prepare(launch)
            except CompileError:
                self._synchronise()  # raises what the device itself says where it has faulted: this process is then of no use
                raise
        self._ready[config] = ready
        return ready


START_SECONDS = 180.0
"""To have a bench ready: torch from a cold disk, a device context, the arrays of a large instance."""


@dataclass(frozen=True)
class Seat:
    """Which bench a timing process is to have: one that ``make(instance, target, device, seed)`` gives."""

    make: Callable[[Instance, str, int, int], Bench]
    instance: Instance
    target: str
    device: int
    seed: int


_taken: tuple[Seat, Bench] | None = None


def take(seat: Seat) -> None:
    """Have this bench ready, in place of the one before it."""
    global _taken
    if _taken is None or _taken[0] != seat:
        _taken = None  # its arrays make room
        _taken = seat, seat.make(seat.instance, seat.target, seat.device, seat.seed)


def at(seat: Seat, method: Callable[..., Any], *arguments: Any) -> Any:
    """What a method of a bench gives."""
    take(seat)
    assert _taken is not None
    return method(_taken[1], *arguments)
