"""``kd.sequential("Q")``: one index after the other, on every backend, with bounds of all kinds, in loops and around them."""

import pytest
import torch

import kpt_dsl as kd
from kpt_dsl import TargetError
from kpt_dsl.cost import work
from kpt_dsl.instance import Instance
from tests.tolerances import assert_close

BACKENDS = ("numpy", "triton", "pallas")
M, Q, S = 5, 7, 37


@kd.kernel(x="M Q S", scale="M Q", y="M")
def scaled_groups(x: kd.In, scale: kd.In, y: kd.Out) -> None:
    for m in kd.parallel("M"):
        total = kd.full([], 0.0)
        for q in kd.sequential("Q"):
            total += kd.sum(x[m, q, :], axis=0) * scale[m, q]
        y[m] = total


@kd.kernel(x="M Q S", scale="M Q", y="M S")
def weighted(x: kd.In, scale: kd.In, y: kd.Out, first: kd.Int) -> None:
    """The index as a number, and columns of a tile."""
    for m, s in kd.parallel(kd.tile("M"), kd.tile("S")):
        total = kd.zeros([m, s])
        for q in kd.sequential("Q", start=first, stop=kd.size("Q") - 1):
            total += x[m, q, s] * scale[m, q][:, None] * (q + 1)
        y[m, s] = total


@kd.kernel(x="M Q S", y="M Q")
def recurrence(x: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        state = kd.zeros([m])
        for q in kd.sequential("Q"):
            state = state * 0.5 + kd.sum(x[m, q, :], axis=1)
            y[m, q] = state


@kd.kernel(x="M Q S", lengths="M", y="M S")
def as_long_as_loaded(x: kd.In, lengths: kd.In, y: kd.Out) -> None:
    for m, s in kd.parallel("M", kd.tile("S")):
        total = kd.zeros([s])
        for q in kd.sequential("Q", stop=lengths[m]):
            total += x[m, q, s]
        y[m, s] = total


@kd.kernel(x="M Q S", y="M S", z="M")
def twice(x: kd.In, y: kd.Out, z: kd.Out) -> None:
    """Two loops over one dim, by tiles and by indices, and what is between."""
    for m in kd.parallel(kd.tile("M")):
        total = kd.zeros([m, "S"])
        for q in kd.sequential("Q"):
            total += x[m, q, :] * q
        low = kd.min(total, axis=1)
        for q in kd.sequential("Q", stop=3):
            total += x[m, q, :]
        most = kd.full([m], -kd.inf)
        for t in kd.sequential(kd.tile("Q")):
            most = kd.maximum(most, kd.max(kd.max(x[m, t, :], axis=2), axis=1))
        y[m, :] = total
        z[m] = most + low


@kd.kernel(x="M Q S", y="M")
def around_tiles(x: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        total = kd.zeros([m])
        for q in kd.sequential("Q"):
            for s in kd.sequential(kd.tile("S")):
                total += kd.sum(kd.where(s.index[None, :] <= q, x[m, q, s], 0.0), axis=1)
        y[m] = total


@kd.kernel(x="M Q S", y="M")
def inside_tiles(x: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        total = kd.zeros([m])
        for s in kd.sequential(kd.tile("S")):
            for q in kd.sequential("Q"):
                total += kd.sum(kd.where(s.index[None, :] <= q, x[m, q, s], 0.0), axis=1)
        y[m] = total


@kd.kernel(a="M K", b="N K", scale="N G", y="M N")
def grouped_product(a: kd.In, b: kd.In, scale: kd.In, y: kd.Out, width: kd.Int) -> None:
    """A product whose right operand has a scale for each group of ``width`` columns."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        total = kd.zeros([m, n])
        for g in kd.sequential("G"):
            part = kd.zeros([m, n])
            for k in kd.sequential(kd.tile("K"), start=g * width, stop=(g + 1) * width):
                part = kd.dot(a[m, k], b[n, k].T, part)
            total += part * scale[n, g][None, :]
        y[m, n] = total


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_each_with_a_scale(backend: str) -> None:
    x, scale, y = drawn(M, Q, S), drawn(M, Q), torch.empty(M)
    scaled_groups(x, scale, y, backend=backend)
    assert_close(y, (x.double().sum(2) * scale.double()).sum(1), "f32", Q * S)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("first", [-3, 0, 1, 6, 9])
def test_bounds_are_kept_within_the_dim(backend: str, first: int) -> None:
    x, scale, y = drawn(M, Q, S), drawn(M, Q), torch.empty(M, S)
    weighted(x, scale, y, first, backend=backend)
    every = x.double() * scale.double()[:, :, None] * torch.arange(1, Q + 1)[None, :, None]
    assert_close(y, every[:, max(0, first) : Q - 1].sum(1), "f32", Q)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_recurrence_stores_each_of_its_states(backend: str) -> None:
    x, y = drawn(M, Q, S), torch.empty(M, Q)
    recurrence(x, y, backend=backend)
    state, states = torch.zeros(M).double(), []
    for q in range(Q):
        state = state * 0.5 + x[:, q].double().sum(1)
        states.append(state)
    assert_close(y, torch.stack(states, 1), "f32", Q * S)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bounds_may_be_loaded(backend: str) -> None:
    x, y = drawn(M, Q, S), torch.empty(M, S)
    lengths = torch.tensor([3, 0, 9, -2, 7], dtype=torch.int32)
    as_long_as_loaded(x, lengths, y, backend=backend)
    expected = [x[m, : max(0, n)].double().sum(0) for m, n in enumerate(lengths.tolist())]
    assert_close(y, torch.stack(expected), "f32", Q)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_loop_after_another(backend: str) -> None:
    x, y, z = drawn(M, Q, S), torch.empty(M, S), torch.empty(M)
    twice(x, y, z, backend=backend)
    total = (x.double() * torch.arange(Q)[None, :, None]).sum(1)
    assert_close(y, total + x[:, :3].double().sum(1), "f32", Q)
    assert_close(z, x.double().amax((1, 2)) + total.amin(1), "f32", Q)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", [around_tiles, inside_tiles], ids=["around", "inside"])
@pytest.mark.parametrize("block", [4, 16, 64])
def test_loops_in_loops(backend: str, kernel: kd.Kernel, block: int) -> None:
    x, y = drawn(M, Q, S), torch.empty(M)
    if backend == "pallas" and block < S:
        with pytest.raises(kd.KptError, match=r"loop inside another|multiple of"):
            kernel(x, y, backend=backend, config={"block_M": 8, "block_S": block})
        return
    kernel(x, y, backend=backend, config={"block_M": 8, "block_S": block})
    seen = torch.arange(S)[None, :] <= torch.arange(Q)[:, None]
    assert_close(y, (x.double() * seen).sum((1, 2)), "f32", Q * S)


@pytest.mark.parametrize("backend", ["numpy", "triton"])
@pytest.mark.parametrize("width", [16, 20])
def test_a_product_in_groups(backend: str, width: int) -> None:
    a, b, scale, y = drawn(9, 60), drawn(19, 60), drawn(19, 3), torch.empty(9, 19)
    grouped_product(a, b, scale, y, width, backend=backend, config={"block_M": 16, "block_N": 16, "block_K": 16})
    expected = torch.zeros(9, 19).double()
    for g in range(3):
        columns = slice(g * width, (g + 1) * width)
        expected += (a.double()[:, columns] @ b.double()[:, columns].T) * scale.double()[None, :, g]
    assert_close(y, expected, "f32", 60)


def test_a_tpu_says_that_loops_do_not_nest_there() -> None:
    a, b, scale, y = drawn(9, 60), drawn(19, 60), drawn(19, 3), torch.empty(9, 19)
    with pytest.raises(TargetError, match="sequential loop inside another"):
        grouped_product(a, b, scale, y, 20, backend="pallas")


def test_work_is_counted_by_turns() -> None:
    """Each of the groups is thought to take the whole of K, since only the run knows ``width``."""
    dtypes = dict.fromkeys(("a", "b", "scale", "y"), "bf16")
    instance = Instance.of_shapes(grouped_product, {"M": 64, "N": 32, "K": 128, "G": 4}, dtypes)
    assert work(instance).flops == 4 * 2 * 64 * 32 * 128
