"""Writes ``table.json`` anew: ``python -m tests.replacement``. With ``--every`` all types of Transformers that build are looked
at instead, compiled as well. What differs is said, and kept out of the table; exits with 1 then."""

import argparse
import os
import sys
import traceback

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests import architectures
from tests.replacement import table
from tests.replacement.judge import judge
from tests.replacement.models import OTHERS, TRANSFORMERS, subject


def every(name: str) -> architectures.Verdict:
    """What replacing makes of any type."""
    try:
        found = subject(name)
        found.call(found.model)
    except Exception as error:  # no model, or none that runs on what these tests have for it
        return architectures.Verdict(name, False, str(error))
    verdict = architectures.Verdict(name, True)
    try:
        row = judge(found, compiled=True)
        verdict.replaced, verdict.served = bool(row["replaced"]), sum(row["served"].values())
        verdict.note, verdict.cases["all"] = str(row["replaced"]), "equal"
    except AssertionError as error:
        said = str(error) or traceback.extract_tb(error.__traceback__)[-1].line
        verdict.cases["all"] = f"WRONG: {said}"
    except Exception as error:
        verdict.cases["all"] = f"failed: {type(error).__name__}: {error}"
    return verdict


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.replacement", description=__doc__)
    parser.add_argument("--every", action="store_true", help="all types that build; writes nothing")
    if parser.parse_args(arguments).every:
        return architectures.report(architectures.names(), every)
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
