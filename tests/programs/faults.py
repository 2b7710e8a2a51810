"""``python -m tests.programs.faults``: put back one at a time a fault of each kind that was mended, and tell after how many
drawn programs it is found. All must be, within 2,000. What is rarer is kept as the program that found it, in ``finds``."""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any
from unittest.mock import patch

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from kpt_dsl import arrays, ir
from kpt_dsl.definition import Definition
from kpt_dsl.emit.triton.helpers import HELPERS
from kpt_dsl.frontend.outside import Meaning, Outside
from kpt_dsl.passes import indices, padding
from tests.programs.campaign import RUN, Plan, campaign
from tests.programs.runs import BACKENDS

MOST = 2000
"""Programs within which each fault must be found."""

Back = Callable[[], "list[AbstractContextManager[Any]]"]
"""Gives the patches that put a fault back."""


def helper(name: str, old: str, new: str) -> Back:
    """A function of generated Triton modules, otherwise."""
    text = HELPERS[name]
    assert old in text
    return lambda: [patch.dict(HELPERS, {name: text.replace(old, new)})]


def nothing(*_: object) -> None:
    """What a check does that is not there."""


def by_name(position: int, shape: tuple[ir.Axis, ...]) -> ir.Expr:
    """The mask along the first position that has an axis' name."""
    return right_valid(shape.index(shape[position]), shape)


right_valid = padding.valid
right_now = Outside.now


def unmasked(self: padding._Guard, node: ir.Read, tiles: frozenset[str]) -> tuple[ir.Expr, padding.Pads]:
    """What is gathered, along the padding of its indices too."""
    found, pads = right_read(self, node, tiles)
    return (replace(found, masked=()) if isinstance(found, ir.Gather) else found), pads


right_read = padding._Guard.read


def first_meaning(self: Outside) -> Meaning:
    found: Meaning = self.__dict__.setdefault("_first_meaning", None) or right_now(self)
    self.__dict__["_first_meaning"] = found
    return found


FAULTS: dict[str, Back] = {
    "padding belongs to an axis, not to a position": lambda: [patch.object(padding, "valid", by_name)],
    "bounds of tiles are values": lambda: [patch("kpt_dsl.frontend.lower.check_tiling", nothing)],
    "programs store over each other": lambda: [patch("kpt_dsl.frontend.lower.check_races", nothing)],
    "indices may be of no element": lambda: [
        patch.object(indices._Check, "entry", lambda self, tensor, dim, given, loc, when: given)
    ],
    "padding of indices is an address": lambda: [patch.object(padding._Guard, "read", unmasked)],
    "maxima drop NaN": helper("max_or_nan", "PropagateNan.ALL", "PropagateNan.NONE"),
    "minima drop NaN": helper("min_or_nan", "PropagateNan.ALL", "PropagateNan.NONE"),
    "casts to integers do not saturate": helper("f32_to_i32", "inside, tl.cast", "x == x, tl.cast"),
    "halves round up": helper("round", "(a + 8388608.0) - 8388608.0", "tl.floor(a + 0.5)"),
    "integer division rounds to zero": helper("floor_div", "q - 1, q", "q, q"),
    "whole numbers wrap": lambda: [patch("kpt_dsl.passes.ranges.beyond", nothing)],
    "a kd.Int is anything": lambda: [patch.object(Definition, "_integer", lambda self, name, value: value)],
    "names from outside keep their first meaning": lambda: [patch.object(Outside, "now", first_meaning)],
    "negated views are read as they lie": lambda: [patch("kpt_dsl.runtime.binding._resolved", lambda *_: {})],
    "outputs lie over themselves": lambda: [patch.object(arrays, "overlaps", lambda *_: False)],
    "inputs see what is written": lambda: [
        patch("kpt_dsl.runtime.numpy.overwritten", lambda *_: ()),
        patch("kpt_dsl.runtime.triton.overwritten", lambda *_: ()),
    ],
}


def programs_until(name: str, seed: int, most: int) -> tuple[int, str]:
    """After how many programs a fault is found, and as what; more than ``most`` where it is not."""
    plan = Plan(seed, BACKENDS, {"pallas": 4}, shrink=False)
    drawn = 0
    with ExitStack() as stack:
        for each in FAULTS[name]():
            stack.enter_context(each)
        for first in range(0, most, RUN):
            report = campaign(plan, RUN, time.monotonic() + 1e6, first)
            if report.found:
                found = min(report.found.values(), key=lambda f: f.after)
                return drawn + found.after, found.told.splitlines()[0]
            drawn += RUN
    return most + 1, "not found"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.programs.faults", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {'; '.join(FAULTS)} (all)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--most", type=int, default=MOST, help=f"programs to draw at most ({MOST})")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    given = parser.parse_args()
    if unknown := set(given.names) - set(FAULTS):
        parser.error(f"there is no fault {sorted(unknown)[0]!r}; there are {'; '.join(FAULTS)}")
    missed = 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.jobs, mp_context=context) as pool:
        names = given.names or list(FAULTS)
        running = {pool.submit(programs_until, name, given.seed, given.most): name for name in names}
        for done in as_completed(running):
            after, told = done.result()
            missed += after > given.most
            print(f"{running[done]:<46} {after if after <= given.most else 'not found':>9}  {told[:110]}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
