"""Files of results that are made by several commands."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from kpt_dsl import KptError


def rows(path: Path) -> dict[str, Any]:
    return {row["case"]: row for row in json.loads(path.read_text())["rows"]}


def test_rows_of_other_cases_stay_and_say_when_they_were_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", "models", "--only", "a", "--out", "x"])
    path = report.write(tmp_path, "tiny", "Tiny", [{"case": "a", "rate": 1}, {"case": "b", "rate": 2}])
    first = json.loads(path.read_text())["date"]
    monkeypatch.setattr("sys.argv", ["benchmarks", "models", "--only", "b", "--add"])
    report.write(tmp_path, "tiny", "Tiny", [{"case": "b", "rate": 3}], add=True)
    found = rows(path)
    assert [(case, row["rate"]) for case, row in found.items()] == [("a", 1), ("b", 3)]
    assert (found["a"]["date"], found["a"]["command"]) == (first, "python -m benchmarks models --only a")
    assert found["b"]["command"] == "python -m benchmarks models --only b --add"
    monkeypatch.setattr("sys.argv", ["benchmarks", "models", "--only", "c", "--add"])
    report.write(tmp_path, "tiny", "Tiny", [{"case": "c", "rate": 4}], add=True)
    assert rows(path)["b"] == found["b"]


def test_rows_of_another_device_are_not_mixed_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = report.write(tmp_path, "tiny", "Tiny", [{"case": "a", "rate": 1}])
    before = path.read_text()
    monkeypatch.setattr(report, "device", lambda: "another")
    with pytest.raises(KptError, match=r"has device .* and here it is another"):
        report.write(tmp_path, "tiny", "Tiny", [{"case": "b", "rate": 1}], add=True)
    assert path.read_text() == before
