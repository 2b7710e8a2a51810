"""Drawn kernels in CI: three minutes of them on one core, others on every run.

The seed stands in the header of pytest, ``KPT_PROGRAMS_SEED`` gives it again; what fails is printed as a module with a command.
"""

import os
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from kpt_dsl.emit import numpy as numpy_emitter
from tests.programs.campaign import RUN, Found, Plan, again, campaign, summary
from tests.programs.faults import FAULTS
from tests.programs.meaning import meaning
from tests.programs.program import Call, Program, Tensor, read
from tests.programs.runs import BACKENDS

TESTS, SECONDS = 6, 30.0
"""Tests, and how long each draws: three minutes of one core together."""


def failure(found: Found, plan: Plan) -> str:
    command = f"python -m tests.programs --seed {plan.seed} --from {found.run} --programs {RUN}"
    return f"{found.told}\n\nAgain: {command}\nOr this module, saved as FILE: python -m tests.programs FILE\n\n" + (
        found.program.module(found.told)
    )


@pytest.mark.parametrize("number", range(TESTS))
def test_drawn_programs(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(int(os.environ["KPT_PROGRAMS_SEED"]) + number)
    report = campaign(plan, 1 << 20, time.monotonic() + SECONDS)
    print(f"{report.tally.programs} programs\n{summary(report)}")
    if report.found:
        pytest.fail("\n\n".join(failure(found, plan) for found in report.found.values()), pytrace=False)
    assert not report.silent


FINDS = sorted((Path(__file__).parent / "finds").glob("*.py"))
"""Programs that failed once."""


@pytest.mark.parametrize("file", FINDS, ids=[f.stem for f in FINDS])
def test_what_was_found_once(file: Path) -> None:
    again(file)


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_can_be_put_back(name: str) -> None:
    """``python -m tests.programs.faults`` asks the generator to find it."""
    with ExitStack() as stack:
        assert [stack.enter_context(each) for each in FAULTS[name]()]


def test_a_planted_fault_is_found_and_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Least elements that are largest ones."""
    right = numpy_emitter._Emitter._reduce  # type: ignore[attr-defined]

    def wrong(self: object, node: object) -> tuple[str, int]:
        text, place = right(self, node)
        return text.replace("np.min(", "np.max("), place

    monkeypatch.setattr(numpy_emitter._Emitter, "_reduce", wrong)
    for first in range(0, 20 * RUN, RUN):
        report = campaign(Plan(1, ("numpy",)), RUN, time.monotonic() + 100, first)
        if report.found:
            break
    [found] = report.found.values()
    assert "wrong elements" in found.told
    assert len(found.program.text.splitlines()) <= 16, found.program.text


TEXT = """import kpt_dsl as kd

@kd.kernel(x="M N", ids="P", y="P N")
def drawn(x: kd.In, ids: kd.In, y: kd.Out, flag: kd.Static) -> None:
    for p in kd.parallel("P"):
        row = x[ids[p], :]
        top = kd.full([], -kd.inf)
        for n in kd.sequential(kd.tile("N")):
            top = kd.maximum(top, kd.max(x[ids[p], n], axis=0))
        if flag is True:
            y[p, :] = kd.where(row == top, row * 2.0, kd.sum(row, axis=0) // 1 if False else -row)
"""


def program() -> Program:
    x, ids = Tensor("x", ("M", "N"), "f32"), Tensor("ids", ("P",), "i32", fill="index", most=5)
    tensors = (x, ids, Tensor("y", ("P", "N"), "f32", role="out"))
    return Program(TEXT, Call(tensors, {"M": 5, "N": 7, "P": 3}, statics={"flag": True}))


def test_the_meaning_of_a_kernel_is_what_python_makes_of_it() -> None:
    here = program()
    held = here.call.values()
    row = held["x"][held["ids"]]
    found = meaning(here, {"flag": True}, {}, {})["y"]
    np.testing.assert_array_equal(found.values, np.where(row == row.max(1, keepdims=True), 2 * row, -row))
    assert found.written.all()
    assert not meaning(here, {"flag": False}, {}, {})["y"].written.any()


def test_a_program_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "find.py"
    file.write_text(program().module("it failed\nhere"))
    assert read(file) == program()
    again(file, BACKENDS)
