"""Tuning for a chip that is not here: what spills is rejected, the rest is ranked, and the answer is called predicted."""

from pathlib import Path

import pytest

from autotune_db import jobs, lookup, model, offline, warm
from autotune_db.budget import Budget
from autotune_db.crew import Crew
from autotune_db.result import Result
from autotune_db.store import Store
from autotune_db.workshop import Workshop
from kpt_dsl import targets
from kpt_dsl.build import Report
from kpt_dsl.errors import CompileError
from kpt_dsl.instance import Instance
from kpt_dsl.space import space
from kpt_dsl.targets import Target
from tests.autotune_db import crimes, instances

H200 = targets.get("nvidia-h200")


def predict(instance: Instance, target: Target, store: Store | None, budget: Budget) -> Result:
    with Workshop(2) as workshop:
        return offline.predict(instance, target, store, budget=budget, workshop=workshop)


@pytest.mark.parametrize("target", ["nvidia-h200", "amd-mi300x"])
def test_a_gpu_that_is_not_here(target: str, database: Path) -> None:
    instance, chip = instances.softmax(), targets.get(target)
    with Store() as store:
        result = predict(instance, chip, store, Budget(60, 3))
        (entry,) = store.entries()
    assert result.origin == entry.origin == "predicted"
    assert result.key.device == target
    assert entry.extents == instance.extents.dims
    assert space(instance, chip).why_illegal(result.config) is None
    assert result.microseconds is not None
    assert result.first_microseconds is not None
    assert 0 < result.microseconds <= result.first_microseconds
    assert result.first in [t.config for t in result.trials]
    answer = lookup.choose(instance, chip)
    assert (answer.config, answer.provenance) == (result.config, "predicted")


def test_every_schedule_has_a_time_beside_the_others(database: Path) -> None:
    result = predict(instances.linear(), H200, None, Budget(60, 2))
    found = {t.config["schedule"]: t.outcome for t in result.trials}
    assert found == {"pipelined": "predicted", "warp_specialised": "predicted"}


def test_what_spills_crashes_or_is_refused_does_not_win(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "compile_one", crimes.compile_or_not)
    result = predict(instances.softmax("f32", M=1000, N=64), targets.get("cpu"), None, Budget(60))
    found = {int(t.config["block_M"]): t.outcome for t in result.trials}
    assert found[crimes.REFUSED] == "compile error"
    assert found[crimes.COMPILER_CRASH] == "crash"
    assert found[crimes.SPILLS] == "rejected"
    assert found[int(result.config["block_M"])] == "predicted"


def test_where_nothing_compiles_that_is_the_error(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "compile_one", crimes.compile_never)
    with pytest.raises(CompileError, match=r"can run on nvidia-h200.*no such instruction"):
        predict(instances.softmax(), H200, None, Budget(60, 3))


def test_predictions_are_where_a_search_on_the_chip_begins(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "compile_one", crimes.compile_or_not)
    instance, cpu = instances.softmax("f32", M=1000, N=64), targets.get("cpu")
    with Store() as store:
        result = predict(instance, cpu, store, Budget(60))
        begun = warm.warm_starts(instance, cpu, store)
    assert begun[0] == result.config
    assert set(begun) == {t.config for t in result.trials if t.outcome == "predicted"}


# ------------------------------------------------------------------ the model
ATTENTION_LIKE: Instance = instances.scores(B=4, H=16, M=4096, N=4096)


def test_more_registers_than_estimated_cost_time() -> None:
    """Fewer blocks then share a core."""
    options = space(ATTENTION_LIKE, H200)
    config = options.first
    costs = [
        model.seconds(options, config, Report("nvidia-h200", str(config), registers=n, spills=0, shared_bytes=20_000))
        for n in (64, 255)
    ]
    assert costs[0] <= costs[1]


def test_cycles_are_believed_where_the_compiler_tells_them() -> None:
    tpu = targets.get("tpu-v6e")
    options = space(instances.softmax(), tpu)
    report = Report("tpu-v6e", "", cycles=int(tpu.clock_hz))
    assert model.seconds(options, options.first, report) == pytest.approx(1.0)


@pytest.mark.parametrize(("share", "held"), [(0.95, True), (0.9, False)])
def test_what_is_held_at_the_peak_is_named(share: float, held: bool) -> None:
    tpu = targets.get("tpu-v5e")
    options = space(instances.linear(M=1024, N=1024, K=1024), tpu)
    cycles = round(2 * 1024**3 / tpu.peak("bf16") / share * tpu.clock_hz)
    told = model.held(options, options.first, Report("tpu-v5e", "", cycles=cycles))
    assert told == ("held at 95% of the peak of tpu-v5e: more is not believed" if held else "")
    assert not model.held(space(instances.linear(), H200), space(instances.linear(), H200).first, Report("", "", registers=64))


def test_of_those_held_at_the_peak_the_first_wins_and_all_are_counted(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cannot be told apart."""
    monkeypatch.setattr(jobs, "compile_one", crimes.compile_at_the_peak)
    result = predict(instances.linear(M=1024, N=1024, K=1024), targets.get("tpu-v6e"), None, Budget(60, 8))
    slower = [t for t in result.trials if t.config["block_K"] == crimes.SLOWER]
    assert slower
    assert not any(t.detail for t in slower)
    assert result.held == len(result.trials) - len(slower) > 1
    assert result.config == result.first
    assert result.speedup == 1.0


@pytest.mark.parametrize(
    ("target", "report", "told"),
    [
        ("nvidia-h200", Report("", "", registers=64, spills=16), "16 spills"),
        (
            "nvidia-h200",
            Report("", "", spills=0, shared_bytes=232_449),
            "232449 bytes of shared memory, nvidia-h200 has 232448",
        ),
        ("nvidia-h200", Report("", "", spills=0, shared_bytes=232_448), ""),
        ("tpu-v6e", Report("", "", vmem_bytes=1 << 40), "bytes of vector memory"),
        ("cpu", Report("", ""), ""),
    ],
)
def test_what_does_not_fit(target: str, report: Report, told: str) -> None:
    misfit = model.misfit(space(instances.softmax(), targets.get(target)), report)
    assert told in misfit
    assert bool(told) == bool(misfit)


def test_ctrl_c_before_anything_is_known_ends_everything(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Crew, "collect", crimes.pressed)
    with pytest.raises(KeyboardInterrupt):
        predict(instances.softmax(), H200, None, Budget(60, 3))
