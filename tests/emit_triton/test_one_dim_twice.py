"""One dim along two axes of a tile, conditions that a split loop knows, and bodies with nothing in them: on every backend what
NumPy computes in float64, whatever the config."""

from typing import Any

import numpy as np
import pytest
import torch

import kpt_dsl as kd
from kpt_dsl import ir, targets
from kpt_dsl.errors import KptError
from kpt_dsl.instance import Instance
from kpt_dsl.kernel import Kernel
from kpt_dsl.runtime import numpy as on_numpy
from kpt_dsl.runtime import pallas as on_pallas
from kpt_dsl.runtime.triton import interpret_for
from kpt_dsl.space import Config
from tests.tolerances import assert_close

EXTENTS = (1, 37, 100, 199)


@kd.kernel(x="M N", larger="M N", smaller="M N")
def ranks(x: kd.In, larger: kd.Out, smaller: kd.Out) -> None:
    """How many of a row are larger, and smaller, than each."""
    for m in kd.parallel("M"):
        row = x[m, :]
        seen = kd.where(row[None, :] > row[:, None], 1.0, 0.0)
        larger[m, :] = kd.sum(seen, axis=1)
        smaller[m, :] = kd.sum(seen, axis=0)


@kd.kernel(x="M N", gap="M N", least="M N")
def extremes(x: kd.In, gap: kd.Out, least: kd.Out) -> None:
    for m in kd.parallel("M"):
        row = x[m, :]
        gap[m, :] = kd.max(row[None, :] - row[:, None], axis=1)
        least[m, :] = kd.min(kd.where(row[None, :] > row[:, None], row[None, :], 5.0), axis=0)


@kd.kernel(x="M N", across="M N", down="M N")
def prefix_sums(x: kd.In, across: kd.Out, down: kd.Out) -> None:
    """A causal mask within each tile, summed along either axis."""
    for m in kd.parallel("M"):
        before = kd.full([], 0.0)
        for n in kd.sequential(kd.tile("N")):
            row = x[m, n]
            across[m, n] = kd.sum(kd.where(n.index[None, :] <= n.index[:, None], row[None, :], 0.0), axis=1) + before
            down[m, n] = kd.sum(kd.where(n.index[:, None] <= n.index[None, :], row[:, None], 0.0), axis=0) + before
            before += kd.sum(row, axis=0)


@kd.kernel(x="M N", total="M", top="M")
def bounded_prefixes(x: kd.In, total: kd.Out, top: kd.Out, first: kd.Int, last: kd.Int) -> None:
    """The sum of all prefix sums, and the largest element that any prefix ends in, between bounds."""
    for m in kd.parallel("M"):
        before, added, largest = kd.full([], 0.0), kd.full([], 0.0), kd.full([], -1000.0)
        for n in kd.sequential(kd.tile("N"), start=first, stop=last):
            row = x[m, n]
            seen = n.index[None, :] <= n.index[:, None]
            added += kd.sum(kd.sum(kd.where(seen, row[None, :], 0.0), axis=1) + before, axis=0)
            largest = kd.maximum(largest, kd.max(kd.max(kd.where(seen, row[None, :], -kd.inf), axis=0), axis=0))
            before += kd.sum(row, axis=0)
        total[m] = added
        top[m] = largest


@kd.kernel(x="M N", y="M")
def three_axes(x: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        row = x[m, :]
        pair = kd.where(row[:, None, :] > row[:, :, None], row[:, None, :], row[:, :, None] * 2.0)
        y[m] = kd.sum(kd.sum(pair, axis=1), axis=1) + kd.sum(kd.max(pair, axis=2), axis=1)


@kd.kernel(x="N M", y="N M")
def by_products(x: kd.In, y: kd.Out) -> None:
    """Prefix sums down columns, by products with a triangle."""
    for m in kd.parallel(kd.tile("M")):
        before = kd.zeros([m])
        for n in kd.sequential(kd.tile("N")):
            low = kd.where(n.index[:, None] >= n.index[None, :], 1.0, 0.0)
            y[n, m] = kd.dot(low, x[n, m]) + before[None, :]
            before += kd.sum(x[n, m], axis=0)


@kd.kernel(x="M N", y="M")
def pairs_below(x: kd.In, y: kd.Out, limit: kd.Int) -> None:
    """A condition along the one of two equal axes, and one in which both stand; of pairs that every tile holds whole."""
    for m in kd.parallel("M"):
        total = kd.full([], 0.0)
        for n in kd.sequential(kd.tile("N")):
            low = n.index[None, :] + n.index[None, :] - n.index[:, None] < limit
            same = (n.index[None, :] // 2 == n.index[:, None] // 2) & (n.index[None, :] <= limit + 5)
            one, two = kd.where(same & low, x[m, n][None, :], 0.0), kd.where(same, x[m, n][:, None], 0.0)
            total += kd.sum(kd.sum(one, axis=1), axis=0) + kd.sum(kd.sum(two, axis=0), axis=0)
        y[m] = total


@kd.kernel(x="M N", inside="M", outside="M", either="M")
def known_conditions(x: kd.In, inside: kd.Out, outside: kd.Out, either: kd.Out, limit: kd.Int) -> None:
    """Conditions that hold in whole tiles: named, expanded, inverted, combined."""
    for m in kd.parallel(kd.tile("M")):
        a, b, c = kd.zeros([m]), kd.zeros([m]), kd.zeros([m])
        for n in kd.sequential(kd.tile("N")):
            low = n.index < limit
            a += kd.sum(kd.where(low[None, :], x[m, n], 0.0), axis=1)
            b += kd.sum(kd.where(~(n.index < limit)[None, :], x[m, n], 0.0), axis=1)
            c += kd.sum(kd.where((n.index < limit)[None, :] | (x[m, n] > 1.0), x[m, n], 0.0), axis=1)
        inside[m] = a
        outside[m] = b
        either[m] = c


@kd.kernel(x="M K N", y="M")
def nested(x: kd.In, y: kd.Out) -> None:
    for m in kd.parallel("M"):
        total = kd.full([], 0.0)
        for k in kd.sequential(kd.tile("K")):
            rows, part = k.index + 2, kd.zeros([k])
            for n in kd.sequential(kd.tile("N"), stop=k.stop + 3):
                part += kd.sum(kd.where(n.index[None, :] <= rows[:, None], x[m, k, n], 0.0), axis=1)
            total += kd.sum(part, axis=0)
        y[m] = total


@kd.kernel(x="M N", y="M")
def changing(x: kd.In, y: kd.Out) -> None:
    """Rows that were made of a limit before it changed, and variables that are called what a split loop calls its bounds."""
    for m in kd.parallel(kd.tile("M")):
        limit = kd.size("N") // 2
        rows = m.index + limit
        limit = limit + 30
        n_clear_start, n_clear_stop = kd.zeros([m]), kd.full([m], 1.0)
        for n in kd.sequential(kd.tile("N"), start=1):
            n_clear_start += kd.sum(kd.where(n.index[None, :] <= rows[:, None], x[m, n], 0.0), axis=1)
        y[m] = n_clear_start * n_clear_stop + kd.where(limit > 5, 1.0, 0.0)


@kd.kernel(x="M N", y="M")
def for_nothing(x: kd.In, y: kd.Out, skip: kd.Static) -> None:
    for m in kd.parallel(kd.tile("M")):
        total = kd.zeros([m])
        for n in kd.sequential(kd.tile("N")):
            part = x[m, n]  # noqa: F841
        for n in kd.sequential(kd.tile("N")):  # noqa: B007
            pass
        for n in kd.sequential(kd.tile("N"), stop=kd.size("N") - 1):
            if skip:
                pass
            else:
                total += kd.sum(x[m, n], axis=1)
        y[m] = total


def check(kernel: Kernel, dims: dict[str, int], length: int = 1, **others: Any) -> None:
    """Every backend, and several configs, against NumPy in float64; Pallas may refuse, by name."""
    rng = np.random.default_rng(0)
    given: dict[str, Any] = dict(others)
    for name, names in kernel.tensors.items():
        given[name] = rng.standard_normal([dims[d] for d in names]).astype(np.float32)
    instance = Instance.bind(kernel, given)
    blocks = {tile.block for tile in ir.tiles(instance.lower())}
    outputs = [name for name, role in kernel.roles.items() if role == "out"]

    def fresh(dtype: Any = np.float32) -> dict[str, Any]:
        return given | {name: np.full(given[name].shape, 77, dtype) for name in outputs}

    exact = fresh(np.float64)
    on_numpy.run(instance, exact, Config(dict.fromkeys(blocks, 8)), precision="f64")
    least = 16 if kernel is by_products else 2
    for block in (least, 64):
        got = fresh()
        as_torch = {n: torch.from_numpy(a) if isinstance(a, np.ndarray) else a for n, a in got.items()}
        config = Config(dict.fromkeys(blocks, block)) | {"num_warps": 4}
        interpret_for(targets.get("nvidia-h200"), instance, as_torch, config)
        for name in outputs:
            assert_close(as_torch[name].numpy(), exact[name], "f32", length)
    got = fresh()
    try:
        on_pallas.run(instance, got, Config(dict.fromkeys(blocks, 128)))
    except KptError:
        assert kernel is nested, "only loops in loops have no form"
        return
    for name in outputs:
        assert_close(got[name], exact[name], "f32", length)


@pytest.mark.parametrize("n", EXTENTS)
@pytest.mark.parametrize("kernel", [ranks, extremes, prefix_sums], ids=lambda k: k.name)
def test_pairs_of_a_row(kernel: Kernel, n: int) -> None:
    check(kernel, {"M": 3, "N": n}, n)


@pytest.mark.parametrize("n", EXTENTS)
@pytest.mark.parametrize(("first", "last"), [(0, 1000), (0, 64), (3, 30)])
def test_pairs_between_bounds(n: int, first: int, last: int) -> None:
    check(bounded_prefixes, {"M": 2, "N": n}, n * n, first=first, last=last)


@pytest.mark.parametrize("n", [1, 5, 37])
def test_three_axes(n: int) -> None:
    check(three_axes, {"M": 5, "N": n}, n * n)


@pytest.mark.parametrize("n", [1, 37, 199])
def test_products_with_a_tile_of_one_dim(n: int) -> None:
    check(by_products, {"M": 20, "N": n}, n)


@pytest.mark.parametrize("limit", [5, 64, 300])
@pytest.mark.parametrize("n", [37, 199])
def test_conditions_of_which_some_tiles_need_no_mask(n: int, limit: int) -> None:
    check(pairs_below, {"M": 2, "N": n}, n, limit=limit)
    check(known_conditions, {"M": 20, "N": n}, n, limit=limit)


def test_bounds_that_a_loop_inside_makes_are_no_bounds_of_the_loop_around() -> None:
    check(nested, {"M": 2, "K": 50, "N": 37}, 37 * 50)


@pytest.mark.parametrize("n", [37, 100])
def test_values_of_before_a_variable_changed(n: int) -> None:
    check(changing, {"M": 20, "N": n}, n)


@pytest.mark.parametrize("skip", [False, True])
def test_loops_with_nothing_in_them(skip: bool) -> None:
    check(for_nothing, {"M": 20, "N": 37}, 37, skip=skip)
