"""Elementwise functions that each backend finds its own way to: right for every float32, compiled for each kind of device."""

import math

import numpy as np
import pytest
import torch

import kpt_dsl as kd
from tests.language.backends import BACKENDS, run
from tests.tolerances import assert_close


@kd.kernel(x="N", sine="N", cosine="N", nearest="N")
def functions(x: kd.In, sine: kd.Out, cosine: kd.Out, nearest: kd.Out) -> None:
    for n in kd.parallel(kd.tile("N")):
        sine[n] = kd.sin(x[n])
        cosine[n] = kd.cos(x[n])
        nearest[n] = kd.round(x[n])


def applied(backend: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    outputs = torch.full_like(x, 77.0), torch.full_like(x, 77.0), torch.full_like(x, 77.0)
    run(functions, backend, x, *outputs)
    return outputs


@pytest.mark.parametrize("backend", BACKENDS)
def test_sine_and_cosine_of_any_finite_number(backend: str) -> None:
    """Also where the argument is reduced by many bits of pi; near zero the sine is right to its own last places."""
    x = torch.logspace(-30, 38, 5000)
    x = torch.cat([x, -x, torch.tensor([0.0, 3.14159274, 105615.0, 1e6, 3.4e38])])
    sine, cosine, _ = applied(backend, x)
    assert_close(sine, x.double().sin(), "f32", scale=1.0)
    assert_close(cosine, x.double().cos(), "f32", scale=1.0)
    small = x[x.abs() < 1.0]
    assert_close(sine[x.abs() < 1.0] / small.where(small != 0, 1), (small.double().sin() / small).nan_to_num(0), "f32")
    sine, cosine, _ = applied(backend, torch.tensor([math.inf, -math.inf, math.nan]))
    assert sine.isnan().all()
    assert cosine.isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_round_takes_the_even_one_of_two(backend: str) -> None:
    halves = torch.arange(-40, 41) / 4
    large = 2.0 ** torch.arange(20, 127, dtype=torch.float32)
    edges = torch.cat([large, torch.nextafter(large, torch.zeros(107)), large[:5] + 0.5])
    nearly = torch.nextafter(torch.tensor([0.5, 1.5, 2.5]), torch.zeros(3))
    x = torch.cat([halves, edges, -edges, nearly, -nearly, torch.tensor([-0.0, math.inf, -math.inf, math.nan])])
    *_, nearest = applied(backend, x)
    np.testing.assert_array_equal(nearest, x.round())
    np.testing.assert_array_equal(nearest.signbit(), x.round().signbit())


@pytest.mark.parametrize("target", ["nvidia-h200", "nvidia-a100", "nvidia-rtx-5090", "amd-mi300x", "amd-rx-7900"])
def test_they_compile_without_spills(target: str) -> None:
    report = kd.compile(functions, target, shapes={"N": 1 << 20}, dtypes="f32")
    assert not report.spills
