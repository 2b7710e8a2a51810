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


@pytest.mark.parametrize("first", [0, 16, 33, 40])
def test_a_number_is_carried_between_bounds_that_the_call_gives(first: int) -> None:
    x, z, y = torch.randn(5), torch.randn(33), torch.empty(5)
    shifted(x, z, y, first, backend="pallas")
    assert_close(y, x.double() + z[first:].double().sum(), "f32", 33)
