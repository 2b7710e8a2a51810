"""The cache on disk: whole entries or none, shared by processes, bounded, and never in the way."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kpt_dsl.build import cache
from kpt_dsl.build.cache import Entry
from tests.emit_triton.support import linear_problem
from tests.emit_triton.test_build import SMALL, compiled


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    return tmp_path


def test_an_entry_is_written_once_and_read_back(folder: Path) -> None:
    entry = Entry("reports", "key")
    assert entry.get_json("report.json") is None
    assert entry.put({"report.json": '{"a": 1}', "source.py": "x"}) == (
        ("report", str(folder / "reports/key/report.json")), ("source", str(folder / "reports/key/source.py")),
    )  # fmt: skip
    entry.put({"report.json": '{"a": 2}'})
    assert entry.get_json("report.json") == {"a": 1}
    assert [p.name for p in (folder / "reports").iterdir()] == ["key"]


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"'])
def test_a_garbled_entry_is_no_entry(folder: Path, text: str) -> None:
    (folder / "reports/key").mkdir(parents=True)
    (folder / "reports/key/report.json").write_text(text)
    assert Entry("reports", "key").get_json("report.json") is None


def test_a_garbled_report_is_compiled_again(folder: Path) -> None:
    problem = linear_problem(64, 64, 64)
    first = compiled(problem, **SMALL)
    (file,) = folder.glob("triton-reports/*/report.json")
    file.write_text(json.dumps({"forms": {}, "unknown": 1}))
    assert compiled(problem, **SMALL).registers == first.registers


def test_the_oldest_entries_go_first(folder: Path) -> None:
    for age in range(4):
        Entry("reports", f"key{age}").put({"text": "x" * 1000})
        os.utime(folder / f"reports/key{age}", (1e9 - age, 1e9 - age))
    assert Entry("reports", "key3").get_json("text") is None  # not JSON, but used
    os.utime(folder / "reports/key3")
    cache.prune(3500)
    assert sorted(p.name for p in (folder / "reports").iterdir()) == ["key0", "key3"]
    cache.prune(3500)
    assert len(list((folder / "reports").iterdir())) == 2


def test_a_folder_that_cannot_be_used_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv(cache.VARIABLE, str(blocked / "cache"))
    monkeypatch.setattr(cache, "_warned", False)
    with caplog.at_level(logging.WARNING, logger="kpt"):
        assert compiled(linear_problem(64, 64, 64, "f16"), **SMALL).registers
        assert compiled(linear_problem(64, 64, 64, "f16"), **SMALL).registers
    assert len([r for r in caplog.records if "cache folder cannot be used" in r.message]) == 1


def test_processes_share_it(folder: Path) -> None:
    code = (
        "from tests.emit_triton.test_build import compiled, SMALL\n"
        "from tests.emit_triton.support import linear_problem\n"
        "print(compiled(linear_problem(64, 64, 96), **SMALL).registers)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    children = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    printed = {child.communicate(timeout=120)[0].strip() for child in children}
    assert all(child.returncode == 0 for child in children)
    assert len(printed) == 1 and next(iter(printed)).isdigit()
    assert len(list(folder.glob("triton-reports/*"))) == 1
