"""``python -m tests.programs``: draw programs and run them on every backend; or run files again that it wrote."""

import argparse
import os
import secrets
import sys
import time
from collections import deque
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tensors are tiny, and every core has a process of its own

from tests.programs.campaign import Plan, Report, again, campaign, in_processes, progress, summary, written
from tests.programs.kernels import TAGS
from tests.programs.runs import BACKENDS, Finding


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.programs", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="programs that were written as modules, to run again")
    parser.add_argument("--seed", type=int, help="a number; drawn and printed if not given")
    parser.add_argument("--programs", type=int, default=2000, help="how many")
    parser.add_argument(
        "--from", type=int, default=0, dest="first", help="the number of the first, as a failure names it"
    )
    parser.add_argument("--minutes", type=float, default=1e6, help="stop then, if there are more")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="only this one; may be repeated")
    parser.add_argument("--pallas-every", type=int, default=4, help="XLA compiles each program: every how many (4)")
    parser.add_argument("--without", action="append", default=[], choices=TAGS, metavar="TAG", help=", ".join(TAGS))
    parser.add_argument("--no-shrink", action="store_true", help="report what fails as it was drawn")
    parser.add_argument("--out", type=Path, default=Path("build/programs"), help="folder for what fails")
    given = parser.parse_args()
    backends = tuple(given.backend or BACKENDS)
    if given.files:
        return run_again(given.files, backends)
    number = secrets.randbelow(1 << 31) if given.seed is None else given.seed
    plan = Plan(number, backends, {"pallas": given.pallas_every}, frozenset(given.without), not given.no_shrink)
    print(f"seed {number}", flush=True)
    started = time.monotonic()
    seconds = given.minutes * 60

    def tell(report: Report) -> None:
        progress(report, started)
        deque(written(report, given.out), maxlen=0)  # what was found stays where somebody stops this

    if given.jobs > 1:
        report = in_processes(plan, given.programs, seconds, given.jobs, given.first, tell)
    else:
        report = campaign(plan, given.programs, started + seconds, given.first, tell)
    passed = time.monotonic() - started
    print(f"\n{report.tally.programs} programs in {passed:.0f} s\n{summary(report)}")
    for line in [*written(report, given.out), *report.silent]:
        print(line)
    return 1 if report.found or report.died or report.silent else 0


def run_again(files: list[Path], backends: tuple[str, ...]) -> int:
    wrong = 0
    for file in files:
        try:
            tally = again(file, backends)
        except Finding as finding:
            wrong += 1
            print(f"{file}: {finding}", *getattr(finding, "__notes__", []), sep="\n  ")
        else:
            served, refused = (", ".join(x) or "none" for x in (tally.served, tally.rightly))
            print(f"{file}: served by {served}, rightly refused by {refused}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
