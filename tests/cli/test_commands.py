"""Each command on good input, for people and for scripts."""

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import sqlalchemy as sa
import torch

import kpt
from autotune_db import shipped
from autotune_db.store import Store
from kpt.cli import select
from kpt.cli.run import _stopping_as_ctrl_c_does
from kpt_dsl import targets
from kpt_dsl.errors import StoreError
from kpt_dsl.space import Config
from tests.autotune_db.entries import entry, key, stored
from tests.autotune_db.instances import linear, softmax
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
    assert listed["extents"] == shown["entries"][0]["extents"] == {"M": 1000, "N": 64}
    assert explained["at"] == "M=1000"
    for words in (("list",), ("show", result["id"]), ("explain", *SOFTMAX, "--target", "cpu")):
        assert re.search(r"\bM=1000\b", tune(*words).out)


def test_run_predicts_for_a_chip_that_is_not_here(tune: Command) -> None:
    done = tune("run", *SOFTMAX, "--target", "nvidia-h200", "--offline", "--trials", "2", "--processes", "2")
    assert done.code == 0, done.err
    assert "predicted" in done.out
    assert "2 trials" in done.err
    (explained,) = json.loads(tune("explain", *SOFTMAX, "--target", "nvidia-h200", "--json").out)
    assert explained["known from"] == "predicted"


def test_what_a_program_calls_is_compiled_and_tuned(
    tune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KPT_CACHE_DIR", str(tmp_path / "cache"))
    with kpt.ops.recording() as calls:
        kpt.ops.rms_norm(torch.ones(700, 64), (64,), torch.ones(64))
    calls.save(tmp_path / "calls.json")
    words = ("--calls", str(tmp_path / "calls.json"), "--target", "nvidia-h200", "--processes", "1")
    done = tune("warm", *words)
    assert done.code == 0, done.err
    assert re.search(r"[1-9] binaries of 1 kernels for nvidia-h200 in .* s, in .*cache", done.out)
    assert "compiling" in done.err and any((tmp_path / "cache" / "triton").iterdir())
    found = json.loads(tune("warm", *words, "--json").out)
    assert found["binaries"] >= 1 and found["failed"] == []

    done = tune("run", *words, "--offline", "--trials", "1")
    assert done.code == 0, done.err
    assert "rms_norm" in done.out
    done = tune("run", *words, "--offline", "--trials", "1")
    assert "1 of 1 kernels are known and skipped" in done.err
    refused = tune("warm", *words, "--op", "rms_norm")
    assert refused.code == 2 and "--calls, as --model, brings its own ops" in refused.err


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


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_closed_outputs_are_not_written_to(closed: str, tune: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of ``kpt-tune doctor >&-``: Python then has None in their place."""
    monkeypatch.setattr(sys, closed, None)
    assert tune("doctor").code in (0, 1), "whatever it finds, which is told by its code alone"
    getattr(sys, closed).close()


def test_a_stop_that_comes_while_a_connection_is_closed_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    engine = sa.create_engine("sqlite://", poolclass=sa.NullPool)

    def stopped() -> int:
        caplog.clear()
        with patch.object(engine.dialect, "do_close", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            engine.connect().close()
        return len(caplog.records)

    assert stopped() == 1
    with _stopping_as_ctrl_c_does():
        assert stopped() == 0
    assert stopped() == 1


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_stop_ends_with_its_code_and_what_was_found_is_stored(
    stop: signal.Signals, code: int, database: Path
) -> None:
    """A signal to all processes, as a terminal or a scheduler sends it, once there is a trial."""
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
    for process in [command.pid, *children_of(command.pid)]:
        os.kill(process, stop)
    out, err = command.communicate(timeout=120)
    assert command.returncode == code, err
    assert "Traceback" not in err
    assert "linear" in out
    with Store(read_only=True) as store:
        assert len(store.entries()) == 1


def children_of(parent: int) -> list[int]:
    """The processes that one has started, by the system's own list."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def trials() -> int:
    try:
        with Store(read_only=True) as store:
            return len(store.trials())
    except StoreError:  # being made
        return 0


def test_what_cannot_be_stored_is_told(tune: Command, database: Path) -> None:
    """The table goes away after the database was opened; the winner is printed all the same."""
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


def test_what_goes_wrong_between_keys_costs_that_key(tune: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from autotune_db import warm

    troubles = iter([OSError("no more processes"), StoreError("no answer"), RuntimeError("of a driver")])
    sound = warm.warm_starts

    def warm_starts(*arguments: Any) -> list[Config]:
        for trouble in troubles:
            raise trouble
        return sound(*arguments)

    monkeypatch.setattr(warm, "warm_starts", warm_starts)
    shapes = ("--shapes", "M=64,N=64;M=64,N=128;M=64,N=256;M=64,N=512")
    words = ("--kernel", SOFTMAX[1], *shapes, "--dtype", "f32", "--target", "cpu", "--trials", "1", "--processes", "1")
    done = tune("run", *words, "--json")
    assert done.code == 1
    found = json.loads(done.out)
    assert [failure["error"] for failure in found["failures"]] == [
        "OSError('no more processes')", "no answer", "RuntimeError('of a driver')"
    ]  # fmt: skip
    (result,) = found["results"]
    assert result["key"]["shape"]["N"] == 512


def test_modules_of_the_current_folder_do_not_run_in_place_of_others(
    tune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel of the current folder is tuned; what lies beside it under the name of a package is not imported by anyone."""
    planted = "import pathlib; pathlib.Path({!r}).write_text('ran')"
    for name in ("json", "numpy", "torch", "optuna", "autotune_db", "kpt_dsl", "sitecustomize", "usercustomize"):
        (tmp_path / f"{name}.py").write_text(planted.format(str(tmp_path / f"{name}-ran")))
    (tmp_path / "stranger.py").write_text(
        "import kpt_dsl as kd\n\n"
        '@kd.kernel(x="M N", out="M N")\n'
        "def double(x: kd.In, out: kd.Out) -> None:\n"
        '    for m in kd.parallel(kd.tile("M")):\n'
        "        out[m, :] = x[m, :] * 2.0\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    # An empty part of it is the current folder.
    monkeypatch.setenv("PYTHONPATH", os.pathsep + os.environ.get("PYTHONPATH", ""))
    words = ("--kernel", "stranger:double", "--shapes", "M=64,N=64", "--dtype", "f32", "--target", "cpu")
    done = tune("run", *words, "--trials", "2", "--processes", "1", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["results"][0]["trials"] == {"timed": 2}
    assert not list(tmp_path.glob("*-ran"))


def test_remove_forgets_winners_and_keeps_trials(tune: Command, database: Path) -> None:
    stored(entry(config=Config(block_M=1, num_warps=1)), entry(), entry(softmax(N=8)))
    done = tune("remove", key(softmax(N=8)).digest[:10])
    assert (done.code, done.out) == (0, "1 winners removed\n")
    done = tune("remove", key().digest)
    assert (done.code, done.out) == (0, "1 winners removed (2 rows, with earlier ones)\n")
    assert tune("list").out.startswith("no entries")
    assert tune("remove", key().digest).code == 2
    assert tune("remove").code == 2


def test_what_is_imported_is_told_apart_and_removed_apart(tune: Command, database: Path, tmp_path: Path) -> None:
    stored(entry(config=Config(block_M=1, num_warps=1)))
    (tmp_path / "file.json").write_text(shipped.dump([entry(), entry(softmax(N=8))]))
    assert tune("import", str(tmp_path / "file.json")).code == 0
    found = json.loads(tune("list", "--json").out)
    assert [(one["imported"], one["config"]["block_M"]) for one in found] == [(False, 1), (True, 4), (True, 4)]
    assert "imported measured" in tune("list").out
    exported = shipped.parse(tune("export").out, "exported")
    assert {(one.key, one.config["block_M"]) for one in exported} == {(key(), 1), (key(softmax(N=8)), 4)}
    assert tune("remove", "--imported").out == "2 winners removed\n"
    assert [one["imported"] for one in json.loads(tune("list", "--json").out)] == [False]


def test_damaged_rows_are_told_of_and_can_be_removed(tune: Command, database: Path) -> None:
    stored(entry(), entry(softmax(N=8)))
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE kpt_winners SET config = '[' WHERE id = 1")
    done = tune("list")
    assert done.code == 0
    assert "N=8" in done.out
    assert done.err == f"kpt-tune: {database}: 1 damaged rows left out; see `kpt-tune doctor`\n"
    assert "winners 1: not JSON" in tune("doctor").out
    assert tune("remove", "--damaged").out == "0 winners removed\n1 damaged rows removed\n"
    assert tune("list").err == ""


def test_passwords_are_not_printed(tune: Command, caplog: pytest.LogCaptureFixture) -> None:
    places = (
        "postgresql+psycopg://me:se/cr?et@127.0.0.1:1/kpt", "postgresql://me:s%65cret@127.0.0.1:1/kpt?connect_timeout=1",
        "postgresql+psycopg://127.0.0.1:1/kpt?user=me&password=secret", "postgresql://me:secret@host:port/kpt",
        "postgres:/me:secret@127.0.0.1/kpt", "mysql://me:secret@127.0.0.1/kpt", "nonsense://me:secret@127.0.0.1/kpt",
    )  # fmt: skip
    for place in places:
        for words in (("list",), ("doctor",), ("doctor", "--json"), ("export",), ("remove", "a")):
            done = tune(*words, "--db", place)
            assert "Traceback" not in done.err
            for shown in (done.out, done.err, caplog.text):
                assert not {"secret", "s%65cret", "se/cr?et", "cr?et"} & set(re.split(r"[:@&= '\"]", shown))


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
    instances = select.instances([], None, "llama-8b", [], [], [], h200)
    assert len(instances) == len(set(instances))
    assert {"flash_attention_fwd", "linear_act_fwd"} <= {instance.kernel.name for instance in instances}
    only = select.instances(["linear_act"], None, "llama-8b", [], ["f16"], [], h200)
    assert {instance.kernel.name for instance in only} == {"linear_act_fwd"}
    assert {dtype for instance in only for _, dtype in instance.specialisation.dtypes if dtype} == {"f16"}
