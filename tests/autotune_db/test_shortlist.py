"""Which configs are compiled for a chip that is not here: the best of the space, and on TPUs as far as compiling them pays."""

import pytest

from autotune_db import model
from autotune_db.shortlist import NEAR, shortlist
from kpt_dsl import targets
from kpt_dsl.space import Config, Space, space
from tests.autotune_db import instances


def product(target: str) -> Space:
    return space(instances.linear(M=4096, N=4096, K=4096), targets.get(target))


def compiling(options: Space, config: Config) -> float:
    """Seconds that are expected of it."""
    size = model.code_size(options, config)
    assert size is not None
    return size * model.SECONDS_A_BUNDLE


def test_the_shortlist_is_the_best_of_the_space_after_what_is_known() -> None:
    options = space(instances.linear(), targets.get("nvidia-h200"))
    known = [options.first, Config(block_M=3)]
    short = shortlist(options, known, set(), 20, 60, seed=0)
    assert short[0] == options.first
    assert len(short) == len(set(short)) == 20
    assert all(options.why_illegal(config) is None for config in short)
    cost = [options.seconds(config) for config in short[1:]]
    assert cost == sorted(cost)


@pytest.mark.parametrize("target", ["tpu-v5e", "tpu-v6e", "tpu-tpu7x"])
def test_sizes_are_spread_and_small_ones_come_first(target: str) -> None:
    options = product(target)
    _, *short = shortlist(options, [options.first], set(), 48, 15, seed=0)
    doublings = [(model.code_size(options, config) or 0).bit_length() for config in short]
    turn = len(set(doublings))
    assert turn >= 4
    assert doublings[:turn] == sorted(set(doublings))
    for size in set(doublings):  # of a size, the best come first
        cost = [options.seconds(config) for config, its in zip(short, doublings, strict=True) if its == size]
        assert cost == sorted(cost)


def test_a_minute_of_two_cores_compiles_a_dozen() -> None:
    options = product("tpu-v6e")
    short = shortlist(options, [options.first], set(), 48, 15, seed=0)
    assert sum(compiling(options, config) for config in short[:12]) < 2 * 60
    best = sorted(options, key=options.seconds)[:12]
    assert sum(compiling(options, config) for config in best) > 2 * 60  # as they come by the roofline alone


def test_what_would_take_too_long_or_is_far_from_the_best_is_left_out() -> None:
    options = product("tpu-v6e")
    best = min(map(options.seconds, options))
    _, *short = shortlist(options, [options.first], set(), 1000, 4, seed=0)
    assert 4 < len(short) < options.size
    assert all(compiling(options, config) <= 4 for config in short)
    assert all(options.seconds(config) <= NEAR * best for config in short)


def test_the_first_config_is_compiled_whatever_it_takes() -> None:
    options = product("tpu-v6e")
    assert shortlist(options, [options.first], set(), 48, 0.001, seed=0) == [options.first]
    assert options.first not in shortlist(options, [options.first], {options.first}, 48, 60, seed=0)
