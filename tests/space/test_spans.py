"""Loop spans: how far loops run where bounds depend on tiles, on other loops, or on what only the run knows."""

import math
from statistics import fmean

import pytest

import kpt_dsl as kd
from kpt_dsl.instance import Instance
from kpt_dsl.space import space
from kpt_dsl.space.facts import collect
from kpt_dsl.space.spans import mean_span, mean_steps
from kpt_dsl.targets import get


@kd.kernel(x="M N", first="M", y="M")
def banded(x: kd.In, first: kd.In, y: kd.Out, width: kd.Int, shape: kd.Static) -> None:
    """Row sums over a part of each row that ``shape`` names."""
    for m in kd.parallel(kd.tile("M")):
        start, stop = kd.size("N") * 0, kd.size("N")
        if shape == "diagonal":
            start, stop = m.start, m.stop
        if shape == "up to here":
            stop = m.stop
        if shape == "scalar":
            start = kd.maximum(m.start, m.start + width)
        if shape == "beyond":
            stop = m.stop * 100
        total = kd.zeros([m])
        for n in kd.sequential(kd.tile("N"), start=start, stop=stop):
            total += kd.sum(x[m, n], axis=1)
        y[m] = total


def _instance(shape: str, extent: int = 1024) -> Instance:
    dims, dtypes = {"M": extent, "N": extent}, {"x": "f32", "first": "i32", "y": "f32"}
    return Instance.of_shapes(banded, dims, dtypes, {"shape": shape})


@pytest.mark.parametrize(
    ("shape", "rows", "span", "steps"),
    [
        ("whole", 64, 1024, 1024 / 32),
        ("diagonal", 64, 64, 2),  # a tile of 64 rows sees 64 columns: two tiles of 32
        ("diagonal", 16, 16, 1),
        ("scalar", 64, 512 + 32, None),  # the argument is unknown: from the tile's own start on
        ("beyond", 64, 1024, 32),  # clipped to the dim
    ],
)
def test_mean_span(shape: str, rows: int, span: float, steps: float | None) -> None:
    facts = collect(_instance(shape).lower({}), _instance(shape).extents)
    (loop,), blocks = facts.loops, {"block_M": rows, "block_N": 32}
    assert mean_span(loop, facts.variables, facts.dims, blocks) == pytest.approx(span, rel=0.01)
    if steps is not None:
        assert mean_steps(loop, facts.variables, facts.dims, blocks) == pytest.approx(steps)


def test_an_empty_dim_has_no_steps() -> None:
    empty = _instance("diagonal", 0)
    facts = collect(empty.lower({}), empty.extents)
    assert mean_span(facts.loops[0], facts.variables, facts.dims, {"block_M": 16, "block_N": 16}) == 0
    found = space(empty, get("nvidia-h200"))
    assert math.isfinite(found.seconds(found.first))


def test_uneven_loops_are_noticed() -> None:
    found = {shape: _instance(shape) for shape in ("whole", "diagonal")}
    uneven = {shape: collect(one.lower({}), one.extents).uneven for shape, one in found.items()}
    assert uneven == {"whole": False, "diagonal": True}


@pytest.mark.parametrize("extent", [112, 512, 1024, 4096])
@pytest.mark.parametrize("rows", [16, 64, 128])
def test_a_row_less_makes_causal_loops_no_shorter(extent: int, rows: int) -> None:
    """Nor has a program more or fewer tiles then: which ones stand for all must not change."""
    blocks, found = {"block_M": rows, "block_N": 16}, []
    for length in (extent, extent - 1):
        one = _instance("up to here", length)
        facts = collect(one.lower({}), one.extents)
        found.append(mean_steps(facts.loops[0], facts.variables, facts.dims, blocks))
    assert found[0] == found[1]
    tiles = range(rows, extent + rows, rows)
    assert found[0] == pytest.approx(fmean(math.ceil(min(stop, extent) / 16) for stop in tiles), rel=0.15)
