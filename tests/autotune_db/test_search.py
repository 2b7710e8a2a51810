"""The search asks for legal configs only, each once, and finds what is best."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import cast

import pytest

from autotune_db.search import Search
from kpt_dsl import targets
from kpt_dsl.space import Config, Space, space
from tests.autotune_db import instances


class Valley:
    """A space of 4,096 points, half of them illegal, whose cost has one lowest point."""

    knobs = {  # noqa: RUF012
        "block": (16, 32, 64, 128, 256, 512, 1024, 2048),
        "depth": (1, 2, 3, 4, 5, 6, 7, 8),
        "warps": (1, 2, 4, 8, 16, 32, 64, 128),
        "mode": ("a", "b"),
        "flat": (False, True),
        "order": (1, 2),
    }
    size = 4096
    best = Config(block=128, depth=3, warps=8, mode="b", flat=True, order=2)

    def canonical(self, values: Mapping[str, int | bool | str]) -> Config:
        return Config({name: values[name] for name in self.knobs})

    def why_illegal(self, config: Config) -> str | None:
        return "too large" if int(config["block"]) * int(config["depth"]) > 1024 else None

    def __iter__(self) -> Iterator[Config]:
        for values in itertools.product(*self.knobs.values()):
            config = Config(dict(zip(self.knobs, values, strict=True)))
            if self.why_illegal(config) is None:
                yield config

    def cost(self, config: Config) -> float:
        away = abs(math.log2(int(config["block"]) / 128)) + abs(int(config["depth"]) - 3)
        away += abs(math.log2(int(config["warps"]) / 8))
        return (
            1 + 0.2 * away + 0.3 * (config["mode"] == "a") + 0.2 * (not config["flat"]) + 0.1 * (config["order"] == 1)
        )


VALLEY = cast(Space, Valley())


def hunted(seed: int, trials: int, warm: tuple[Config, ...] = ()) -> list[Config]:
    search, asked = Search(VALLEY, seed, warm), []
    while len(asked) < trials and (config := search.ask()):
        asked.append(config)
        search.tell(config, Valley().cost(config))
    return asked


def test_asked_are_legal_configs_each_once() -> None:
    asked = hunted(seed=1, trials=150)
    assert len(asked) == len(set(asked)) == 150
    assert all(Valley().why_illegal(config) is None for config in asked)


def test_it_finds_what_random_trials_do_not() -> None:
    found = [min(map(Valley().cost, hunted(seed, 100))) for seed in range(3)]
    # Of 100 random legal points of this space the best is above 1.25 nine times in ten.
    assert max(found) <= 1.25
    assert sum(found) / len(found) <= 1.15


def test_the_same_seed_asks_the_same() -> None:
    assert hunted(seed=3, trials=40) == hunted(seed=3, trials=40)
    assert hunted(seed=3, trials=40) != hunted(seed=4, trials=40)


def test_no_trials_are_compared_to_find_out_which_knobs_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes longer with each that is under way or illegal, and is the same every time."""
    monkeypatch.delattr("optuna.search_space.IntersectionSearchSpace.calculate")
    search = Search(cast(Space, Valley()), 0)
    asked = [search.ask() for _ in range(40)]
    assert None not in asked
    for config in asked[:30]:
        search.tell(cast(Config, config), 1.0)
    assert search.ask() is not None


def test_warm_starts_come_first_without_the_illegal_ones() -> None:
    illegal = Valley.best | {"block": 2048, "depth": 8}
    other = Valley.best | {"order": 1}
    asked = hunted(seed=0, trials=5, warm=(other, illegal, other, Valley.best))
    assert asked[:2] == [other, Valley.best]


def test_warm_starts_teach() -> None:
    """TPE starts around what it was given: the best comes out in a few trials."""
    near = Valley.best | {"order": 1, "flat": False}
    assert min(map(Valley().cost, hunted(seed=0, trials=60, warm=(near,)))) <= 1.2


def test_many_may_be_asked_before_any_is_told() -> None:
    search = Search(VALLEY, 0)
    asked = [search.ask() for _ in range(30)]
    assert len(set(asked)) == 30
    for config in reversed(asked):
        assert config is not None
        search.tell(config, None if config["mode"] == "a" else 1.0)
    assert search.ask() not in asked


@pytest.mark.parametrize("failing", [False, True], ids=["all run", "some fail"])
def test_a_small_space_is_tried_to_the_end(failing: bool) -> None:
    options = space(instances.softmax(M=8, N=256), targets.get("nvidia-h200"))
    search, asked = Search(options, 0, [options.first]), []
    while config := search.ask():
        asked.append(config)
        search.tell(config, None if failing and len(asked) % 2 else float(len(asked)))
    assert asked[0] == options.first
    assert sorted(map(str, asked)) == sorted(map(str, options))
