"""Single numbers that are kept from step to step, beside bounds that only the run knows: XLA once ended the process there."""

import pytest
import torch

import kpt_dsl as kd
from tests.tolerances import assert_close

pytest.importorskip("jax")


@kd.kernel(x="M", z="N", y="M")
def shifted(x: kd.In, z: kd.In, y: kd.Out, first: kd.Int) -> None:
    for m in kd.parallel(kd.tile("M")):
        total = kd.full([], 0.0)
        for n in kd.sequential(kd.tile("N"), start=first):
            total = total + kd.sum(z[n], axis=0)
        y[m] = x[m] + total


@kd.kernel(x="M N", y="M")
def centred(x: kd.In, y: kd.Out, first: kd.Int) -> None:
    """Divides: where generated text does, XLA does not simplify."""
    for m in kd.parallel(kd.tile("M")):
        total, squares = kd.zeros([m]), kd.zeros([m])
        for n in kd.sequential(kd.tile("N"), start=first):
            total = total + kd.sum(x[m, n], axis=1)
            squares = squares + kd.sum(x[m, n] * x[m, n], axis=1)
        y[m] = total / (squares + 1.0)


@pytest.mark.parametrize("first", [0, 16, 33, 40])
def test_a_number_is_carried_between_bounds_that_the_call_gives(first: int) -> None:
    x, z, y = torch.randn(5), torch.randn(33), torch.empty(5)
    shifted(x, z, y, first, backend="pallas")
    assert_close(y, x.double() + z[first:].double().sum(), "f32", 33, scale=4.0)  # as its terms, which may cancel


@pytest.mark.parametrize("extents", [(1, 1), (1, 33), (3, 1), (2, 33)], ids=str)
@pytest.mark.parametrize("first", [0, 1, 40])
def test_rows_of_one_number_are_carried_where_xla_does_not_simplify(extents: tuple[int, int], first: int) -> None:
    x, y = torch.randn(extents), torch.empty(extents[0])
    centred(x, y, first, backend="pallas")
    seen = x[:, first:].double()
    assert_close(y, seen.sum(1) / (seen.square().sum(1) + 1.0), "f32", 33, scale=1.0)
