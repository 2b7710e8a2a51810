"""``python -m benchmarks SUITE``: measure kpt against its peers on the GPU at hand.

Candidates of a case run in turns on the same inputs, with cold L2 and warm clocks, so that their ratios mean something. kpt
runs once with its first config and once with the config that dispatch would use (after ``--tune``: the tuned one).
"""

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.case import Case
from kpt_dsl import KptError

SUITES = ("attention", "linear", "fp8", "norms", "host")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("suites", nargs="+", choices=(*SUITES, "all"), help="what to measure")
    parser.add_argument(
        "--out", type=Path, default=Path("results"), help="folder for NAME.json and NAME.png (default: results)"
    )
    parser.add_argument(
        "--tune", type=float, default=0.0, metavar="SECONDS", help="tune each case for so long first, and store it"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="timing a case (default: 1)")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name holds this")
    given = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("benchmarks need a CUDA or ROCm device; none is visible to torch", file=sys.stderr)
        return 2
    for name in SUITES if "all" in given.suites else given.suites:
        suite = import_module(f"benchmarks.{name}")
        rows = suite.measure() if name == "host" else _measure(suite.cases, given)
        if not rows:
            print(f"{name}: no case holds {given.only!r}", file=sys.stderr)
            return 2
        path = report.write(given.out, name, suite.TITLE, rows)
        print(f"{path} {report.plot(path)}")
    return 0


def _measure(cases: Callable[[], Any], given: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for make in cases():
        case: Case = make()
        if given.only in case.name:
            rows.append(_row(case, given.tune, given.seconds))
            print(_line(rows[-1]), flush=True)
    return rows


def _row(case: Case, tune_seconds: float, seconds: float) -> dict[str, Any]:
    import torch

    from autotune_db import measure
    from kpt_dsl import configs, runtime, targets
    from kpt_dsl.space import space

    target = targets.of_device(torch.cuda.get_device_name())
    if target is None:
        raise KptError(f"no target describes {torch.cuda.get_device_name()}; see docs/add-a-target.md")
    chosen, provenance = configs.choose(case.problem, target)
    if tune_seconds:
        from autotune_db.budget import Budget
        from autotune_db.store import Store
        from autotune_db.tune import tune

        with Store() as store:
            chosen = tune(case.problem, target, store, budget=Budget(seconds=tune_seconds), warm=[chosen]).config
        provenance = "measured"
    first = space(case.problem, target).first
    launches: dict[str, Callable[[], object]] = {
        "kpt first": runtime.launcher(case.problem, dict(case.arrays), first, target),
        "kpt": runtime.launcher(case.problem, dict(case.arrays), chosen, target),
        **case.peers,
    }
    clock = measure.clock(target)
    ready = [clock.prepare(launch) for launch in launches.values()]
    taken = dict(zip(launches, measure.medians(clock, ready, seconds), strict=True))
    peers = {name: t for name, t in taken.items() if name in case.peers and name not in case.bound}
    best = min(peers, key=peers.__getitem__)
    return {
        "case": case.name,
        "problem": str(case.problem),
        "unit": case.unit,
        "microseconds": {name: round(t, 2) for name, t in taken.items()},
        "rate": {name: round(case.rate(t), 1) for name, t in taken.items()},
        "best peer": best,
        "ratio": round(taken[best] / taken["kpt"], 4),
        "ratio first": round(taken[best] / taken["kpt first"], 4),
        "config": dict(chosen),
        "config from": provenance,
        "first config": dict(first),
    }


def _line(row: dict[str, Any]) -> str:
    rates = "  ".join(f"{name} {rate:.0f}" for name, rate in row["rate"].items())
    return f"{row['case']:<28} {row['unit']:<8} {rates}  | kpt / {row['best peer']}: {row['ratio']:.3f} ({row['config from']})"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KptError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(2)
