"""Products with weights of four bits, two a byte: as docs/language.md writes them, right on every backend, and compiled."""

import pytest
import torch

import kpt_dsl as kd
from tests.language.backends import BACKENDS, run


@kd.kernel(x="M P K", weight="N K", y="M N")
def far(x: kd.In, weight: kd.In, y: kd.Out) -> None:
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        total = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K")):
            bits = weight[n, k]
            total = kd.dot(x[m, 0, k], (bits << 28 >> 28).to(kd.f32).T, total)
            total = kd.dot(x[m, 1, k], (bits << 24 >> 28).to(kd.f32).T, total)
        y[m, n] = total


@kd.kernel(x="M K P", weight="N K", y="M N")
def near(x: kd.In, weight: kd.In, y: kd.Out) -> None:
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        total = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K")):
            bits = weight[n, k]
            even, odd = kd.split(x[m, k, :])
            total = kd.dot(even, (bits << 28 >> 28).to(kd.f32).T, total)
            total = kd.dot(odd, (bits << 24 >> 28).to(kd.f32).T, total)
        y[m, n] = total


@pytest.mark.parametrize("held", [torch.uint8, torch.int8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_products(backend: str, dtype: torch.dtype, held: torch.dtype) -> None:
    x, w = torch.randn(37, 200).to(dtype), torch.randint(-8, 8, (65, 200))
    expected = x.double() @ w.double().T
    for kernel, dim in ((far, 1), (near, 2)):
        low, high = w.view(65, *(2, 100)[:: 3 - 2 * dim]).unbind(dim)
        packed = ((high & 15) * 16 + (low & 15)).to(held)
        y = torch.empty(37, 65)
        run(kernel, backend, x.view(37, *(2, 100)[:: 3 - 2 * dim]), packed, y)
        torch.testing.assert_close(y.double(), expected, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("kernel", [far, near])
@pytest.mark.parametrize("target", ["nvidia-h200", "amd-mi300x", "tpu-v6e"])
def test_first_configs_compile(target: str, kernel: kd.Kernel) -> None:
    """Of halves that are far apart without spills: each half of x is in a pipeline of its own, and both fit."""
    rows = 4096 if kernel is far and target == "nvidia-h200" else 16
    shapes, dtypes = {"M": rows, "N": 4096, "K": 2048, "P": 2}, {"x": "bf16", "weight": "u8", "y": "bf16"}
    report = kd.compile(kernel, target=target, shapes=shapes, dtypes=dtypes)
    assert kernel is near or not report.spills
