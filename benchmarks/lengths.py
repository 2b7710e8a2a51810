"""What programs pay whose lengths change with every call: ops alone, a small model's prompts, its training; eager and compiled.

Each candidate has a process of its own, which begins without any cache: kpt's, Triton's, Inductor's and the database are in
folders that are empty. Those with a "warm disk" begin anew with the folders that the same program left. Imports are done and
collected, the device and cuBLAS are up and torch.compile has compiled a sum before the first call. Processes get ready beside
each other and are measured one at a time.
"""

import os
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from autotune_db.crew import Crew
from benchmarks import programs
from benchmarks.case import Found
from benchmarks.programs import Program, Scale, Side, Times
from benchmarks.report import Picture
from training.model import Size

TITLE = "Lengths that change with every call, all together"

PICTURE = Picture("milliseconds", "ms", logarithmic=True)

WARM = ", warm disk"

READY_SECONDS, MEASURED_SECONDS = 180.0, 120.0
"""For one process to get ready, and to be measured."""

SUITE_SECONDS = 400.0
"""Candidates whose turn comes later are not measured, and named."""

MOST_READY = 8
"""Processes that are ready at the same time, half a gigabyte of the device each; and no more than half the cores."""

MODEL = Size(layers=2, width=1024, heads=16, kv_heads=4, hidden=2816, length=4096)


def _drawn(count: int, seed: int) -> tuple[int, ...]:
    """Different lengths from 100 to 2999."""
    return tuple((100 + torch.randperm(2900, generator=torch.Generator().manual_seed(seed))[:count]).tolist())


FULL = {
    "ops": Scale(2048, 32, 8, 64, MODEL, _drawn(24, 11), 100),
    "prompts": Scale(2048, 32, 8, 64, MODEL, _drawn(24, 12), 100),
    "training": Scale(2048, 32, 8, 64, MODEL, _drawn(16, 13), 50),
}


@dataclass(frozen=True)
class Candidate:
    """One process: a program with its caches in a folder. ``name``: within the case."""

    case: str
    name: str
    program: Program
    folder: str


def measure(given: Namespace) -> Found:
    """Two rows a case: of lengths when they are new, and again."""
    cases = {
        f"{name} {'compiled' if compiled else 'eager'}": Program(name, "PyTorch", compiled)
        for compiled in (False, True)
        for name in programs.PROGRAMS
    }
    return compared({case: program for case, program in cases.items() if given.only in case}, FULL)


def compared(cases: Mapping[str, Program], scales: Mapping[str, Scale], seconds: float = SUITE_SECONDS) -> Found:
    """The rows of cases: each program on both sides, at the scale of its name."""
    until = time.monotonic() + seconds
    found: dict[str, dict[str, Times]] = {case: {} for case in cases}
    missing: dict[str, dict[str, str]] = {case: {} for case in cases}
    with tempfile.TemporaryDirectory(prefix="kpt-lengths-") as folder:
        waiting = [c for case, program in cases.items() for c in _candidates(case, program, folder)]
        ready_at_once = max(1, min(MOST_READY, (os.cpu_count() or 1) // 2))
        for begin in range(0, len(waiting), ready_at_once):
            for candidate, times in _measured(waiting[begin : begin + ready_at_once], scales, until):
                if candidate.name.removesuffix(WARM) in missing[candidate.case]:
                    times = "the program that was to fill its disk has no times"
                if isinstance(times, Times):
                    found[candidate.case][candidate.name] = times
                    print(_line(candidate, times), flush=True)
                else:
                    missing[candidate.case][candidate.name] = times
                    print(f"{candidate.case}: {candidate.name} is missing: {times}", file=sys.stderr, flush=True)
    rows = [row for case, times in found.items() if times for row in _rows(case, times, missing[case])]
    failed = sum(name.startswith("kpt") for names in missing.values() for name in names)
    about = {"lengths": {case: scales[program.name].lengths for case, program in cases.items()}} if rows else {}
    return Found(rows, failed, about, PICTURE)


def _candidates(case: str, program: Program, folder: str) -> Iterator[Candidate]:
    """Those with a warm disk behind those that warm it; eager PyTorch keeps nothing there."""
    sides: tuple[Side, ...] = ("PyTorch", "kpt")
    for side in sides:
        place = str(Path(folder, f"{case}-{side}".replace(" ", "-")))  # Inductor puts paths into commands as they are
        for name in (side, side + WARM) if side == "kpt" or program.compiled else (side,):
            yield Candidate(case, name, replace(program, side=side), place)


def _measured(
    candidates: Sequence[Candidate], scales: Mapping[str, Scale], until: float
) -> Iterator[tuple[Candidate, Times | str]]:
    """The times of each, or why there are none. All get ready together; then each is measured while the others wait."""
    with ExitStack() as stack:
        crews = [stack.enter_context(Crew(1)) for _ in candidates]
        for crew, c in zip(crews, candidates, strict=True):
            if time.monotonic() < until:
                crew.submit(
                    c.name, programs.prepare, c.program, scales[c.program.name], c.folder, seconds=READY_SECONDS
                )
                crew.collect(0.0)  # which starts the process
        ready = [_answer(crew) if crew.unfinished else "no time was left" for crew in crews]
        for crew, c, trouble in zip(crews, candidates, ready, strict=True):
            if trouble is None and time.monotonic() >= until:
                trouble = "no time was left"
            if trouble is None:
                crew.submit(c.name, programs.measure, seconds=MEASURED_SECONDS)
                yield c, _answer(crew)
            else:
                yield c, trouble
            crew.close()  # and what it held of the device is free


def _answer(crew: Crew) -> Any:
    """What the one job of a crew gives; a string that says what became of it where it gives nothing."""
    while True:
        for reply in crew.collect(1.0):
            trouble = " ".join(f"{reply.failure}: {reply.kind} {reply.detail}".split())
            return trouble[:600] if reply.failure else reply.value


def _rows(case: str, found: Mapping[str, Times], missing: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    def each(value: Callable[[Times], object]) -> dict[str, object]:
        return {name: value(times) for name, times in found.items()}

    new: dict[str, Any] = {
        "case": f"{case}, new",
        "milliseconds": each(lambda t: _ms(sum(t.new))),
        "worst": each(lambda t: _ms(max(t.new))),
        "median": each(lambda t: _ms(median(t.new))),
        "microseconds of a further length over the same call again": each(
            lambda t: None if t.further is None else round(t.further, 1)
        ),
        "binaries": {
            name: {"compiled": t.compiled, "found": t.found, "compiled for further lengths": t.compiled_further}
            for name, t in found.items()
            if name.startswith("kpt")
        },
        "each": each(lambda t: [_ms(ms) for ms in t.new]),
        "missing": missing,
    }
    if any(t.graphs for t in found.values()):
        new["graphs"] = each(lambda t: t.graphs)
    yield new
    yield {
        "case": f"{case}, again",
        "milliseconds": each(lambda t: _ms(sum(t.again))),
        "worst": each(lambda t: _ms(max(t.again))),
        "median": each(lambda t: _ms(median(t.again))),
    }


def _ms(milliseconds: float) -> float:
    return round(milliseconds, 3)


def _line(candidate: Candidate, times: Times) -> str:
    """A candidate for the terminal."""
    further = "" if times.further is None else f"; a further length costs {times.further:.0f} us more than a known one"
    made = f"; {times.compiled} binaries compiled, {times.found} found" if candidate.name.startswith("kpt") else ""
    graphs = f"; {times.graphs} graphs" if candidate.program.compiled else ""
    return (
        f"{candidate.case:<18} {candidate.name:<18} new {sum(times.new):9.1f} ms (worst {max(times.new):8.1f}, median "
        f"{median(times.new):7.2f}), again {sum(times.again):7.1f} (median {median(times.again):6.2f}){made}{graphs}{further}"
    )
