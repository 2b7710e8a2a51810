"""Many programs: drawn in runs of hypothesis, each with a seed of its own, in one process or several.

What fails is shrunk once for each kind of finding and written as a module that runs by itself.
"""

import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from unittest.mock import patch

import hypothesis.errors
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.programs.kernels import Programs
from tests.programs.program import Program
from tests.programs.runs import BACKENDS, Finding, Tally, check

RUN = 40
"""Programs of one run of hypothesis."""
RUNNING = "running.py"
"""File in a process' own folder that holds what it runs: where a compiler kills the process, the folder is left behind."""

SHRINKING_S = 45.0
"""Longest time for making a failing program small."""

LEAST_SERVED = {"numpy": 0.95, "triton": 0.85, "gluon": 0.01, "pallas": 0.35}
"""Shares of the well-formed programs that a backend was given which it must serve: less, and the generator says nothing of it.
Of Gluon: of all programs, for few have a form for it."""


@dataclass(frozen=True)
class Plan:
    """What to draw and where to run it. ``sparing``: every how many programs a backend is run."""

    seed: int
    backends: tuple[str, ...] = BACKENDS
    sparing: dict[str, int] = field(default_factory=lambda: {"pallas": 4})
    without: frozenset[str] = frozenset()
    shrink: bool = True


@dataclass
class Found:
    """One kind of finding: the smallest program that shows it, how it was told, after how many programs it came, and the number
    of the run that drew it, which draws it again."""

    kind: str
    program: Program
    told: str
    after: int
    run: int
    times: int = 1


@dataclass
class Report:
    tally: Tally = field(default_factory=Tally)
    asked: dict[str, int] = field(default_factory=lambda: dict.fromkeys(BACKENDS, 0))
    found: dict[str, Found] = field(default_factory=dict)
    died: list[str] = field(default_factory=list)
    """The programs, as modules, with which processes died."""

    def add(self, other: "Report") -> None:
        for kind, found in other.found.items():
            if kind in self.found:
                self.found[kind].times += found.times
            else:
                found.after += self.tally.programs
                self.found[kind] = found
        self.tally.add(other.tally)
        for backend, count in other.asked.items():
            self.asked[backend] += count

    @property
    def silent(self) -> list[str]:
        """Backends that served too few programs to say anything, with the share."""
        told = []
        for backend, least in LEAST_SERVED.items():
            asked = self.asked[backend]
            if not self.found and asked >= 200 and self.tally.served[backend] < least * asked:
                told.append(f"{backend} served {self.tally.served[backend]} of {asked} programs, less than {least:.0%}")
        return told


def one_run(plan: Plan, number: int, count: int, folder: Path, report: Report, known: set[str]) -> None:
    """Draw ``count`` programs and run them; the first finding of a new kind ends the run, shrunk."""
    at = {"program": 0, "deadline": 0.0}
    held: dict[str, tuple[Program, str]] = {}
    shrinking: list[str] = []

    def judge(program: Program) -> None:
        if shrinking and time.monotonic() > at["deadline"]:
            return  # the smallest so far is small enough
        here = number + int(at["program"])
        at["program"] += 1
        backends = plan.backends if shrinking else [b for b in plan.backends if here % plan.sparing.get(b, 1) == 0]
        tally = Tally() if shrinking else report.tally
        if not shrinking and not program.call.refused:
            for backend in backends:
                report.asked[backend] += 1
        (folder / RUNNING).write_text(program.module("a process died with it"))
        try:
            check(program, folder, backends, tally)
        except Finding as finding:
            if finding.kind in known:
                report.found[finding.kind].times += not shrinking
                return
            if shrinking and finding.kind != shrinking[0]:
                return
            told = "\n".join([str(finding), *getattr(finding, "__notes__", [])])
            if not plan.shrink:
                report.found[finding.kind] = Found(finding.kind, program, told, report.tally.programs, number)
                known.add(finding.kind)
                return
            held[finding.kind] = program, told
            if not shrinking:
                shrinking.append(finding.kind)
                at["deadline"] = time.monotonic() + SHRINKING_S
                report.found[finding.kind] = Found(finding.kind, program, told, report.tally.programs, number)
            raise

    @seed(plan.seed * 1_000_003 + number)
    @settings(
        max_examples=count, phases=[Phase.generate, Phase.shrink], database=None, deadline=None, derandomize=False,
        report_multiple_bugs=False, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(Programs(plan.without))
    def each(program: Program) -> None:
        judge(program)

    with suppress(Finding, hypothesis.errors.Flaky):
        each()
    for kind, (program, told) in held.items():
        report.found[kind].program, report.found[kind].told = program, told
        known.add(kind)


FOLDERS = "kpt-programs-"


def left_behind() -> list[Path]:
    """What processes ran that died."""
    files = Path(gettempdir()).glob(f"{FOLDERS}*/{RUNNING}")
    return [f for f in files if not Path(f"/proc/{f.parent.name.split('-')[2]}").exists()]


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for modules, and a cache and database of its own; JAX on the CPU."""
    places = {"KPT_DB": "configs.db", "KPT_CACHE_DIR": "cache", "TRITON_CACHE_DIR": "triton"}
    with TemporaryDirectory(prefix=f"{FOLDERS}{os.getpid()}-") as name, patch.dict(os.environ):
        os.environ.update({variable: str(Path(name) / inside) for variable, inside in places.items()})
        yield Path(name)


def campaign(
    plan: Plan, count: int, until: float, first: int = 0, tell: Callable[[Report], None] = lambda _: None
) -> Report:
    """Programs ``first`` to ``first + count`` of a plan, in this process, as many as there is time for."""
    report, known = Report(), set[str]()
    with scratch() as folder:
        for number in range(first, first + count, RUN):
            if time.monotonic() > until:
                break
            one_run(plan, number, min(RUN, first + count - number), folder, report, known)
            tell(report)
    return report


SHARE = 10 * RUN
"""Programs that a process is given at a time."""
SHARES = 4
"""Shares of a process before another takes its place: XLA keeps what it compiled."""


def in_processes(
    plan: Plan, count: int, seconds: float, jobs: int, first: int, tell: Callable[[Report], None]
) -> Report:
    """The same in several processes. Where one dies, what it ran is kept, and the shares of those beside it are not drawn."""
    report, until, earlier = Report(), time.monotonic() + seconds, set(left_behind())
    context = multiprocessing.get_context("spawn")
    for start in range(first, first + count, SHARE * SHARES * jobs):
        end = min(start + SHARE * SHARES * jobs, first + count)
        # A pool each time: one with max_tasks_per_child waits for ever when its processes end together (CPython 115634).
        with ProcessPoolExecutor(jobs, mp_context=context) as pool:
            shares = [pool.submit(campaign, plan, min(SHARE, end - at), until, at) for at in range(start, end, SHARE)]
            for share in as_completed(shares):
                with suppress(BrokenProcessPool):
                    report.add(share.result())
                    tell(report)
        for file in set(left_behind()) - earlier:
            report.died.append(file.read_text())
            shutil.rmtree(file.parent)
        if time.monotonic() > until:
            break
    return report


# ------------------------------------------------------------------ telling
def summary(report: Report) -> str:
    """A table of backends, and why programs were refused."""
    tally = report.tally
    lines = [f"{'backend':<9}{'asked':>7}{'served':>8}{'refused':>9}{'ill-formed':>12}{'s/program':>11}"]
    for backend in BACKENDS:
        refused, asked = sum(tally.refused[backend].values()), report.asked[backend]
        served, rightly = tally.served[backend], tally.rightly[backend]
        each = tally.seconds[backend] / max(1, served + refused + rightly)
        lines.append(f"{backend:<9}{asked:>7}{served:>8}{refused:>9}{rightly:>12}{each:>11.3f}")
    for backend in BACKENDS:
        for why, times in tally.refused[backend].most_common(8):
            lines.append(f"  {backend} refused {times:>5}  {why}")
    return "\n".join(lines)


def written(report: Report, folder: Path) -> Iterator[str]:
    """Every finding as a module in a folder, and what to say of it."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, found in enumerate(sorted(report.found.values(), key=lambda f: f.after)):
        file = folder / f"find_{i}.py"
        file.write_text(found.program.module(found.told))
        again = f"--from {found.run} --programs {RUN}"
        yield f"{file}: after {found.after} programs ({again}), {found.times} times: {found.told.splitlines()[0]}"
    for i, text in enumerate(report.died):
        file = folder / f"died_{i}.py"
        file.write_text(text)
        yield f"{file}: a process died with it, or was ended because one beside it did"


def progress(report: Report, started: float) -> None:
    """One line on stderr, written over where somebody watches."""
    passed = time.monotonic() - started
    programs, found = report.tally.programs, len(report.found)
    told = f"{programs} programs in {passed:.0f} s, {found} kinds of findings"
    watched = sys.stderr.isatty()
    print(f"\r{told} " if watched else told, end="" if watched else "\n", file=sys.stderr, flush=True)


def again(file: Path, backends: Sequence[str] = BACKENDS) -> Tally:
    """Run a program that was written as a module. Raises Finding."""
    from tests.programs.program import read

    tally = Tally()
    with scratch() as folder:
        check(read(file), folder, backends, tally)
    return tally
