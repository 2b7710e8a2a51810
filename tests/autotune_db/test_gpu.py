"""The tuner on a real GPU: what the machine without one cannot show."""

from pathlib import Path

import pytest

from autotune_db import environment, lookup
from autotune_db.bench import Bench
from autotune_db.budget import Budget
from autotune_db.store import Store
from autotune_db.tune import tune
from kpt_dsl import targets
from kpt_dsl.cost import work
from kpt_dsl.space import space
from kpt_dsl.targets import Target
from tests.autotune_db import instances

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
]


@pytest.fixture
def target() -> Target:
    environment.look_for_devices()
    found = targets.of_device(environment.present_devices()[0])
    assert found is not None
    return found


def test_a_key_is_tuned_in_ninety_seconds(target: Target, database: Path) -> None:
    instance = instances.linear(M=4096, N=4096, K=4096)
    with Store() as store:
        result = tune(instance, target, store, budget=Budget(60.0))
    assert result.seconds <= 90
    assert len(result.trials) >= 30
    assert result.microseconds is not None
    assert result.first_microseconds is not None
    assert result.microseconds <= result.first_microseconds
    assert result.key.device == environment.present_devices()[0]
    answer = lookup.choose(instance, target)
    assert (answer.config, answer.provenance) == (result.config, "measured")


def test_times_are_of_a_cold_cache(target: Target) -> None:
    """A tensor that would fit in L2 is timed as if it came from memory: no faster than memory allows, nor absurdly slower."""
    instance = instances.softmax(M=4096, N=2048)
    bench = Bench(instance, target.name, 0, seed=0)
    taken, _ = bench.time(space(instance, target).first, None)
    least = work(instance).bytes / target.bandwidth_bytes_per_s * 1e6
    assert 0.9 * least <= taken <= 5 * least


def test_a_config_times_the_same_against_itself(target: Target) -> None:
    instance = instances.softmax(M=8192, N=4096)
    bench = Bench(instance, target.name, 0, seed=0)
    first = space(instance, target).first
    one, other = bench.compare([first, first], 1.0)
    assert one == pytest.approx(other, rel=0.01)


@pytest.mark.parametrize(
    "instance",
    [instances.softmax(M=1000, N=777), instances.linear(M=333, N=520, K=264), instances.scores(lengths=True)],
    ids=str,
)
def test_first_configs_are_right(instance, target: Target) -> None:  # type: ignore[no-untyped-def]
    assert Bench(instance, target.name, 0, seed=0).wrong(space(instance, target).first) == ""
