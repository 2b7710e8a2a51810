"""Tiles that keep within groups, of lengths that only the device knows: each element is one program's, whatever the block."""

import itertools
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import kpt_dsl as kd
from kpt_dsl import IndexRangeError, KernelError, TargetError, targets
from kpt_dsl.buckets import spans
from kpt_dsl.emit import emit
from kpt_dsl.emit.triton.abi import Counted
from kpt_dsl.instance import Instance
from kpt_dsl.passes.pipeline import why_not
from kpt_dsl.space import Config, space
from kpt_dsl.space.facts import collect
from kpt_dsl.space.spans import mean_span, mean_steps
from tests.language.snippets import kernel as snippet

torch = pytest.importorskip("torch")

_DTYPES = {"x": "f32", "cu": "i32", "scale": "f32", "y": "f32", "place": "i32", "last": "f32", "first": "f32"}

LENGTHS = ([0, 1, 37, 0, 199], [760, 0, 0, 1], [], [0, 0], [16, 32, 48], [5] * 9)


@kd.kernel(x="T D", cu="C", scale="G", y="T D", place="T", last="T", first="T")
def scaled(
    x: kd.In, cu: kd.In, scale: kd.In, y: kd.Out, place: kd.Out, last: kd.Out, first: kd.Out
) -> None:  # fmt: skip
    """Rows scaled by a number a group, their places in it, and the sums of rows up to each and from each on."""
    for m in kd.parallel(kd.tile("T", starts=cu)):
        y[m, :] = x[m, :] * scale[m.group]
        place[m] = m.index - cu[m.group]
        before, after = kd.zeros([m]), kd.zeros([m])
        for n in kd.sequential(kd.tile("T"), start=cu[m.group], stop=m.stop):
            before += kd.sum(kd.where(n.index[None, :] <= m.index[:, None], x[n, 0][None, :], 0.0), axis=1)
        for n in kd.sequential(kd.tile("T"), start=m.start, stop=cu[m.group + 1]):
            after += kd.sum(kd.where(n.index[None, :] >= m.index[:, None], x[n, 0][None, :], 0.0), axis=1)
        last[m] = before
        first[m] = after


@kd.kernel(x="T K", weight="E K N", cu="C", y="T N")
def experts(x: kd.In, weight: kd.In, cu: kd.In, y: kd.Out) -> None:
    """A product for each group of rows, with a weight of its own."""
    for m, n in kd.parallel(kd.tile("T", starts=cu), kd.tile("N")):
        total = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K")):
            total = kd.dot(x[m, k], weight[m.group, k, n], total)
        y[m, n] = total


@kd.kernel(x="H D T", cu="C", y="H D T", total="C D")
def along_rows(x: kd.In, cu: kd.In, y: kd.Out, total: kd.Out) -> None:
    """Groups of neighbouring elements; what they come to is added up."""
    for h, m in kd.parallel("H", kd.tile("T", starts=cu)):
        part = x[h, :, m]
        y[h, :, m] = part + 1.0
        total[m.group, :] += kd.sum(part, axis=1)


def _run(kernel: kd.Kernel, arrays: list[Any], backend: str, **config: Any) -> None:
    kernel(*(torch.from_numpy(a) for a in arrays), config=config, backend=backend)


def _packed(lengths: list[int], lead: int = 3, rest: int = 5) -> tuple[Any, int]:
    cu = np.cumsum([lead, *lengths], dtype=np.int32)
    return cu, int(cu[-1]) + rest


def _of(lengths: list[int], lead: int = 3, rest: int = 5) -> list[Any]:
    cu, rows = _packed(lengths, lead, rest)
    x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4) % 31
    scale = np.arange(1, len(lengths) + 2, dtype=np.float32)
    outputs = [np.full((rows, 4), -1, np.float32), np.full(rows, -1, np.int32), *np.full((2, rows), -1, np.float32)]
    return [x, cu, scale, *outputs]


def _check(x: Any, cu: Any, scale: Any, y: Any, place: Any, last: Any, first: Any) -> None:
    for g, (low, high) in enumerate(itertools.pairwise(cu)):
        mine = slice(low, high)
        np.testing.assert_array_equal(y[mine], x[mine] * scale[g])
        assert place[mine].tolist() == list(range(high - low))
        np.testing.assert_array_equal(last[mine], np.cumsum(x[mine, 0]))
        np.testing.assert_array_equal(first[mine], np.cumsum(x[mine, 0][::-1])[::-1])
    for out in (y, place, last, first):
        assert (out[: cu[0]] == -1).all()
        assert (out[cu[-1] :] == -1).all()


@pytest.mark.parametrize("backend", ["numpy", "triton"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_each_row_is_one_tiles(lengths: list[int], backend: str) -> None:
    for block in (64, 16) if sum(lengths) < 300 else (128,):
        arrays = _of(lengths)
        _run(scaled, arrays, backend, block_T=block)
        _check(*arrays)
    for lead, rest in ((0, 0), (1, -(sum(lengths) + 1) % 128)):  # also where tiles of the whole dim would all be full
        arrays = _of(lengths, lead, rest)
        _run(scaled, arrays, backend, block_T=128)
        _check(*arrays)


@pytest.mark.parametrize("group", [1, 4])
def test_a_product_for_each_group(group: int) -> None:
    lengths = [0, 37, 1, 199, 20]
    cu, rows = _packed(lengths)
    x = (np.arange(rows * 40).reshape(rows, 40) % 5 - 2).astype(np.float32)
    weight = (np.arange(5 * 40 * 50).reshape(5, 40, 50) % 7 - 3).astype(np.float32)
    y = np.full((rows, 50), np.nan, np.float32)
    _run(experts, [x, weight, cu, y], "triton", block_T=16, block_N=32, block_K=16, group=group)
    for g, (low, high) in enumerate(itertools.pairwise(cu)):
        np.testing.assert_array_equal(y[low:high], x[low:high] @ weight[g])
    assert np.isnan(y[: cu[0]]).all()
    assert np.isnan(y[cu[-1] :]).all()


def test_groups_of_neighbouring_elements() -> None:
    cu, columns = _packed([37, 0, 1, 30])
    x = np.arange(2 * 3 * columns, dtype=np.float32).reshape(2, 3, columns) % 11
    y, total = np.full_like(x, -1), np.zeros((len(cu), 3), np.float32)
    _run(along_rows, [x, cu, y, total], "triton", block_T=16)
    np.testing.assert_array_equal(y[:, :, cu[0] : cu[-1]], x[:, :, cu[0] : cu[-1]] + 1)
    np.testing.assert_array_equal(total[:-1], [x[:, :, a:b].sum((0, 2)) for a, b in itertools.pairwise(cu)])
    assert (y[:, :, : cu[0]] == -1).all()
    assert (y[:, :, cu[-1] :] == -1).all()


def test_a_launch_has_a_place_for_each_tile_whatever_the_groups() -> None:
    """Places of a group begin at its start over the block plus its number, and are as many as it has tiles, or one more."""
    draw = np.random.default_rng(0)
    for _ in range(300):
        block = int(draw.choice([1, 4, 16, 64]))
        cu = np.sort(draw.integers(0, draw.integers(1, 300), draw.integers(1, 20)))
        rows = int(cu[-1] + draw.integers(0, 9))
        places = Counted("T", block, "C", "cu").tiles({"T": rows, "C": len(cu)})
        first = [start // block + g for g, start in enumerate(cu)]
        for g, (low, high) in enumerate(itertools.pairwise(cu)):
            assert first[g] + -(-(high - low) // block) <= first[g + 1]
        assert places >= (first[-1] if len(cu) > 1 else 0)


# ------------------------------------------------------------------ starts that are none
DECREASING = {
    "cu[1] is 40 and cu[2] is 20": [0, 40, 20, 60],
    "cu[0] is -3": [-3, 10, 20, 60],
    "cu[3] is 65": [0, 40, 40, 65],
    "cu[1] is 2147483647 and cu[2] is -2147483648": [0, 2**31 - 1, -(2**31), 3],
}


@pytest.mark.parametrize("backend", ["numpy", "triton"])
def test_groups_that_do_not_ascend_are_named(backend: str) -> None:
    for what, starts in DECREASING.items():
        arrays = _of([20, 20, 20], 0, 4)
        arrays[1][:] = starts
        with pytest.raises(IndexRangeError) as error:
            _run(scaled, arrays, backend, block_T=16)
        assert f"scaled: {what}; where groups begin must ascend from 0 or more to 64" in str(error.value)


def test_where_nobody_looks_nothing_outside_is_written() -> None:
    """As on a GPU: every program ends, and stores to rows of the tensor only."""
    for starts in (*DECREASING.values(), [-(2**31)] * 4, [2**31 - 1] * 4, [64, 0, 64, 0]):
        arrays = _of([20, 20, 20], 0, 4)
        arrays[1][:] = starts
        room = np.full((3, 64, 4), 7, np.float32)
        arrays[3] = room[1]
        with patch.object(Counted, "check"):
            _run(scaled, arrays, "triton", block_T=16)
        assert (room[[0, 2]] == 7).all()


def test_a_tpu_says_why_it_cannot() -> None:
    instance = Instance.of_shapes(scaled, {"T": 256, "D": 128, "C": 9, "G": 8}, _DTYPES)
    with pytest.raises(TargetError, match="tiles m begin where cu says, but blocks of a TPU at multiples of their size"):
        emit(instance, targets.get("tpu-v6e"), Config(block_T=128))


# ------------------------------------------------------------------ what is refused
SIGNATURE = """
@kd.kernel(x="T D", cu="C", two="C D", y="T D", z="G D")
def snippet(x: kd.In, cu: kd.In, two: kd.In, y: kd.Out, z: kd.Out) -> None:
"""
REFUSED = {
    "for m in kd.parallel(kd.tile('T', starts=two)):\n    y[m, :] = 1.0": "starts is the tensor two[C, D] of i32",
    "for m in kd.parallel(kd.tile('T', starts=x)):\n    y[m, :] = 1.0": "starts is the tensor x[T, D] of f32",
    "for m in kd.parallel(kd.tile('T', starts=3)):\n    y[m, :] = 1.0": "starts is 3 (int)",
    "for m in kd.parallel(kd.tile('T')):\n    y[m, :] = x[m, :] * (m.group + 1)": "m.group of a tile that has none",
    "for m in kd.parallel('T'):\n    for n in kd.sequential(kd.tile('T', starts=cu)):\n        pass": "starts of a sequential",
    "for m in kd.parallel(kd.tile('T', starts=cu)):\n    z[m.group, :] = kd.sum(x[m, :], axis=0)": "stored without m in its",
    "for m in kd.parallel(kd.tile('T', starts=cu)):\n    for n in kd.sequential(kd.tile('T'), start=cu[m.group], "
    "stop=cu[m.group + 1]):\n        y[n, :] = x[n, :]": "stored without m in its index",
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED, ids=REFUSED.values())
def test_what_is_refused(text: str, tmp_path: Any) -> None:
    dtypes = {"x": "f32", "cu": "i32", "two": "i32", "y": "f32", "z": "f32"}
    body = "".join(f"    {line}\n" for line in text.splitlines())
    with pytest.raises(KernelError) as error:
        Instance.of_shapes(snippet(tmp_path, SIGNATURE + body), {"T": 8, "D": 4, "C": 3, "G": 2}, dtypes).lower()
    assert REFUSED[text] in str(error.value)


# ------------------------------------------------------------------ configs and launches
def _instance(**dims: int) -> Instance:
    dtypes = {"x": "bf16", "weight": "bf16", "cu": "i32", "y": "bf16"}
    return Instance.of_shapes(experts, {"T": 5000, "E": 40, "K": 512, "N": 256, "C": 41} | dims, dtypes)


def _walked() -> Instance:
    return Instance.of_shapes(scaled, {"T": 5000, "D": 4, "C": 41, "G": 40}, _DTYPES)


def test_another_number_of_groups_is_of_the_same_class_and_text() -> None:
    chip = targets.get("nvidia-h200")
    found = spans(_instance().lower(), dict(_instance().extents.dims))
    assert found["C"] == (33, 64)
    assert found["E"] == (40, 40)
    assert spans(_walked().lower(), dict(_walked().extents.dims))["T"] == (4097, 8192)
    assert _walked().specialisation.alike(Config(), dict(_walked().extents.dims))["C"] == (33, 64)
    config = space(_instance(), chip).first
    assert emit(_instance(), chip, config).text == emit(_instance(C=64), chip, config).text


@kd.kernel(x="T K", weight="N K", cu="C", y="T N")
def product(x: kd.In, weight: kd.In, cu: kd.In, y: kd.Out) -> None:
    for m, n in kd.parallel(kd.tile("T", starts=cu), kd.tile("N")):
        total = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K")):
            total = kd.dot(x[m, k], weight[n, k].T, total)
        y[m, n] = total


def test_programs_neither_go_on_to_another_tile_nor_share_one_out() -> None:
    """Consumers would take rows of the next group, and spare places would break the run of tiles."""
    dtypes = {"x": "bf16", "weight": "bf16", "cu": "i32", "y": "bf16"}
    instance = Instance.of_shapes(product, {"T": 8192, "K": 4096, "N": 4096, "C": 9}, dtypes)
    assert "its tiles keep within groups" in str(why_not(instance.lower()))
    found = space(instance, targets.get("nvidia-h200"))
    assert "schedule" not in found.first
    assert found.why_illegal(found.first) is None
    assert found.why_illegal(found.first | {"persistent": True}) is not None


def test_what_lies_beyond_a_group_is_neither_read_beyond_the_dim_nor_stored() -> None:
    """Whatever divides the dim: a tile ends where its group does."""
    config = Config(block_T=64, block_N=64, block_K=64, num_warps=4, num_stages=2, descriptors=True)
    text = emit(_instance(T=4096), targets.get("nvidia-h200"), config).text
    assert "weight_desc.load(" in text
    assert "x_desc.load([m_start, k_start])" in text
    assert "y_desc" not in text
    assert "mask=m_valid[:, None]" in text
    plain = emit(_instance(T=4096), targets.get("nvidia-h200"), Config({**config, "descriptors": False})).text
    assert "m_inside = m_index % T - m_start" in plain


def test_the_mean_group_is_known() -> None:
    facts = collect(_walked().lower(), _walked().extents)
    for loop in facts.loops:  # up to the tile's last row, and from its first
        assert mean_span(loop, facts.variables, facts.dims, {"block_T": 1}) == pytest.approx(5000 / 40 / 2, rel=0.1)
        assert mean_steps(loop, facts.variables, facts.dims, {"block_T": 4}) == pytest.approx(5000 / 40 / 2 / 4, rel=0.1)


@kd.kernel(x="T D", z="S D", cu="C", other="C", lengths="C", y="T D")
def beside(x: kd.In, z: kd.In, cu: kd.In, other: kd.In, lengths: kd.In, y: kd.Out, by_length: kd.Static) -> None:
    """Rows of one tensor with those of another that belong to the same group."""
    for m in kd.parallel(kd.tile("T", starts=cu)):
        total = x[m, :].to(kd.f32)
        stop = other[m.group] + lengths[m.group] if by_length else other[m.group + 1]
        for n in kd.sequential(kd.tile("S"), start=other[m.group], stop=stop):
            total += kd.sum(z[n, :], axis=0)[None, :]
        y[m, :] = total


@pytest.mark.parametrize(("by_length", "mean"), [(False, 9000 / 40), (True, 9000)])
def test_so_are_its_rows_in_another_tensor_whose_ends_are_read(by_length: bool, mean: float) -> None:
    """Not where a length is read: nobody knows what one is."""
    dims = {"T": 5000, "S": 9000, "D": 8, "C": 41}
    dtypes = {"x": "f32", "z": "f32", "cu": "i32", "other": "i32", "lengths": "i32", "y": "f32"}
    instance = Instance.of_shapes(beside, dims, dtypes, {"by_length": by_length})
    facts = collect(instance.lower(), instance.extents)
    (loop,) = facts.loops
    assert mean_span(loop, facts.variables, facts.dims, {"block_T": 16}) == mean


@pytest.mark.parametrize("target", ["nvidia-h200", "amd-mi300x"])
def test_it_compiles_without_spills(target: str) -> None:
    report = kd.compile(experts, target, shapes={"T": 8192, "E": 8, "K": 1024, "N": 1024, "C": 9},
                        dtypes={"x": "bf16", "weight": "bf16", "cu": "i32", "y": "bf16"})  # fmt: skip
    assert not report.spills
