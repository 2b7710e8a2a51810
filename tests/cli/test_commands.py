"""Each command on good input, for people and for scripts."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autotune_db.store import Store
from kpt.cli import select
from kpt_dsl import targets
from tests.autotune_db.entries import entry, key, stored
from tests.autotune_db.problems import linear, softmax
from tests.cli.conftest import Command

SOFTMAX = ("--kernel", "tests.autotune_db.kernels:softmax", "--shapes", "M=1000,N=64", "--dtype", "f32")


def test_help_teaches(tune: Command) -> None:
    done = tune("--help")
    assert done.code == 0
    for word in ("run", "targets", "list", "show", "explain", "export", "import", "doctor", "--preset", "Exit codes"):
        assert word in done.out
    for command in ("run", "list", "show", "explain", "export", "import"):
        assert "kpt-tune " + command in tune(command, "--help").out


def test_run_tunes_a_strangers_kernel_and_the_others_show_it(tune: Command, database: Path) -> None:
    done = tune("run", *SOFTMAX, "--target", "cpu", "--trials", "3", "--processes", "1", "--json")
    assert done.code == 0, done.err
    assert done.err == ""
    (result,) = json.loads(done.out)["results"]
    assert result["provenance"] == "measured"
    assert sum(result["trials"].values()) == 3
    assert 0 < result["microseconds"] <= result["first_microseconds"]
    assert result["key"]["shape"] == {"M": "513..1024", "N": 64}

    (listed,) = json.loads(tune("list", "--json").out)
    assert listed["id"] == result["id"]
    assert listed["config"] == result["config"]
    shown = json.loads(tune("show", result["id"][:6], "--json").out)
    assert len(shown["trials"]) == 3
    (explained,) = json.loads(tune("explain", *SOFTMAX, "--target", "cpu", "--json").out)
    assert explained["known from"] == "measured"
    assert explained["config"] == result["config"]
    for words in (("list",), ("show", result["id"])):
        assert "softmax" in tune(*words).out
    assert "known from    measured" in tune("explain", *SOFTMAX, "--target", "cpu").out


def test_run_predicts_for_a_chip_that_is_not_here(tune: Command) -> None:
    done = tune("run", *SOFTMAX, "--target", "nvidia-h200", "--offline", "--trials", "2", "--processes", "2")
    assert done.code == 0, done.err
    assert "predicted" in done.out
    assert "2 trials" in done.err
    (explained,) = json.loads(tune("explain", *SOFTMAX, "--target", "nvidia-h200", "--json").out)
    assert explained["known from"] == "predicted"


def test_what_fails_is_told_and_the_rest_is_done(tune: Command) -> None:
    """A row of four million elements is too long to be held whole; one of 64 is not."""
    words = ("--kernel", SOFTMAX[1], "--shapes", "M=64,N=4194304;M=64,N=64", "--trials", "1", "--processes", "1")
    done = tune("run", *words, "--target", "nvidia-a100", "--offline", "--json")
    assert done.code == 1
    found = json.loads(done.out)
    assert len(found["results"]) == 1
    (failure,) = found["failures"]
    assert "N=4194304" in failure["problem"]
    assert "no config" in failure["error"]


def test_ctrl_c_ends_with_130_and_what_was_found_is_stored(database: Path) -> None:
    """A signal to the command itself, as a terminal sends it, once its progress tells of a trial."""
    path = os.pathsep.join(p or "." for p in sys.path)
    words = [
        "run",
        "--kernel",
        "tests.autotune_db.kernels:linear",
        "--shapes",
        "M=1024,N=256,K=256",
        "--dtype",
        "f32,bias=none",
    ]
    words += ["--target", "cpu", "--processes", "1", "--budget", "5m"]
    command = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.argv = ['kpt-tune', *{words!r}]; from kpt.cli import main; main()"],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not database.exists() or not trials():
        assert command.poll() is None, command.communicate()
    os.killpg(command.pid, signal.SIGINT)
    out, err = command.communicate(timeout=120)
    assert command.returncode == 130, err
    assert "Traceback" not in err
    assert "linear" in out
    with Store(read_only=True) as store:
        assert len(store.entries()) == 1


def trials() -> int:
    from kpt_dsl.errors import StoreError

    try:
        with Store(read_only=True) as store:
            return len(store.trials())
    except StoreError:  # being made
        return 0


def test_what_cannot_be_stored_is_told(tune: Command, database: Path) -> None:
    """The table goes away after the database was opened; the winner is printed all the same."""
    import sqlite3

    Store().close()
    with sqlite3.connect(database) as connection:
        connection.execute("DROP TABLE kpt_winners")
        connection.execute("CREATE TABLE kpt_winners (other INTEGER)")
    done = tune("run", *SOFTMAX, "--target", "cpu", "--trials", "1", "--processes", "1")
    assert done.code == 1
    assert "block_M" in done.out
    assert "kpt-tune: not stored: " in done.err


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_targets_are_listed(words: tuple[str, ...], tune: Command) -> None:
    done = tune("targets", *words)
    assert done.code == 0
    for name in targets.names():
        assert name in done.out
    if words:
        assert [target["name"] for target in json.loads(done.out)] == list(targets.names())


def test_list_selects(tune: Command) -> None:
    assert "no entries" in tune("list").out
    stored(entry(), entry(linear(), device="NVIDIA H100 PCIe"))
    assert len(json.loads(tune("list", "--json").out)) == 2
    (found,) = json.loads(tune("list", "--kernel", "SOFT", "--json").out)
    assert found["key"]["kernel"] == key().kernel
    (found,) = json.loads(tune("list", "--device", "h100", "--json").out)
    assert found["key"]["device"] == "NVIDIA H100 PCIe"


def test_show_wants_one_key(tune: Command) -> None:
    stored(entry(), *(entry(softmax(N=n)) for n in range(1, 40)))
    first = min(json.loads(tune("list", "--json").out), key=lambda found: found["id"])["id"]
    assert tune("show", first).code == 0
    assert "keys have an id that begins with ''" in tune("show", "").err


def test_export_and_import_carry_everything(tune: Command, tmp_path: Path) -> None:
    stored(entry(), entry(linear()), entry(softmax(N=8), origin="predicted"))
    text = tune("export").out
    assert tune("export", "-o", str(tmp_path / "all.json")).code == 0
    assert (tmp_path / "all.json").read_text() == text
    other = str(tmp_path / "other.sqlite")
    assert tune("import", str(tmp_path / "all.json"), "--db", other).out == "3 entries imported\n"
    assert tune("export", "--db", other).out == text
    assert len(json.loads(tune("list", "--json", "--db", other).out)) == 3
    assert '"predicted"' not in tune("export", "--measured").out
    assert '"linear' not in tune("export", "--kernel", "softmax").out


def test_doctor_is_content(tune: Command) -> None:
    done = tune("doctor")
    assert done.code == 0
    for word in ("python", "torch", "triton", "optuna", "jax", "libtpu", "device", "database", "cache folder"):
        assert word in done.out
    stored(entry())
    checks = {check["name"]: check for check in json.loads(tune("doctor", "--json").out)}
    assert checks["database"]["state"] == "ok"
    assert "1 winners and 0 trials for NVIDIA H200" in checks["database"]["found"]


def test_doctor_misses_what_is_needed(tune: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from autotune_db import environment

    real = environment.version
    versions = {"optuna": "absent", "triton": "3.5.1", "jax": "absent"}
    monkeypatch.setattr(environment, "version", lambda package: versions.get(package) or real(package))
    done = tune("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.out)}
    assert done.code == 1
    assert (checks["optuna"]["state"], checks["optuna"]["remedy"]) == ("fault", "pip install optuna")
    assert checks["triton"]["state"] == "fault"
    assert "3.6 or newer" in checks["triton"]["remedy"]
    assert checks["jax"]["state"] == "note"


@pytest.mark.parametrize(("target", "ways"), [("tpu-v6e", 1), ("nvidia-h200", 2)])
def test_of_several_ways_a_target_gets_those_that_it_can_go(target: str, ways: int, tune: Command) -> None:
    """TPUs cannot add to an output, so the way that does is not tuned for them, and nothing fails."""
    words = ["--op", "flash_attention_backward", "--shapes", "B=1,H=1,G=1,M=128,N=128,D=128", "--target", target]
    explained = tune("explain", *words, "--json")
    keys = [one["problem"] for one in json.loads(explained.out)]
    assert explained.code == 0
    assert sum("flash_attention_dkdv" in key for key in keys) == ways
    assert sum("flash_attention_scale" in key for key in keys) == ways - 1


def test_presets_are_models_that_have_shapes() -> None:
    found = select.presets()
    assert {"llama-8b", "minilm"} <= set(found)
    h200 = targets.get("nvidia-h200")
    problems = select.problems([], None, "llama-8b", [], [], [], h200)
    assert len(problems) == len(set(problems))
    assert {"flash_attention_fwd", "linear_act_fwd"} <= {problem.kernel.name for problem in problems}
    only = select.problems(["linear_act"], None, "llama-8b", [], ["f16"], [], h200)
    assert {problem.kernel.name for problem in only} == {"linear_act_fwd"}
    assert {dtype for problem in only for _, dtype in problem.dtypes if dtype} == {"f16"}
