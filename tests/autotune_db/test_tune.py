"""A tuning from end to end on the device that every machine has: NumPy. Candidates that misbehave cost their own trial only."""

import os
import signal
import sqlite3
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from autotune_db import environment, jobs, lookup, tune
from autotune_db.bench import Bench
from autotune_db.budget import Budget
from autotune_db.ledger import Progress
from autotune_db.result import Result
from autotune_db.store import Store
from autotune_db.trial import Trial
from autotune_db.workshop import Workshop
from kpt.ops import registry
from kpt_dsl import targets
from kpt_dsl.errors import CompileError, InputError, MissingPackageError
from kpt_dsl.space import Config, space
from tests.autotune_db import crimes, instances

CPU = targets.get("cpu")
INSTANCE = instances.softmax("f32", M=1000, N=64)
FIRST = Config(block_M=1024)


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed is not what most of these tests are about."""
    monkeypatch.setattr(tune, "Bench", crimes.MadeUpBench)


def tuned(seconds: float = 60.0, trials: int = 50, **more: Any) -> Result:
    with Store() as store, Workshop(1) as workshop:
        return tune.tune(INSTANCE, CPU, store, budget=Budget(seconds, trials), workshop=workshop, **more)


def outcomes(result: Result) -> dict[int, str]:
    return {int(trial.config["block_M"]): trial.outcome for trial in result.trials}


def test_the_space_of_these_tests() -> None:
    options = space(INSTANCE, CPU)
    assert options.first == FIRST
    assert sorted(int(c["block_M"]) for c in options) == [16, 32, 64, 128, 256, 512, 1024]


def test_a_key_is_tuned_stored_and_looked_up(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "Bench", Bench)  # all of it in earnest
    seen: list[Progress] = []
    result = tuned(watch=seen.append)
    assert result.origin == "measured"
    assert outcomes(result) == dict.fromkeys((16, 32, 64, 128, 256, 512, 1024), "timed")
    assert result.trials[0].config == result.first == FIRST
    assert result.microseconds is not None
    assert result.first_microseconds is not None
    assert result.microseconds <= result.first_microseconds
    assert not result.interrupted
    assert not result.unsaved
    with Store(read_only=True) as store:
        (entry,) = store.entries()
        assert [t.trial for t in store.trials(result.key)] == list(result.trials)
        assert store.trials()[0].environment["compiler"].startswith("numpy ")
    assert (entry.key, entry.config, entry.origin) == (result.key, result.config, "measured")
    assert entry.extents == (("M", 1000), ("N", 64))
    answer = lookup.choose(INSTANCE, CPU)
    assert (answer.config, answer.provenance) == (result.config, "measured")
    assert [p.trials for p in seen if p.stage == "search"] == [1, 2, 3, 4, 5, 6, 7]
    assert [p.stage for p in seen[-2:]] == ["verify", "final"]


def test_misbehaving_candidates_cost_their_own_trial(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "Bench", crimes.CriminalBench)
    monkeypatch.setattr(tune, "TIME_SECONDS", 1.0)
    result = tuned()
    assert outcomes(result) == {
        crimes.CRASHES: "crash",
        crimes.HANGS: "timeout",
        crimes.FAULTS: "out of memory",
        crimes.LIES: "wrong result",
        crimes.FASTEST: "timed",
        512: "timed",
        1024: "timed",
    }
    assert result.config == Config(block_M=crimes.FASTEST)
    assert (result.microseconds, result.first_microseconds) == (50.0, 100.0)
    with Store(read_only=True) as store:
        kept = store.trials(result.key)
    assert len(kept) == 8  # the wrong one was timed before it was found wrong
    details = {int(t.trial.config["block_M"]): t.trial.detail for t in kept if t.trial.outcome != "timed"}
    assert "signal 11" in details[crimes.CRASHES]
    assert "no answer in 1 s" in details[crimes.HANGS]
    assert "3 GiB" in details[crimes.FAULTS]
    assert "against float64" in details[crimes.LIES]


def test_what_does_not_compile_or_spills_is_not_timed(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "compile_one", crimes.compile_or_not)
    result = tuned()
    found = outcomes(result)
    assert found[crimes.REFUSED] == "compile error"
    assert found[crimes.COMPILER_CRASH] == "crash"
    assert found[crimes.SPILLS] == "rejected"
    assert result.config == Config(block_M=crimes.FASTEST)


def test_a_winner_that_does_not_win_the_final_round_is_none(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "Bench", crimes.WorseOnSecondSight)
    result = tuned()
    assert result.config == FIRST
    assert result.microseconds == result.first_microseconds == 100.0


def test_a_tie_goes_to_the_first_config(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "MARGIN", 0.6)
    assert tuned().config == FIRST


def test_a_first_config_that_is_wrong_does_not_win(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "Bench", crimes.FirstIsWrong)
    result = tuned()
    assert result.config == Config(block_M=crimes.FASTEST)
    assert result.first_microseconds is None
    assert outcomes(result)[1024] == "wrong result"


def test_no_config_that_is_right_is_an_error(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "Bench", crimes.AllAreWrong)
    with pytest.raises(CompileError, match=r"no config of softmax .* runs correctly.*NaN"):
        tuned()
    with Store(read_only=True) as store:
        assert store.entries() == []
        assert len(store.trials()) == 14


@pytest.mark.parametrize(
    ("compiler", "error", "told"),
    [
        (crimes.compile_never, CompileError, "no such instruction"),
        (crimes.compile_without_compiler, MissingPackageError, "pip install triton"),
    ],
)
def test_a_compiler_that_does_nothing_is_an_error(
    compiler: Any, error: type[Exception], told: str, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "compile_one", compiler)
    with pytest.raises(error, match=told):
        tuned()


def test_a_bench_that_cannot_be_set_up_is_an_error_at_once(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "Bench", crimes.NoDevice)
    with pytest.raises(CompileError, match=r"cannot start: .*300 GiB"):
        tuned()


def test_a_bench_whose_package_is_missing_says_so(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "Bench", crimes.NoPackage)
    with pytest.raises(MissingPackageError, match="the package jax"):
        tuned()


def test_budgets_end_the_search(database: Path) -> None:
    assert len(tuned(trials=3).trials) == 3
    started = time.monotonic()
    result = tuned(seconds=0.1)
    assert time.monotonic() - started < 30
    assert result.trials[0].config == FIRST  # however short the budget, something is known


def test_ctrl_c_keeps_what_was_found(database: Path) -> None:
    """The first trial is awaited, then Ctrl-C is pressed; the rest of the tuning takes place."""
    pressed = threading.Event()

    def watch(now: Progress) -> None:
        if now.stage == "search" and now.trials == 2 and not pressed.is_set():
            pressed.set()
            os.kill(os.getpid(), signal.SIGINT)

    result = tuned(watch=watch)
    assert pressed.is_set()
    assert result.interrupted
    assert 2 <= len(result.trials) < 7
    with Store(read_only=True) as store:
        assert [e.config for e in store.entries()] == [result.config]


def test_ctrl_c_before_anything_is_known_ends_everything(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not this key only, as a fault of its configs would."""
    monkeypatch.setattr(tune._Hunt, "run", crimes.pressed)
    with pytest.raises(KeyboardInterrupt):
        tuned()


def test_warm_starts_come_right_after_the_first_config(database: Path) -> None:
    result = tuned(trials=2, warm=[Config(block_M=7), Config(block_M=32)])
    assert [t.config for t in result.trials] == [FIRST, Config(block_M=32)]


def test_every_way_to_compute_has_its_first_config_tried(database: Path) -> None:
    """Before anything is drawn: a schedule or an algorithm that chance would find late."""
    instance = registry.get("layer_norm").instances({"M": 8, "N": 64}, "f32")[0]
    firsts = space(instance, CPU).firsts
    assert {c["whole_row"] for c in firsts} == {True, False}
    with Workshop(1) as workshop:
        result = tune.tune(instance, CPU, None, budget=Budget(60.0, 2), workshop=workshop)
    assert [t.config for t in result.trials] == list(firsts)


def test_a_database_that_fails_midway_does_not_end_the_tuning(database: Path) -> None:
    """The table of trials disappears while the tuner is at work: it goes on, and says so at the end."""

    def watch(now: Progress) -> None:
        if now.trials == 2:
            with sqlite3.connect(database) as connection:
                connection.execute("DROP TABLE kpt_trials")

    result = tuned(trials=4, watch=watch)
    assert len(result.trials) == 4
    assert "no such table" in result.unsaved


def test_a_database_that_comes_back_gets_everything(database: Path) -> None:
    def watch(now: Progress) -> None:
        with sqlite3.connect(database) as connection:
            if now.trials == 2:
                connection.execute("ALTER TABLE kpt_trials RENAME TO away")
            if now.stage == "final":
                connection.execute("ALTER TABLE away RENAME TO kpt_trials")

    result = tuned(trials=4, watch=watch)
    assert not result.unsaved
    with Store(read_only=True) as store:
        assert [t.trial for t in store.trials()] == list(result.trials)
        assert len(store.entries()) == 1


def test_tuning_again_adds_and_loses_nothing(database: Path) -> None:
    first, second = tuned(trials=2), tuned(trials=3)
    with Store(read_only=True) as store:
        assert len(store.trials()) == 5
        assert [e.config for e in store.entries()] == [second.config]
    assert first.key == second.key


def test_without_elements_there_is_nothing_to_tune(database: Path) -> None:
    with pytest.raises(InputError, match="M is 0"):
        tune.tune(instances.softmax(M=0), CPU, None, budget=Budget())


def test_a_workshop_serves_one_key_after_another(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same processes, each key with a bench of its own, and nothing of the first one's work left to the second."""
    started: list[Any] = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **more: started.append(words) or popen(*words, **more))
    monkeypatch.setattr(tune, "Bench", Bench)
    other = instances.softmax("f32", M=500, N=96)
    with Store() as store, Workshop(1) as workshop:
        tune.tune(INSTANCE, CPU, store, budget=Budget(60, 2), workshop=workshop)
        assert len(started) == 2
        found = tune.tune(other, CPU, store, budget=Budget(60, 3), workshop=workshop)
    assert len(started) == 2
    assert [t.outcome for t in found.trials] == ["timed"] * 3  # verified, on arrays of its own shape
    assert found.microseconds is not None


def test_what_crashed_or_hung_is_not_tried_again_in_the_same_environment(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "Bench", crimes.CriminalBench)
    monkeypatch.setattr(tune, "TIME_SECONDS", 1.0)
    tuned()
    again = outcomes(tuned())
    assert set(again) == {crimes.FAULTS, crimes.LIES, crimes.FASTEST, 512, 1024}
    sound = environment.describe
    monkeypatch.setattr(environment, "describe", lambda target: sound(target) | {"driver": "newer"})
    assert crimes.HANGS in outcomes(tuned())


def test_the_first_config_is_tried_whatever_it_did_before(database: Path) -> None:
    with Store() as store:
        result = tuned(trials=1)
        run = store.start_run(result.key, "measured", environment.describe(CPU))
        store.add_trial(run, Trial(FIRST, "crash"))
    assert FIRST in [trial.config for trial in tuned(trials=2).trials]


def test_a_config_that_still_compiles_when_the_search_ends_is_remembered(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "compile_one", crimes.compile_and_hang)
    monkeypatch.setattr(jobs, "HANG_SECONDS", 1.0)
    found = outcomes(tuned(seconds=12.0))
    assert found[crimes.COMPILER_HANG] == "timeout"
    assert crimes.COMPILER_HANG not in outcomes(tuned(seconds=12.0))
