"""kd.index: the indices of a whole dim, beside those of tiles of the same dim, on every backend."""

import pytest
import torch

import kpt_dsl as kd
from kpt_dsl.buckets import exact_dims
from kpt_dsl.instance import Instance
from tests.language.backends import BACKENDS, run


@kd.kernel(x="M N", y="M N", last="M")
def indexed(x: kd.In, y: kd.Out, last: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        column = kd.index("N")
        y[m, :] = kd.where(column[None, :] <= m.index[:, None], x[m, :] + column[None, :], 0.0)
        last[m] = kd.max(kd.where(x[m, :] > 0.5, column[None, :], -1), axis=1)


@kd.kernel(x="N", y="N")
def below(x: kd.In, y: kd.Out) -> None:
    """How many indices of N are smaller, where nothing holds N whole but the indices."""
    for n in kd.parallel(kd.tile("N")):
        less = kd.where(kd.index("N")[None, :] < n.index[:, None], 1, 0)
        y[n] = x[n] + kd.sum(less, axis=1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("extent", [1, 37, 64])
def test_of_a_row(backend: str, extent: int) -> None:
    x = torch.rand(19, extent)
    y, last = torch.empty_like(x), torch.empty(19, dtype=torch.int32)
    run(indexed, backend, x, y, last)
    column = torch.arange(extent)
    assert torch.equal(y, (x + column).tril())
    assert torch.equal(last, torch.where(x > 0.5, column, -1).amax(1).int())


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_extent_has_its_own(backend: str) -> None:
    """One after the other, as calls of one class would come."""
    for extent in (33, 40, 64, 65):
        x, y = torch.zeros(extent), torch.empty(extent)
        run(below, backend, x, y)
        assert y.tolist() == list(range(extent))
    assert "N" in exact_dims(Instance.of_shapes(below, {"N": 40}, {"x": "f32", "y": "f32"}).lower())


def test_of_no_dim() -> None:
    with pytest.raises(kd.KernelError, match="'K' is not a dim of this kernel"):
        Instance.of_shapes(of_no_dim, {"N": 40}, {"x": "f32"}).lower()


@kd.kernel(x="N")
def of_no_dim(x: kd.Out) -> None:
    for n in kd.parallel(kd.tile("N")):
        x[n] = kd.index("K")
