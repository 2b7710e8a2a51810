"""Bad input: one clear message that names what is wrong and what is accepted, exit code 2, no traceback."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from autotune_db import engine
from autotune_db.store import Store
from tests.autotune_db.entries import entry, stored
from tests.cli.conftest import Command

NORM = ("--op", "layer_norm", "--shapes", "M=8,N=16")
CPU = ("--target", "cpu")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("run", *CPU), "say which kernels: --op NAME, --kernel PACKAGE.MODULE:KERNEL, --preset NAME"),
        (("run", *NORM, "--kernel", "a:b", *CPU), "say which kernels"),
        (
            ("run", "--op", "layer_nrom", "--shapes", "M=8,N=16", *CPU),
            "unknown op 'layer_nrom'; did you mean layer_norm",
        ),
        (("run", "--op", "layer_norm", *CPU), "no --shapes"),
        (("run", "--op", "layer_norm", "--shapes", "M=8", *CPU), "layer_norm: dims are M, N"),
        (("run", "--op", "layer_norm", "--shapes", "M=8,N=16,K=3", *CPU), "layer_norm: dims are M, N"),
        (("run", "--op", "layer_norm", "--shapes", "M8", *CPU), "'M8' is not NAME=VALUE"),
        (("run", *NORM, "--dtype", "bf17", *CPU), "'bf17'"),
        (("run", *NORM, "--flags", "causal=true", *CPU), "layer_norm has no flags ['causal']"),
        (("run", *NORM, "--budget", "soon", *CPU), "--budget 'soon' is not a duration"),
        (("run", *NORM, "--target", "nvidia-h20"), "unknown target 'nvidia-h20'; did you mean nvidia-h200"),
        (("run", *NORM, "--device", "7"), "--device 7: this machine has"),
        (("run", "--preset", "llama-9b", *CPU), "unknown preset 'llama-9b'; did you mean llama-8b"),
        (("run", "--preset", "llama-8b", "--shapes", "M=8,N=16", *CPU), "--preset brings its own shapes"),
        (
            ("run", "--preset", "vit-l", "--op", "flash_attention", *CPU),
            "preset 'vit-l' has no shapes for flash_attention",
        ),
        (("run", "--kernel", "nowhere:kernel", "--shapes", "M=8", *CPU), "'nowhere:kernel' cannot be imported"),
        (("run", "--kernel", "nowhere", "--shapes", "M=8", *CPU), "not of the form package.module:kernel"),
        (("run", "--kernel", ".relative:one", "--shapes", "M=8", *CPU), "'.relative:one' cannot be imported: TypeError"),
        (("run", *NORM, "--flags", "a=1,a=2", *CPU), "--flags 'a=1,a=2': a is given twice"),
        (("run", "--kernel", "json:dumps", "--shapes", "M=8", *CPU), "not a function decorated with @kd.kernel"),
        (("run", "--kernel", "tests.autotune_db.kernels:softmax", "--shapes", "M=8", *CPU), "no extent for N"),
        (("explain", *NORM, "--target", "h200"), "unknown target 'h200'"),
        (("show", "abc"), "no entry has an id that begins with 'abc'"),
        (("import", "/nowhere.json"), "/nowhere.json cannot be read"),
        (("export", "-o", "/nowhere/file.json"), "--output /nowhere/file.json: No such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_one_message_and_exit_code_2(words: tuple[str, ...], told: str, tune: Command) -> None:
    done = tune(*words)
    assert done.code == 2
    assert done.err.startswith("kpt-tune: ")
    assert told in done.err
    assert len(done.err.splitlines()) == 1
    assert done.out == ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("raise RuntimeError('no table')", "RuntimeError: no table"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def (", "SyntaxError: invalid syntax (strange.py, line 1)"),
        ("import kpt_dsl as kd\n\n@kd.kernel(x='M')\ndef kernel(x): pass", "strange.py:4: "),
    ],
)
def test_a_module_that_cannot_be_imported_costs_a_line(
    text: str, told: str, tune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "strange.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    done = tune("run", "--kernel", "strange:kernel", "--shapes", "M=8", *CPU)
    assert (done.code, done.out) == (2, "")
    assert told in done.err


@pytest.mark.parametrize(
    "words",
    [("bogus",), ("run", "--bogus"), ("run", *NORM, "--trials", "0"), ("run", *NORM, "--seed", "-1"), ("import",)],
    ids=" ".join,
)
def test_usage_errors_have_exit_code_2_too(words: tuple[str, ...], tune: Command) -> None:
    done = tune(*words)
    assert done.code == 2
    assert "Error" in done.err


def test_without_a_gpu_a_target_is_asked_for(tune: Command) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = tune("run", *NORM)
    assert (done.code, done.err) == (
        2,
        "kpt-tune: there is no GPU here: name the chip to tune for with --target, as in --target nvidia-h200\n",
    )


# ------------------------------------------------------------------ databases that cannot be used
def corrupt(path: Path) -> str:
    path.write_bytes(b"This is no database." * 100)
    return "file is not a database; move the file away"


def foreign(path: Path) -> str:
    sqlite3.connect(path).execute("CREATE TABLE bookmarks (url TEXT)")
    return "is a database of another program (tables bookmarks)"


def newer(path: Path) -> str:
    Store(str(path)).close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE kpt_schema SET version = 2")
    return "was written by another version of kpt (schema 2, this kpt knows 1); upgrade kpt"


@pytest.mark.parametrize("damage", [corrupt, foreign, newer])
@pytest.mark.parametrize(
    "words", [("run", *NORM, *CPU), ("list",), ("show", "a"), ("export",)], ids=lambda words: words[0]
)
def test_a_database_that_cannot_be_used(damage, words: tuple[str, ...], tune: Command, database: Path) -> None:  # type: ignore[no-untyped-def]
    database.parent.mkdir()
    told = damage(database)
    before = database.read_bytes()
    done = tune(*words)
    assert done.code == 2
    assert told in done.err
    assert len(done.err.splitlines()) == 1
    assert database.read_bytes() == before


def test_a_locked_database(tune: Command, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "WAIT_SECONDS", 0.1)
    stored(entry())
    tune("export", "-o", str(tmp_path / "file.json"))
    holder = sqlite3.connect(database, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    done = tune("import", str(tmp_path / "file.json"))
    assert done.code == 2
    assert "locked; another process holds it" in done.err
    assert len(done.err.splitlines()) == 1


def test_a_file_with_a_fault_is_not_imported_at_all(tune: Command, database: Path, tmp_path: Path) -> None:
    stored(entry())
    file = tmp_path / "file.json"
    tune("export", "-o", str(file))
    sound = file.read_text()
    file.write_text(sound.replace('"origin": "measured"', '"origin": "guessed"'))
    (tmp_path / "sound.json").write_text(sound)
    done = tune("import", str(tmp_path / "sound.json"), str(file))
    assert done.code == 2
    assert "kernel 1, entry 1" in done.err
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM kpt_winners").fetchone() == (1,)


def test_doctor_tells_of_a_database_that_cannot_be_used(tune: Command, database: Path) -> None:
    database.parent.mkdir()
    corrupt(database)
    done = tune("doctor")
    assert done.code == 1
    assert "fault  database" in done.out
    assert "not a database" in done.out
