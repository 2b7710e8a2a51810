"""Draws calls of all ops and holds their answers to float64: ``python -m tests.calls --calls 30000 --jobs 2``.

Each call has a number, and the number makes it: ``python -m tests.calls --first 4711 --calls 1`` makes it again. Wrong ones are
printed as they are found; exits with 1 if there are any.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from tests.calls.draw import OPS
from tests.calls.judge import some

CPU = ("numpy",) * 10 + ("unasked",) * 4 + ("triton",) * 5 + ("pallas",) + ("reference",) * 2
GPU = ("unasked", "unasked", "unasked", "reference")
SHARE = 25
"""Calls that a worker takes at once."""


def shares(first: int, calls: int) -> Iterator[tuple[int, int]]:
    """Numbers of calls, a share at a time."""
    for start in range(first, first + calls, SHARE):
        yield start, min(SHARE, first + calls - start)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.calls", description=__doc__)
    parser.add_argument("--calls", type=int, default=1000, help="how many numbers (1000)")
    parser.add_argument("--first", type=int, default=None, help="number of the first call (by default of the clock)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin none after this time")
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--ops", default=",".join(OPS), help="those of these ops alone; numbers of others are passed over")
    parser.add_argument("--backends", default=None, help="some of numpy,triton,pallas,reference,unasked")
    given = parser.parse_args(arguments)
    first = int(time.time()) % 10**8 * 10 if given.first is None else given.first
    backends = tuple(given.backends.split(",")) if given.backends else CPU if given.device == "cpu" else GPU
    print(f"calls from number {first} on, {given.device}, {', '.join(sorted(set(backends)))}", flush=True)

    began = told = time.monotonic()
    made: Counter[str] = Counter()
    fallbacks: Counter[str] = Counter()
    ops = tuple(given.ops.split(","))
    wrong = 0
    ahead = shares(first, given.calls)
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        running: dict[Future[list[tuple[str, str | None]]], tuple[int, int]] = {}
        while True:
            while len(running) < given.jobs + 1 and time.monotonic() - began < given.seconds:
                if (share := next(ahead, None)) is None:
                    break
                running[pool.submit(some, *share, given.device, backends, ops)] = share
            if not running:
                break
            for one in wait(running, return_when=FIRST_COMPLETED).done:
                share = running.pop(one)
                if isinstance(one.exception(), BrokenProcessPool):
                    print(
                        f"A process died in --first {share[0]} --calls {share[1]}, or one of {list(running.values())}"
                    )
                    return 1
                calls, fell = one.result()
                fallbacks += fell
                for call, found in calls:
                    made[call.split(": ", 1)[1].split("(")[0]] += 1
                    if found is not None:
                        wrong += 1
                        print(f"WRONG {call}\n      {found}", flush=True)
            if time.monotonic() - told > 10:
                told = time.monotonic()
                print(f"{made.total()} calls, {wrong} wrong, {made.total() / (told - began):.1f} a second", flush=True)
    by_op = ", ".join(f"{op} {count}" for op, count in sorted(made.items()))
    for reason, times in fallbacks.most_common():
        print(f"PyTorch served {times} of {2 * made.total()}: {reason}")
    print(f"{made.total()} calls ({by_op}), {wrong} wrong, {time.monotonic() - began:.0f} s")
    return bool(wrong)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:  # configs of whoever runs this are none of its business
        os.environ.setdefault("KPT_DB", str(Path(folder) / "configs.db"))
        sys.exit(main())
