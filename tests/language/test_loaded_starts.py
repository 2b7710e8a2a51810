"""Loops that begin at a loaded place: on GPUs their tiles are counted from there, and no result says so."""

import itertools
import re
from typing import Any

import numpy as np
import pytest

import kpt_dsl as kd
from kpt_dsl import ir
from kpt_dsl.instance import Instance
from kpt_dsl.passes.starts import at_loaded_starts
from kpt_dsl.printer import format_kernel

torch = pytest.importorskip("torch")

BAD = [(-(2**31), 2**31 - 1), (2**31 - 1, -(2**31)), (-7, 5), (30, 10), (60, 2**31 - 1), (10**9, 2 * 10**9), (64, 64)]
"""Bounds that are none: beyond a dim of 64 on either side, the wrong way round, or empty."""


@kd.kernel(x="T D", turned="D T", cu="C", least="B", total="B D", other="B D", rows="B", last="B")
def packed_sums(
    x: kd.In, turned: kd.In, cu: kd.In, least: kd.In, total: kd.Out, other: kd.Out, rows: kd.Out, last: kd.Out
) -> None:  # fmt: skip
    """Sums of rows, and of some of the same along neighbouring elements, with what counts them."""
    for b in kd.parallel("B"):
        seen, again, count, end = kd.zeros(["D"]), kd.zeros(["D"]), kd.full([], 0, kd.i32), kd.full([], 0, kd.i32)
        for n in kd.sequential(kd.tile("T"), start=cu[b], stop=cu[b + 1]):
            seen += kd.sum(x[n, :], axis=0)
            again += kd.sum(kd.where(n.index[None, :] >= least[b], turned[:, n], 0.0), axis=1)
            count += n.count
            end = kd.maximum(end, n.before + n.count)
        total[b, :] = seen
        other[b, :] = again
        rows[b] = count
        last[b] = end


@kd.kernel(x="T D", cu="C", first="B", seen="T", sees="T")
def causal_pairs(x: kd.In, cu: kd.In, first: kd.In, seen: kd.Out, sees: kd.Out) -> None:
    """Two loaded loops in one another, with a mask that bounds the inner one above, and below."""
    for b in kd.parallel("B"):
        for m in kd.sequential(kd.tile("T"), start=cu[b], stop=cu[b + 1]):
            row, before, after = x[m, :], kd.zeros([m]), kd.zeros([m])
            for n in kd.sequential(kd.tile("T"), start=cu[b], stop=m.stop):
                pairs = kd.sum(x[m, :][:, None, :] * x[n, :][None, :, :], axis=2)
                before += kd.sum(kd.where(n.index[None, :] <= m.index[:, None], pairs, 0.0), axis=1)
            for n in kd.sequential(kd.tile("T"), start=kd.maximum(m.start, first[b]), stop=cu[b + 1]):
                pairs = kd.sum(row[:, None, :] * x[n, :][None, :, :], axis=2)
                after += kd.sum(kd.where(n.index[None, :] >= m.index[:, None], pairs, 0.0), axis=1)
            sees[m] = before
            seen[m] = after


def _run(kernel: kd.Kernel, arrays: list[Any], block: int, backend: str) -> None:
    kernel(*(torch.from_numpy(a) for a in arrays), config={"block_T": block}, backend=backend)


def _ends(lengths: list[int]) -> Any:
    return np.cumsum([3, *lengths], dtype=np.int32)


@pytest.mark.parametrize("backend", ["numpy", "triton", "pallas"])
@pytest.mark.parametrize(("lengths", "block"), [([0, 1, 37, 0, 199], 16), ([199, 1, 760, 0], 64), ([37], 128)])
def test_sums_of_packed_rows(lengths: list[int], block: int, backend: str) -> None:
    block = max(block, 128) if backend == "pallas" else block
    cu = _ends(lengths)
    x = np.arange((cu[-1] + 5) * 4, dtype=np.float32).reshape(-1, 4) % 31
    total, other = (np.full((len(lengths), 4), np.nan, np.float32) for _ in range(2))
    rows, last = (np.full(len(lengths), -1, np.int32) for _ in range(2))
    least = cu[:-1] + np.arange(len(lengths), dtype=np.int32) * 5
    _run(packed_sums, [x, np.ascontiguousarray(x.T), cu, least, total, other, rows, last], block, backend)
    np.testing.assert_array_equal(total, [x[a:b].sum(0) for a, b in itertools.pairwise(cu)])
    np.testing.assert_array_equal(other, [x[a:b].sum(0) for a, b in zip(least, cu[1:], strict=True)])
    assert rows.tolist() == last.tolist() == lengths


@pytest.mark.parametrize("backend", ["numpy", "triton"])
@pytest.mark.parametrize("block", [8, 32])
def test_loops_in_one_another(block: int, backend: str) -> None:
    cu = _ends([0, 1, 37, 20, 0])
    x = np.arange((cu[-1] + 2) * 2, dtype=np.float32).reshape(-1, 2) % 7
    seen, sees = (np.full(len(x), -1, np.float32) for _ in range(2))
    first = cu[:-1] + np.array([0, 0, 5, 30, 0], np.int32)
    _run(causal_pairs, [x, cu, first, seen, sees], block, backend)
    for b, (low, high) in enumerate(itertools.pairwise(cu)):
        for i in range(low, high):
            assert sees[i] == (x[low : i + 1] @ x[i]).sum()
            assert seen[i] == (x[max(i, first[b]) : high] @ x[i]).sum()
    assert all((a[: cu[0]] == -1).all() and (a[cu[-1] :] == -1).all() for a in (seen, sees))


@pytest.mark.parametrize("backend", ["numpy", "triton"])
def test_bounds_that_are_none(backend: str) -> None:
    """What lies beyond the dim is not visited, and nothing wraps on the way there."""
    x = np.ones((64, 4), np.float32)
    for low, high in BAD:
        total, other = (np.full((1, 4), np.nan, np.float32) for _ in range(2))
        rows, last = (np.full(1, -1, np.int32) for _ in range(2))
        cu, least = np.array([low, high], np.int32), np.array([2**31 - 1], np.int32)
        _run(packed_sums, [x, np.ascontiguousarray(x.T), cu, least, total, other, rows, last], 16, backend)
        visited = len(range(max(low, 0), min(high, 64)))
        assert rows.tolist() == last.tolist() == [visited]
        assert (total == visited).all()
        assert (other == 0).all()


@kd.kernel(x="T", cu="B", y="B")
def starts(x: kd.In, cu: kd.In, y: kd.Out, given: kd.Int) -> None:
    """Loops whose starts are loaded, and which are not."""
    for b in kd.parallel("B"):
        for _constant in kd.sequential(kd.tile("T"), start=5):
            pass
        for _given in kd.sequential(kd.tile("T"), start=given):
            pass
        for _chosen in kd.sequential(kd.tile("T"), start=kd.where(cu[b] > 3, 0, given)):
            pass
        for loaded in kd.sequential(kd.tile("T"), start=cu[b] + given):
            for _inside in kd.sequential(kd.tile("T"), start=loaded.start):
                pass
        y[b] = x[0]


def test_only_loaded_starts_are_kept_exactly() -> None:
    kernel = at_loaded_starts(Instance.of_shapes(starts, {"T": 64, "B": 2}, {"x": "f32", "cu": "i32", "y": "f32"}).lower())
    exact = {s.over.name: s.at_start for s in ir.statements(kernel.body) if isinstance(s, ir.For)}
    assert exact == {"_constant": False, "_given": False, "_chosen": False, "loaded": True, "_inside": True}
    assert "for at start loaded in tile(T, block_T) from loaded_first to size(T)" in format_kernel(kernel)


def test_one_masked_edge_and_no_head() -> None:
    """Also that what may lie beyond the dim, whatever divides it, is not read."""
    dtypes = {"x": "bf16", "cu": "i32", "first": "i32", "seen": "f32", "sees": "f32"}
    text = kd.source(
        causal_pairs, "nvidia-h200", {"block_T": 32, "num_warps": 4}, shapes={"T": 4096, "D": 4, "B": 8, "C": 9}, dtypes=dtypes
    )
    assert len(re.findall(r"for m_start in", text)) == 1
    assert len(re.findall(r"for n\w*_start in", text)) == 2 + 3  # the mask of the second loop fails in its first tiles
    assert "m_inside = m_index % T - m_start" in text
