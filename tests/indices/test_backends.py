"""Indices on every backend: right where they are some, else an error that says which; on Pallas the nearest that is."""

import pytest
import torch

import kpt_dsl as kd
from tests.indices import kernels
from tests.indices.running import BACKENDS, run, whole
from tests.tolerances import assert_close

TABLE = torch.arange(12.0).reshape(6, 2)
BAD = [
    (whole(0, 6, 2), 6),
    (whole(0, 1, -1), -1),
    (whole(2**31 - 1, 0, 0), 2**31 - 1),
    (whole(-(2**31), 0, 0), -(2**31)),
]
CHECKING = ("numpy", "triton")


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_are_looked_up(backend: str) -> None:
    index, other = whole(5, 0, 3), whole(1, 2, 0)
    want = TABLE[index]
    torch.testing.assert_close(run(kernels.rows, backend, {"y": want}, table=TABLE, index=index)["y"], want)
    got = run(kernels.two_tables, backend, {"y": want}, table=TABLE, first=index, second=other)["y"]
    torch.testing.assert_close(got, want + 10 * TABLE[other] + 100 * TABLE[index[other]])
    wide = torch.randn(6, 300)
    got = run(kernels.tiled_rows, backend, {"y": (3, 300)}, block=128, table=wide, index=index)["y"]
    torch.testing.assert_close(got, wide[index])
    got = run(kernels.one_row, backend, {"y": (2,)}, x=TABLE, i=5)["y"]
    torch.testing.assert_close(got, TABLE[5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_nobody_stores_stay(backend: str, dtype: torch.dtype) -> None:
    x = TABLE[:3].to(dtype)
    got = run(kernels.scattered, backend, {"y": TABLE.to(dtype)}, x=x, index=whole(5, 0, 3))["y"]
    want = torch.full((6, 2), 77, dtype=dtype)
    want[[5, 0, 3]] = x
    torch.testing.assert_close(got, want)
    got = run(kernels.into_sixth, backend, {"y": (3, 8)}, x=torch.ones(3, 8))["y"]
    assert got.tolist() == [[77.0] * 5 + [8.0, 77.0, 77.0]] * 3


@pytest.mark.parametrize(("index", "culprit"), BAD, ids=[str(culprit) for _, culprit in BAD])
@pytest.mark.parametrize("backend", CHECKING)
def test_what_is_no_index_is_named(backend: str, index: torch.Tensor, culprit: int) -> None:
    says = f"rows indexes table\\[V, D\\] along V with {culprit}, but its extent is 6: indices go from 0 to 5"
    with pytest.raises(kd.IndexRangeError, match=rf"kernels\.py:\d+: {says}"):
        run(kernels.rows, backend, {"y": (3, 2)}, table=TABLE, index=index)
    with pytest.raises(kd.IndexRangeError, match=rf"unguarded indexes table\[V, D\] along V with {culprit}"):
        run(kernels.unguarded, backend, {"y": (3, 2)}, table=TABLE, index=index)
    with pytest.raises(kd.IndexRangeError, match=rf"scattered indexes y\[V, D\] along V with {culprit}"):
        run(kernels.scattered, backend, {"y": (6, 2)}, x=TABLE[:3], index=index)
    with pytest.raises(kd.IndexRangeError, match=rf"one_row indexes x\[M, D\] along M with {culprit}"):
        run(kernels.one_row, backend, {"y": (2,)}, x=TABLE, i=culprit)
    with pytest.raises(kd.IndexRangeError, match="along V with 0, but its extent is 0: it has none"):
        run(kernels.rows, backend, {"y": (1, 2)}, table=TABLE[:0], index=whole(0))


@pytest.mark.parametrize("backend", CHECKING)
def test_the_line_is_that_of_the_index(backend: str) -> None:
    line = kernels.unguarded.source.first_line + 5
    with pytest.raises(kd.IndexRangeError, match=rf"^kernels\.py:{line}: unguarded"):
        run(kernels.unguarded, backend, {"y": (3, 2)}, table=TABLE, index=whole(0, 6, 0))


def test_pallas_reads_nothing_elsewhere() -> None:
    index = whole(0, 6, -1)
    got = run(kernels.rows, "pallas", {"y": (3, 2)}, table=TABLE, index=index)["y"]
    torch.testing.assert_close(got, TABLE[[0, 5, 0]])
    got = run(kernels.scattered, "pallas", {"y": (6, 2)}, x=TABLE[:3], index=whole(0, 60, 3))["y"]
    assert got.tolist() == [[0.0, 1.0], [77.0] * 2, [77.0] * 2, [4.0, 5.0], [77.0] * 2, [2.0, 3.0]]
    x = torch.tensor([1.0, 2.0, 3.0])
    got = run(kernels.elements_or, "pallas", {"y": x}, x=x, keep=torch.tensor([True] * 3), ahead=1)["y"]
    assert got.tolist() == [2.0, 3.0, 3.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_load_in_a_branch_is_made_where_the_branch_is_taken(backend: str) -> None:
    index = whole(0, 6, -1, 5, 2**31 - 1)
    got = run(kernels.rows_or, backend, {"y": (5, 2)}, table=TABLE, index=index)["y"]
    assert got.tolist() == [[0.0, 1.0], [7.0, 7.0], [7.0, 7.0], [10.0, 11.0], [7.0, 7.0]]
    got = run(kernels.rows_or_else, backend, {"y": (5, 2)}, table=TABLE, index=index)["y"]
    assert got.tolist() == [[0.0, 3.0], [8.0, 8.0], [7.0, 7.0], [30.0, 33.0], [8.0, 8.0]]
    x = torch.arange(4.0)
    keep = torch.tensor([True, True, False, False])
    got = run(kernels.elements_or, backend, {"y": x}, x=x, keep=keep, ahead=2)["y"]
    assert got.tolist() == [2.0, 3.0, -1.0, -1.0]


@pytest.mark.parametrize("backend", CHECKING)
def test_a_condition_that_lets_a_bad_index_through_does_not_hide_it(backend: str) -> None:
    x = torch.arange(4.0)
    with pytest.raises(kd.IndexRangeError, match=r"elements_or indexes x\[N\] along N with 4"):
        run(kernels.elements_or, backend, {"y": x}, x=x, keep=torch.tensor([True, False, True, False]), ahead=2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_literal_beyond_its_dim_is_refused(backend: str) -> None:
    line = kernels.sixth.source.first_line + 3
    with pytest.raises(kd.IndexRangeError) as caught:
        run(kernels.sixth, backend, {"y": (3,)}, x=torch.ones(3, 5))
    message, shown, caret, remedy = str(caught.value).splitlines()
    assert message == f"kernels.py:{line}: sixth: index 5 of x[M, D] along D, whose extent is 5"
    assert remedy.strip() == "indices of D go from 0 to 4"
    assert shown[caret.index("^") : caret.rindex("^") + 1] == "5"
    assert isinstance(caught.value, kd.InputError)
    with pytest.raises(kd.IndexRangeError, match=r"into_sixth: index 5 of y\[M, D\] along D"):
        run(kernels.into_sixth, backend, {"y": (3, 5)}, x=torch.ones(3, 5))
    with pytest.raises(kd.IndexRangeError, match=r"last: index -1 of x\[M, D\] along D, whose extent is 0"):
        run(kernels.last, backend, {"y": (3,)}, x=torch.ones(3, 0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_program_indexes_nothing(backend: str) -> None:
    assert run(kernels.sixth, backend, {"y": (0,)}, x=torch.ones(0, 5))["y"].shape == (0,)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_literal_under_a_condition_is_the_conditions_business(backend: str) -> None:
    got = run(kernels.sixth_where_there_is_one, backend, {"y": (3,)}, x=torch.ones(3, 5))["y"]
    assert got.tolist() == [-1.0] * 3
    got = run(kernels.sixth_where_there_is_one, backend, {"y": (3,)}, x=torch.ones(3, 6))["y"]
    assert got.tolist() == [1.0] * 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_that_do_not_divide_leave_their_tensor(backend: str) -> None:
    q, k = torch.zeros(6, 4), torch.arange(12.0).reshape(3, 4)
    got = run(kernels.grouped, backend, {"y": q}, q=q, k=k)["y"]
    torch.testing.assert_close(got, k.repeat_interleave(2, 0))
    q = torch.zeros(7, 4)
    if backend == "pallas":
        got = run(kernels.grouped, backend, {"y": q}, q=q, k=k)["y"]
        torch.testing.assert_close(got, k[[0, 0, 1, 1, 2, 2, 2]])
        return
    with pytest.raises(kd.IndexRangeError, match=r"grouped indexes k\[G, D\] along G with 3, but its extent is 3"):
        run(kernels.grouped, backend, {"y": q}, q=q, k=k)


ENDS = (-(2**31), -5, 0, 1, 100, 128, 255, 299, 300, 301, 2**31 - 100, 2**31 - 1)


@pytest.mark.parametrize("block", [16, 128, 512])
@pytest.mark.parametrize("backend", BACKENDS)
def test_loaded_bounds_never_leave_the_dim(backend: str, block: int) -> None:
    if backend == "pallas" and block < 128:
        pytest.skip("a TPU's tiles along a last dim are multiples of 128")
    pairs = [(low, high) for low in ENDS for high in ENDS]
    x, low, high = torch.arange(300.0), whole(*(a for a, _ in pairs)), whole(*(b for _, b in pairs))
    visited = [range(max(a, 0), min(b, 300)) for a, b in pairs]
    shapes = {"sums": (len(pairs),), "counts": low}
    got = run(kernels.bounded, backend, shapes, block=block, x=x, low=low, high=high)
    assert got["counts"].tolist() == list(map(len, visited))
    assert_close(got["sums"].numpy(), torch.tensor([float(sum(v)) for v in visited]).numpy(), "f32", 300)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_scalars_of_every_kind(backend: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, scale, flag = torch.randn(4, 5).to(dtype), torch.randn(4).to(dtype), torch.tensor([True, False, True, False])
    got = run(kernels.scaled, backend, {"y": x, "z": whole(0, 0, 0, 0)}, x=x, scale=scale, flag=flag)
    other = torch.where(~flag & (scale > 0), scale.float(), -1.0)
    want = torch.where(flag[:, None], x.float() * scale.float()[:, None], other[:, None])
    torch.testing.assert_close(got["y"], want.to(dtype))
    assert got["z"].tolist() == [2, 1, 2, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_scalars_that_loops_carry(backend: str) -> None:
    x = torch.full((4, 300), -2.0)
    x[0, 299], x[1, 10], x[1, 299] = 5.0, 0.5, 9.0
    got = run(
        kernels.largest, backend, {"y": (4,), "found": whole(0, 0, 0, 0)}, block=128, x=x, stop=whole(300, 200, 0, -7)
    )
    assert got["y"].tolist() == [5.0, 0.5, -torch.inf, -torch.inf]
    assert got["found"].tolist() == [1, 0, 0, 0]
