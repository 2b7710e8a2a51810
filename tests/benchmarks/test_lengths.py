"""What programs of changing lengths are timed by, tiny and on a CPU: the calls, the processes, the rows."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import lengths, programs, report
from benchmarks.programs import Program, Scale, Side
from kpt.ops import registry
from kpt_dsl import targets
from kpt_dsl.build import triton as build
from kpt_dsl.classes import options
from kpt_dsl.emit import emit
from training.model import Size

TINY = Scale(16, 4, 2, 8, Size(1, 32, 2, 1, 40, 64), (5, 9, 17, 33, 12), 2)
ON_CPU = Program("ops", "PyTorch", False, "cpu", "aot_eager", "numpy")


@pytest.fixture
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for variable in (*programs.FOLDERS, programs.DATABASE):
        monkeypatch.setenv(variable, "")  # and what it was comes back
    return str(tmp_path)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("side", ["PyTorch", "kpt"])
@pytest.mark.parametrize("name", programs.PROGRAMS)
def test_each_program_runs_on_either_side(name: str, side: Side, compiled: bool, own_folders: str) -> None:
    """In one graph for all lengths where it is compiled."""
    torch._dynamo.reset()
    programs.prepare(replace(ON_CPU, name=name, side=side, compiled=compiled), TINY, own_folders)
    times = programs.measure()
    assert len(times.new) == len(times.again) == 5
    assert min(times.new + times.again) > 0
    assert times.further is not None
    assert times.graphs == int(compiled)
    assert times.compiled == times.found == times.compiled_further == 0


def test_both_sides_compute_the_same(own_folders: str) -> None:
    with torch.no_grad():
        tokens = torch.randint(256, (1, 33))
        ours, theirs = (programs._model(replace(ON_CPU, side=side), TINY)(tokens) for side in ("kpt", "PyTorch"))
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.02)


def test_binaries_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton.knobs.compilation, "listener", None)
    monkeypatch.setenv("KPT_CACHE_DIR", str(tmp_path))
    (problem,) = registry.get("rms_norm").instances({"M": 40, "N": 24}, "bf16")
    chip = targets.get("nvidia-h200")
    source = emit(problem, chip, options(problem, chip).first)
    heard: list[bool] = []
    programs.listen(heard)
    for _ in range(2):
        build.binary.cache_clear()  # as in a new process
        build.binary(source, chip.arch, chip.warp_lanes)
    assert heard == [False, True]


@pytest.mark.slow
def test_every_candidate_has_a_process_and_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that fails is missing, with the one that was to find its disk warm, and costs nothing else."""
    found = lengths.compared({"good": ON_CPU, "bad": replace(ON_CPU, name="bad")}, {"ops": TINY, "bad": TINY})
    assert [row["case"] for row in found.rows] == ["good, new", "good, again"]
    for row in found.rows:
        assert row["milliseconds"].keys() == row["median"].keys() == {"PyTorch", "kpt", "kpt, warm disk"}
    assert found.rows[0]["binaries"].keys() == {"kpt", "kpt, warm disk"}
    assert found.failed == 2
    printed = capsys.readouterr()
    assert "bad: PyTorch is missing: error: KeyError" in printed.err
    assert "no times" in printed.err
    path = report.write(tmp_path, "lengths", lengths.TITLE, found.rows, found.picture, found.about)
    assert report.plot(path).stat().st_size


def test_when_time_is_over_the_rest_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    found = lengths.compared({"late": replace(ON_CPU, compiled=True)}, {"ops": TINY}, seconds=0.0)
    assert not found.rows
    assert found.failed == 2
    assert capsys.readouterr().err.count("no time was left") == 2


def test_lengths_are_what_they_are_said_to_be() -> None:
    """Different ones, that the model has room for; the ops' as many as the case that is judged by."""
    for scale in lengths.FULL.values():
        assert len(set(scale.lengths)) == len(scale.lengths) >= 16
        assert min(scale.lengths) >= 100
        assert max(scale.lengths) < scale.size.length
        assert scale.size.heads % scale.size.kv_heads == scale.heads % scale.kv_heads == 0
    assert len(lengths.FULL["ops"].lengths) == 24
