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
    assert loop.share
    assert "for share m in tile(M, block_M) from m_first to m_last" in format_kernel(_instance(8, 2).lower())
