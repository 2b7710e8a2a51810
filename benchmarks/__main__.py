"""``python -m benchmarks SUITE``: measure kpt against its peers on the GPU at hand.

Candidates of a case run in turns on the same inputs, with cold L2 and warm clocks, so that their ratios mean something. kpt
runs with the configs that dispatch would use (after ``--tune``: the tuned ones); where a case is one kernel, with its first
config too. A peer that is not installed, or fails, is named as missing. What is stopped, by Ctrl-C or SIGTERM, writes the rows
that it has by then; lengths and classes have none before their end.

One needs no GPU, and measures nothing: tpu, what kernels would take on TPUs, predicted from the code that Google's compiler
makes of them (JAX and libtpu are needed); its figures are run on no TPU, and go to a folder for each generation.

Four suites ask something else, in their own way, and take no --tune: host, what a call costs the host; models, what
whole models take, replaced and not; lengths, what programs pay whose lengths change with every call, each in a process of
its own without caches; classes, how far the first configs of classes are from those of each length.
"""

import argparse
import gc
import signal
import sys
import traceback
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.case import Found, OwnSuite, PredictingSuite, Stopping, Suite
from kpt_dsl import KptError

SUITES = (
    "attention",
    "attention_backward",
    "decode",
    "varlen",
    "features",
    "linear",
    "linear_training",
    "heads",
    "fp8",
    "norms",
    "norms_backward",
    "gallery",
    "host",
    "models",
    "lengths",
    "classes",
)
"""On a GPU."""

PREDICTED = ("tpu",)
"""On devices that are not here."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "suites", nargs="+", choices=(*SUITES, *PREDICTED, "all"), help="what to measure; all: on the GPU"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results"), help="folder for NAME.json and NAME.png (default: results)"
    )
    parser.add_argument(
        "--tune", type=float, default=0.0, metavar="SECONDS", help="tune each kernel for so long first, and store it"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="timing a case (default: 1)")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name holds this")
    parser.add_argument("--add", action="store_true", help="keep the rows of other cases that NAME.json has")
    given = parser.parse_args()
    names = list(SUITES) if "all" in given.suites else given.suites
    import torch

    if not torch.cuda.is_available() and not set(names) <= set(PREDICTED):
        print("benchmarks need a CUDA or ROCm device; none is visible to torch", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed = 0
    for name in names:
        suite: Suite | OwnSuite | PredictingSuite = import_module(f"benchmarks.{name}")
        shown = False
        for found in _found(suite, given):
            failed += found.failed
            if found.rows or (found.about and not found.device):
                path = report.write(
                    given.out / found.device, name, suite.TITLE, found.rows, found.picture, found.about, given.add
                )
                print(f"{path} {report.plot(path)}")
                shown = True
            if found.stopped:
                print(f"{name} was stopped", file=sys.stderr)
                return 1
        if not shown and not failed:
            print(f"{name}: no case holds {given.only!r}", file=sys.stderr)
            return 2
    return 1 if failed else 0


def _found(suite: Suite | OwnSuite | PredictingSuite, given: argparse.Namespace) -> Iterable[Found]:
    """What a suite finds: one thing on the GPU at hand, or one for each device that is not here."""
    if hasattr(suite, "predict"):
        return suite.predict(given)
    return [_measure(suite, given) if hasattr(suite, "cases") else suite.measure(given)]


def _measure(suite: Suite, given: argparse.Namespace) -> Found:
    """The rows of a suite. A case that fails costs its own row only."""
    import torch

    from autotune_db import measure
    from benchmarks import timing
    from kpt_dsl import targets

    target = targets.of_device(torch.cuda.get_device_name())
    if target is None:
        raise KptError(f"no target describes {torch.cuda.get_device_name()}; see docs/add-a-target.md")
    clock = measure.clock(target)
    rows: list[dict[str, Any]] = []
    failed = 0
    with clock.on_its_stream(), timing.chooser(given.tune) as choose, Stopping() as cases:
        for name, make in suite.cases():
            if given.only not in name:
                continue
            try:
                rows.append(timing.row(make(), target, clock, choose, given.seconds))
                print(timing.line(rows[-1]), flush=True)
            except Exception:  # whatever kpt's side raises; the other cases are worth having
                failed += 1
                print(f"{name} failed", file=sys.stderr)
                traceback.print_exc()
            gc.collect()
            torch.cuda.empty_cache()
    return Found(rows, failed, stopped=cases.stopped)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KptError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(2)
