"""Configs of classes against those of each length: which are timed, and what is made of it. Interpreters are what is timed."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from autotune_db import measure
from benchmarks import classes, report
from kpt_dsl import targets
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config
from tests.classes.test_classes import LENGTHS

H200, CLOCK = targets.get("nvidia-h200"), measure.clock(targets.get("cpu"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[Instance]:
    """Of length 130 attention has two binaries, of length 40 a product two configs of one; all else has equal configs."""
    ops = {
        "flash_attention": ({"H": 2, "G": 2, "D": 128}, {}),
        "linear_act": ({"K": 64, "N": 80}, {}),
        "rms_norm": ({"N": 24}, {}),
    }
    monkeypatch.setattr(classes, "OPS", ops)
    return classes.problems((3, 40, 130), (1,), H200)


def compared(every: list[Instance]) -> Any:
    return classes.compared(every, H200, "cpu", CLOCK, 0.01)


@pytest.mark.slow
def test_what_differs_is_timed_and_the_rest_counts_as_equal(small: list[Instance], tmp_path: Path) -> None:
    found = compared(small)
    (row,) = found.rows
    assert "flash_attention_fwd[B=1,H=2,M=130" in row["case"]
    times = row["microseconds"]
    assert row["ratio"] == pytest.approx(times["length"] / times["class"], rel=0.01)
    about = found.about
    counts = [about[key] for key in ("problems", classes.SAME_CONFIG, classes.SAME_BINARY, "two binaries", "timed")]
    assert counts == [9, 7, 1, 1, 1]
    assert about["geometric mean of the timed"] == about["worst"] == row["ratio"]
    assert about["geometric mean"] == pytest.approx(row["ratio"] ** (1 / 9), abs=2e-4)
    assert about["kernels"]["rms_norm_fwd"]["geometric mean"] == 1.0
    assert not about["not timed"]
    assert not found.failed
    path = report.write(tmp_path, "classes", classes.TITLE, found.rows, found.picture, found.about)
    assert report.plot(path).stat().st_size


def test_nothing_differs_and_that_is_drawn_too(small: list[Instance], tmp_path: Path) -> None:
    found = compared([problem for problem in small if problem.kernel.name == "rms_norm_fwd"])
    assert not found.rows
    assert found.about["geometric mean"] == 1.0
    path = report.write(tmp_path, "classes", classes.TITLE, found.rows, found.picture, found.about)
    assert report.plot(path).stat().st_size


def test_what_is_not_compiled_or_too_late_is_named(
    small: list[Instance], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = next(p for p in small if p.kernel.name == "flash_attention_fwd" and p.extents.dim("M") == 130)
    two = classes.Two(Config(block_M=16), Config(block_M=32), ("one", "other"))
    monkeypatch.setattr(classes, "Crew", nullcontext)
    monkeypatch.setattr(classes, "_choices", lambda *_: [two])
    monkeypatch.setattr(classes, "_compile", lambda *_: {"other": "error: CompileError too large"})
    found = compared([pair])
    assert (found.failed, found.about["timed"]) == (1, 0)
    assert found.about["not timed"] == [{"case": str(pair), "why": "error: CompileError too large"}]
    monkeypatch.setattr(classes, "_compile", lambda *_: {})
    monkeypatch.setattr(classes, "TIMING_SECONDS", -1.0)
    found = compared([pair])
    assert found.about["not timed"] == [{"case": str(pair), "why": classes.LATE}]
    assert not found.failed
    assert f"1 not timed: {classes.LATE}" in capsys.readouterr().out


def test_the_lengths_are_those_that_binaries_are_counted_over() -> None:
    assert list(classes.LENGTHS) == LENGTHS
    every = classes.problems((1, 131072), (1, 64), H200)
    assert {problem.kernel.name for problem in every} > {"flash_attention_dkdv", "layer_norm_bwd", "linear_act_bwd_dw"}
    assert len(set(map(str, every))) <= len(every) == len(set(every))
    assert min(map(classes._bytes, every)) < classes.MOST_BYTES < max(map(classes._bytes, every))
