"""Loops over a share of a dim's tiles: every tile is visited by exactly one program, whatever the extents, on every backend."""

import itertools

import numpy as np
import pytest

import kpt_dsl as kd
from kpt_dsl import ir, targets
from kpt_dsl.emit import emit
from kpt_dsl.errors import TargetError
from kpt_dsl.instance import Instance
from kpt_dsl.printer import format_kernel
from kpt_dsl.space import Config, space
from kpt_dsl.space.facts import collect
from kpt_dsl.space.spans import mean_span, mean_steps


@kd.kernel(x="M N", doubled="M N", total="P N", rows="P")
def partial_sums(x: kd.In, doubled: kd.Out, total: kd.Out, rows: kd.Out) -> None:
    for p in kd.parallel("P"):
        seen, count = kd.zeros(["N"]), kd.full([], 0, kd.i32)
        for m in kd.sequential(kd.tile("M"), share=p):
            doubled[m, :] = x[m, :] * 2.0
            seen += kd.sum(x[m, :], axis=0)
            count += m.count
        total[p, :] = seen
        rows[p] = count


@kd.kernel(x="M N", y="M N")
def bounded_store(x: kd.In, y: kd.Out, stop: kd.Int) -> None:
    for m in kd.parallel(kd.tile("M")):
        for n in kd.sequential(kd.tile("N"), stop=stop):
            y[m, n] = x[m, n]


def _instance(rows: int, parts: int, columns: int = 40) -> Instance:
    dtypes = {"x": "f32", "doubled": "f32", "total": "f32", "rows": "i32"}
    return Instance.of_shapes(partial_sums, {"M": rows, "N": columns, "P": parts}, dtypes)


@pytest.mark.parametrize("backend", ["numpy", "triton", "pallas"])
@pytest.mark.parametrize("parts", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [1, 5, 16, 37, 100])
def test_shares_add_up(rows: int, parts: int, backend: str) -> None:
    block = 8 if backend == "pallas" else 4
    if backend == "pallas" and rows <= block * (parts - 1):
        pytest.skip("a TPU wants a tile for every share")
    x = np.arange(rows * 40, dtype=np.float32).reshape(rows, 40) % 97
    doubled, total = np.full_like(x, np.nan), np.full((parts, 40), np.nan, np.float32)
    counts = np.full((parts,), -1, np.int32)
    arrays = [x, doubled, total, counts]
    if backend == "triton":
        arrays = [pytest.importorskip("torch").from_numpy(a) for a in arrays]
    partial_sums(*arrays, config={"block_M": block}, backend=backend)
    np.testing.assert_array_equal(doubled, x * 2)
    tiles = -(-rows // block)
    ends = [min(rows, block * (tiles // parts * p + min(p, tiles % parts))) for p in range(parts + 1)]
    assert counts.tolist() == [b - a for a, b in itertools.pairwise(ends)]
    for p, (a, b) in enumerate(itertools.pairwise(ends)):
        np.testing.assert_array_equal(total[p], x[a:b].sum(0))


@kd.kernel(x="B N", first="B", last="B", rows="B P", before="B P", total="B P")
def between(
    x: kd.In, first: kd.In, last: kd.In, rows: kd.Out, before: kd.Out, total: kd.Out, begins: kd.Static, ends: kd.Static
) -> None:
    for b, p in kd.parallel("B", "P"):
        count, most, seen = kd.full([], 0, kd.i32), kd.full([], -1, kd.i32), kd.full([], 0.0)
        for n in kd.sequential(
            kd.tile("N"), start=first[b] if begins else 0, stop=last[b] if ends else kd.size("N"), share=p
        ):
            count += n.count
            most = kd.maximum(most, n.before)
            seen += kd.sum(x[b, n] + 1.0, axis=0)
        rows[b, p] = count
        before[b, p] = most
        total[b, p] = seen


FIRST = (0, 3, 128, 129, -4, 50, 256, 200, 7, 0, 2**31 - 1)
LAST = (300, 300, 300, 150, 1000, 256, 256, 130, 5, -999, 2**31 - 1)


def _shares(first: int, last: int, extent: int, block: int, parts: int) -> list[tuple[int, int]]:
    """The runs of elements that programs visit: the tiles that touch the bounds, dealt out, and cut by these."""
    first, last = max(first, 0), min(last, extent)
    touched = range(first // block, -(-last // block)) if first < last else range(0)
    each, more = divmod(len(touched), parts)
    runs = [touched[p * each + min(p, more) :][: each + (p < more)] for p in range(parts)]
    return [(max(first, r[0] * block), min(last, (r[-1] + 1) * block)) if r else (0, 0) for r in runs]


@pytest.mark.parametrize("bounds", ["both", "stop", "start"])
@pytest.mark.parametrize(("extent", "block", "parts"), [(300, 128, 2), (37, 128, 3), (300, 16, 7), (64, 8, 1)])
@pytest.mark.parametrize("backend", ["numpy", "triton", "pallas"])
def test_what_lies_between_bounds_is_dealt_out(backend: str, extent: int, block: int, parts: int, bounds: str) -> None:
    if backend == "pallas" and (extent != 300 or block < 128):
        pytest.skip("one of it will do, of tiles that a TPU has")
    torch = pytest.importorskip("torch")
    x = torch.arange(len(FIRST) * extent).reshape(-1, extent).remainder(7.0)
    first, last = torch.tensor(FIRST, dtype=torch.int32), torch.tensor(LAST, dtype=torch.int32)
    rows, before = torch.full((2, len(FIRST), parts), -9, dtype=torch.int32)
    total = torch.full((len(FIRST), parts), torch.nan)
    begins, ends = bounds != "stop", bounds != "start"
    between(x, first, last, rows, before, total, begins, ends, config={"block_N": block}, backend=backend)
    for b, (low, high) in enumerate(zip(FIRST, LAST, strict=True)):
        runs = _shares(low if begins else 0, high if ends else extent, extent, block, parts)
        assert rows[b].tolist() == [z - a for a, z in runs]
        starts = [max(a, (z - 1) // block * block) for a, z in runs]
        assert before[b].tolist() == [s - a if a < z else -1 for s, (a, z) in zip(starts, runs, strict=True)]
        assert total[b].tolist() == [(x[b, a:z] + 1).sum().item() for a, z in runs]


@kd.kernel(x="B N", first="B", last="B", y="B N", z="P")
def doubled_between(x: kd.In, first: kd.In, last: kd.In, y: kd.Out, z: kd.Out) -> None:
    for b, p in kd.parallel("B", "P"):
        for n in kd.sequential(kd.tile("N"), start=first[b], stop=last[b], share=p):
            y[b, n] = x[b, n] * 2.0
        z[p] += 1.0


@pytest.mark.parametrize("backend", ["numpy", "triton"])
def test_nothing_beyond_the_bounds_is_stored(backend: str) -> None:
    torch = pytest.importorskip("torch")
    x = torch.rand(len(FIRST), 300)
    y, meant = torch.full((2, *x.shape), -1.0)
    for b, (low, high) in enumerate(zip(FIRST, LAST, strict=True)):
        meant[b, max(low, 0) : max(low, high, 0)] = 2 * x[b, max(low, 0) : max(low, high, 0)]
    first, last = torch.tensor(FIRST, dtype=torch.int32), torch.tensor(LAST, dtype=torch.int32)
    doubled_between(x, first, last, y, torch.zeros(3), config={"block_N": 32}, backend=backend)
    assert torch.equal(y, meant)


def test_a_share_up_to_a_stop_begins_at_a_tile() -> None:
    """No masked head: what keys a program has of those that count is found without one."""
    shapes, dtypes = {"B": 2, "N": 4096, "P": 16}, {"first": "i32", "last": "i32", "rows": "i32", "before": "i32"}
    dtypes |= {"x": "f32", "total": "f32"}
    texts = [kd.source(between, "nvidia-h200", {"block_N": 64}, shapes=shapes, dtypes=dtypes, begins=begins, ends=True)
             for begins in (False, True)]  # fmt: skip
    assert [text.count("for n_start in") for text in texts] == [2, 3]


def test_only_a_ragged_last_tile_makes_a_second_loop() -> None:
    def loops(rows: int, block: int) -> int:
        text = kd.source(
            partial_sums, "nvidia-h200", {"block_M": block, "num_warps": 1}, shapes={"M": rows, "N": 64, "P": 3},
            dtypes={"x": "f32", "doubled": "f32", "total": "f32", "rows": "i32"},
        )  # fmt: skip
        assert "m_valid" in text or rows % block == 0
        return text.count("for m_start in")

    assert loops(37, 1) == loops(64, 8) == 1
    assert loops(37, 8) == 2


@kd.kernel(x="M N", w="N", y="M N", total="P N")
def read_twice(x: kd.In, w: kd.In, y: kd.Out, total: kd.Out) -> None:
    for p in kd.parallel("P"):
        seen = kd.zeros(["N"])
        for m in kd.sequential(kd.tile("M"), share=p):
            top = kd.max(x[m, :] * w[:][None, :], axis=1)
            row = x[m, :] * w[:][None, :] - top[:, None]
            y[m, :] = row
            seen += kd.sum(row, axis=0)
        total[p, :] = seen


def test_what_a_turn_reads_again_is_kept_in_the_cache_until_then() -> None:
    """Also that the compiler sees two reads: else it makes them one and holds the row in registers."""
    text = kd.source(
        read_twice, "nvidia-h200", {"block_M": 1, "num_warps": 1, "num_stages": 3}, shapes={"M": 8, "N": 64, "P": 2},
        dtypes={"x": "bf16", "w": "bf16", "y": "bf16", "total": "f32"},
    )  # fmt: skip
    loads = [line for line in text.splitlines() if "tl.load(" in line]
    policies = [line.partition("eviction_policy=")[2][:14].strip('")') for line in loads]
    assert policies == ["evict_last", "", "evict_first", "evict_last"]  # w is read in the next turn too
    assert "tl.range(m_first, m_last, BLOCK_M, num_stages=3)" in text


def test_the_mean_share_is_known() -> None:
    facts = collect(_instance(1000, 10).lower(), _instance(1000, 10).extents)
    (loop,) = facts.loops
    assert mean_span(loop, facts.variables, facts.dims, {"block_M": 4}) == pytest.approx(100, rel=0.05)
    assert mean_steps(loop, facts.variables, facts.dims, {"block_M": 4}) == pytest.approx(25, rel=0.05)


def test_a_tpu_has_a_tile_for_every_share() -> None:
    found = space(_instance(100, 3), targets.get("tpu-v6e"))
    assert "too few for 3 shares" in str(found.why_illegal(Config(block_M=100)))
    assert found.why_illegal(Config(block_M=16)) is None


def test_a_tpu_cannot_store_part_of_a_block() -> None:
    instance = Instance.of_shapes(bounded_store, {"M": 16, "N": 256}, {"x": "f32", "y": "f32"})
    with pytest.raises(TargetError, match=r"stores y in a loop with bounds of its own \(line \d+\)"):
        emit(instance, targets.get("tpu-v6e"), Config(block_M=8, block_N=128))


def test_the_ir_says_that_a_loop_has_a_share() -> None:
    (loop,) = (s for s in _instance(8, 2).lower().body if isinstance(s, ir.For))
    assert loop.share == ir.Share("p", "dim")
    assert "for share m in tile(M, block_M) from m_first to m_last" in format_kernel(_instance(8, 2).lower())
