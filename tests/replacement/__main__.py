"""Writes ``table.json`` anew: ``python -m tests.replacement``. With ``--every`` all types of Transformers that build are looked
at instead, compiled and under autocast as well; with ``--autocast cuda`` the table's models, under autocast of that device.
What differs is said, and kept out of the table; exits with 1 then."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests import architectures
from tests.replacement import lowered, table
from tests.replacement.judge import Row, alone, judge
from tests.replacement.models import OTHERS, TRANSFORMERS, Subject, subject


def every(name: str) -> architectures.Verdict:
    """What replacing makes of any type."""
    try:
        found = subject(name)
        found.call(found.model)
    except Exception as error:  # no model, or none that runs on what these tests have for it
        return architectures.Verdict(name, False, str(error))
    verdict = architectures.Verdict(name, True)
    row: Row = {"replaced": {}, "served": {}}
    cases = {
        "all": (lambda: row.update(judge(found, compiled=True)), alone),
        "autocast": (lambda: lowered.judge(found, compiled=True), lowered.alone),
    }
    for case, (run, by_itself) in cases.items():
        try:
            run()
            verdict.cases[case] = "equal"
        except Exception as error:
            wrong = "WRONG" if isinstance(error, AssertionError) else "failed"
            verdict.cases[case] = _why_not_judged(name, by_itself) or f"{wrong}: {_said(error)}"
    verdict.replaced, verdict.served, verdict.note = bool(row["replaced"]), sum(row["served"].values()), str(row["replaced"])
    return verdict


def _why_not_judged(name: str, by_itself: Callable[[Subject], object]) -> str | None:
    """What fails of a model that nobody replaced; None where nothing does."""
    try:
        by_itself(subject(name))
    except Exception as error:
        return f"left out: of the model itself: {_said(error)}"
    return None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error) or traceback.extract_tb(error.__traceback__)[-1].line}"


def under_autocast(device: str) -> int:
    """How many models of the table are worse there."""
    wrong = 0
    for name in (*TRANSFORMERS, *OTHERS):
        try:
            lowered.judge(subject(name), device, compiled=True)
            print(f"{name}: as good", flush=True)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            wrong += 1
    return wrong


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.replacement", description=__doc__)
    parser.add_argument("--every", action="store_true", help="all types that build; writes nothing")
    parser.add_argument("--autocast", metavar="DEVICE", help="the table's models under autocast of cpu or cuda; writes nothing")
    given = parser.parse_args(arguments)
    if given.every:
        return architectures.report(architectures.names(), every)
    if given.autocast:
        return 1 if under_autocast(given.autocast) else 0
    rows, wrong = {}, 0
    for name in (*TRANSFORMERS, *OTHERS):
        try:
            rows[name] = judge(subject(name))
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {str(error)[:300]}")
            wrong += 1
    table.write(rows)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
