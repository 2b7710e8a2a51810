"""The checking mode on a real GPU: a bad index is named, nothing is read or written there, and the device stays usable."""

import pytest

import kpt
import kpt_dsl as kd
from tests.indices import kernels

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
]


def whole(*values: int):  # type: ignore[no-untyped-def]
    return torch.tensor(values, dtype=torch.int32, device="cuda")


@pytest.fixture
def table():  # type: ignore[no-untyped-def]
    """Six rows, in the middle of memory that is ours: what strays reads, without the checks, what can be read."""
    return torch.arange(36.0, device="cuda").reshape(18, 2)[6:12]


@pytest.mark.parametrize("culprit", [6, -1, 2**31 - 1, -(2**31)])
def test_a_bad_index_is_named_and_the_device_stays_usable(table, culprit: int) -> None:  # type: ignore[no-untyped-def]
    y = torch.full((3, 2), 77.0, device="cuda")
    for _ in range(2):
        with kd.checking(), pytest.raises(kd.IndexRangeError, match=rf"along V with {culprit}, but its extent is 6"):
            kernels.rows(table, whole(0, culprit, 2), y)
    assert y[[0, 2]].tolist() == table[[0, 2]].tolist()
    with kd.checking():
        kernels.rows(table, whole(5, 0, 3), y)
    assert y.tolist() == table[[5, 0, 3]].tolist()
    with kd.checking(), pytest.raises(kd.IndexRangeError, match=rf"one_row indexes x\[M, D\] along M with {culprit}"):
        kernels.one_row(table, y[0], culprit)


def test_a_store_is_left_out(table) -> None:  # type: ignore[no-untyped-def]
    around = torch.full((18, 2), 77.0, device="cuda")
    with kd.checking(), pytest.raises(kd.IndexRangeError, match=r"scattered indexes y\[V, D\] along V with (-2|7)"):
        kernels.scattered(table[:4], whole(1, -2, 7, 3), around[6:12])
    want = torch.full((18, 2), 77.0, device="cuda")
    want[[7, 9]] = table[[0, 3]]
    assert around.tolist() == want.tolist()


def test_nothing_is_checked_outside(table) -> None:  # type: ignore[no-untyped-def]
    y = torch.empty(3, 2, device="cuda")
    for _ in range(2):
        kernels.rows(table, whole(0, 6, -1), y)
        assert y[:, 0].tolist() == [12.0, 24.0, 10.0]
        with kd.checking(), pytest.raises(kd.IndexRangeError):
            kernels.rows(table, whole(0, 6, -1), y)


def test_loads_in_branches(table) -> None:  # type: ignore[no-untyped-def]
    index, y = whole(0, 6, -1, 5, 2**31 - 1), torch.empty(5, 2, device="cuda")
    for checked in (False, True):
        y.fill_(0.0)
        if checked:
            with kd.checking():
                kernels.rows_or(table, index, y)
        else:
            kernels.rows_or(table, index, y)
        assert y.tolist() == [[12.0, 13.0], [7.0, 7.0], [7.0, 7.0], [22.0, 23.0], [7.0, 7.0]]


def test_loaded_bounds_never_leave_the_dim() -> None:
    ends = (-(2**31), -5, 0, 1, 128, 299, 300, 301, 2**31 - 100, 2**31 - 1)
    pairs = [(low, high) for low in ends for high in ends]
    x = torch.arange(300.0, device="cuda")
    low, high = whole(*(a for a, _ in pairs)), whole(*(b for _, b in pairs))
    sums, counts = torch.empty(len(pairs), device="cuda"), torch.empty_like(low)
    kernels.bounded(x, low, high, sums, counts)
    assert counts.tolist() == [len(range(max(a, 0), min(b, 300))) for a, b in pairs]


def test_ops_serve_within_and_after() -> None:
    x = torch.randn(64, 256, device="cuda", dtype=torch.bfloat16)
    before = kpt.ops.rms_norm(x, (256,))
    with kd.checking():
        within = kpt.ops.rms_norm(x, (256,))
    after = kpt.ops.rms_norm(x, (256,))
    assert torch.equal(before, within)
    assert torch.equal(before, after)


def test_streams_see_their_own_launches(table) -> None:  # type: ignore[no-untyped-def]
    y = torch.empty(3, 2, device="cuda")
    good, bad = whole(0, 1, 2), whole(0, 9, 2)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with kd.checking():
        with torch.cuda.stream(stream), pytest.raises(kd.IndexRangeError, match="with 9"):
            kernels.rows(table, bad, y)
        kernels.rows(table, good, y)
    assert y.tolist() == table[[0, 1, 2]].tolist()
