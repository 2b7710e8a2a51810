"""How times are taken: in turns, medians, warm."""

from collections.abc import Sequence

import pytest

from autotune_db import measure
from kpt_dsl import targets
from kpt_dsl.errors import InputError


class Drifting:
    """A device that slows down with every launch, as a card does that grows warm."""

    def __init__(self) -> None:
        self.speed = 1.0
        self.launched: list[str] = []

    def prepare(self, launch: measure.Launch) -> measure.Launch:
        return launch

    def times(self, launches: Sequence[measure.Launch], rounds: int) -> list[list[float]]:
        found: list[list[float]] = [[] for _ in launches]
        for _ in range(rounds):
            for launch, taken in zip(launches, found, strict=True):
                launch()
                self.speed *= 1.001
                taken.append({"fast": 100.0, "slow": 102.0}[self.launched[-1]] * self.speed)
        return found


def test_drift_does_not_change_who_is_faster() -> None:
    """Two that differ by 2% on a device that drifts by far more over a round."""
    clock = Drifting()
    slow, fast = measure.medians(
        clock, [lambda: clock.launched.append("slow"), lambda: clock.launched.append("fast")], seconds=0.02
    )
    assert clock.speed > 1.1
    assert fast < slow
    assert clock.launched[::2].count("slow") == len(clock.launched) / 2, "not in turns"


def test_a_wall_clock_tells_what_takes_longer() -> None:
    clock = measure.clock(targets.get("cpu"))
    data = list(range(20_000))
    short, long = measure.medians(clock, [lambda: sum(data[:2000]), lambda: sum(data)], seconds=0.05)
    assert 0 < short < long


def test_what_takes_long_is_timed_a_few_times_only() -> None:
    clock = Drifting()
    measure.medians(clock, [lambda: clock.launched.append("fast")], seconds=1e-5)
    assert len(clock.launched) >= measure.ROUNDS[0]


def test_a_device_that_cannot_be_timed_is_an_error() -> None:
    with pytest.raises(InputError, match="tpu-v6e"):
        measure.clock(targets.get("tpu-v6e"))
