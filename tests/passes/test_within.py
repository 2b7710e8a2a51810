"""Loops of some rows within the loop of all rows of a tile: seen only where it is so for all sizes."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest

from kpt_dsl import ir
from kpt_dsl.passes.within import ends_within
from tests.language.snippets import lower

BODY = """
for m in kd.parallel(kd.tile("M")):
    ahead = kd.size("N") - kd.size("M")
    last = {stop}
    last = kd.minimum(last, kd.size("N"))
    total = kd.zeros([m])
    for n in kd.sequential(kd.tile("N"), stop=last):
        total = total + kd.sum(x[m, n], axis=1)
    row[m] = total
"""


def exceeds(stop: str) -> bool:
    """Whether, for some sizes, the loop of some rows of a tile of 8 goes beyond the loop of the whole tile."""
    text = stop.replace('kd.size("M")', "rows").replace("kd.maximum", "max").replace("kd.minimum", "min")

    def last(start: int, height: int, rows: int, ahead: int) -> int:
        m = SimpleNamespace(start=start, stop=min(start + height, rows))
        return int(eval(text, {"m": m, "ahead": ahead, "rows": rows}))

    sizes = itertools.product(range(1, 20), range(-5, 6), (0, 8), (0, 2, 4, 6))
    return any(last(at + part, 2, rows, ahead) > last(at, 8, rows, ahead) for rows, ahead, at, part in sizes)


@pytest.mark.parametrize(
    ("stop", "within"),
    [
        ("m.stop + ahead", True),
        ("ahead + m.stop - 3", True),
        ("kd.maximum(m.stop, 3) + m.stop", True),
        ("m.start + ahead", False),
        ("m.stop - m.start", False),
        ('kd.size("M") - m.stop', False),
        ("m.stop * (0 - 1)", False),
        ('kd.size("M") + ahead', False),  # it is the same loop
    ],
)
def test_a_loop_of_some_rows(tmp_path: Path, stop: str, within: bool) -> None:
    kernel = lower(tmp_path, BODY.format(stop=stop))
    loop = next(s for s in kernel.body if isinstance(s, ir.For))
    scalars = [s for s in kernel.body if isinstance(s, ir.Assign) and not s.value.type.shape]
    assert ends_within(scalars, loop, "m") is within
    assert not (within and exceeds(stop))


def test_the_check_of_these_cases_sees_one_that_is_wrong() -> None:
    assert exceeds("m.start + ahead")
    assert exceeds('kd.size("M") - m.stop')
