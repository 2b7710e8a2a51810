"""Tensors of 8-bit integers: loaded, computed with in 32 bits, and stored, by every backend."""

from typing import Any

import numpy as np
import pytest
import torch

import kpt_dsl as kd
from tests.language.backends import BACKENDS, run

TORCH = {"i8": torch.int8, "u8": torch.uint8}


@kd.kernel(x="M N", scale="M", y="M N", wide="M N", total="M", least="M", negated="M N", same="M N")
def computed(
    x: kd.In, scale: kd.In, y: kd.Out, wide: kd.Out, total: kd.Out, least: kd.Out, negated: kd.Out, same: kd.Out
) -> None:
    """Dequantised, multiplied as integers, reduced, negated, and copied where a condition holds."""
    for m in kd.parallel(kd.tile("M")):
        y[m, :] = x[m, :] * scale[m][:, None]
        wide[m, :] = x[m, :] * x[m, :] + 1
        total[m] = kd.sum(x[m, :], axis=1)
        least[m] = kd.min(x[m, :], axis=1)
        negated[m, :] = -kd.abs(x[m, :])
        same[m, :] = kd.where(x[m, :] > 3, x[m, :], x[m, :] & 1)


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("backend", BACKENDS)
def test_arithmetic_is_in_32_bits(backend: str, dtype: str) -> None:
    x = torch.arange(-128, 128).repeat(3)[: 37 * 20].reshape(37, 20).to(TORCH[dtype])
    scale = torch.rand(37)
    outputs = {
        "y": torch.empty(37, 20), "wide": torch.empty(37, 20, dtype=torch.int32), "total": torch.empty(37, dtype=torch.int32),
        "least": torch.empty_like(x[:, 0]), "negated": torch.empty(37, 20, dtype=torch.int32), "same": torch.empty_like(x),
    }  # fmt: skip
    run(computed, backend, x, scale, *outputs.values())
    whole = x.int()
    torch.testing.assert_close(outputs["y"], x.float() * scale[:, None], rtol=1e-6, atol=0)
    assert torch.equal(outputs["wide"], whole * whole + 1)
    assert torch.equal(outputs["total"], whole.sum(1).int())
    assert torch.equal(outputs["least"], x.amin(1))
    assert torch.equal(outputs["negated"], -whole.abs())
    assert torch.equal(outputs["same"], torch.where(x > 3, x, x & 1))


@kd.kernel(x="N", y="N", back="N")
def stored(x: kd.In, y: kd.Out, back: kd.Out) -> None:
    for n in kd.parallel(kd.tile("N")):
        y[n] = x[n]
        back[n] = x[n].to(kd.i8).to(kd.f32) - x[n].to(kd.u8).to(kd.f32)


@kd.kernel(x="N", y="N", back="N")
def stored_one_by_one(x: kd.In, y: kd.Out, back: kd.Out) -> None:
    for n in kd.parallel("N"):
        y[n] = x[n]
        back[n] = x[n].to(kd.i8).to(kd.f32) - x[n].to(kd.u8).to(kd.f32)


def held(values: Any, dtype: str, saturates: bool) -> Any:
    low, high = (-128, 127) if dtype == "i8" else (0, 255)
    return np.clip(values, low, high) if saturates else (values - low) % 256 + low


@pytest.mark.parametrize("kernel", [stored, stored_one_by_one], ids=lambda k: k.name)
@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("backend", BACKENDS)
def test_integers_wrap_and_floats_saturate(backend: str, dtype: str, kernel: kd.Kernel) -> None:
    whole = torch.tensor([0, 1, -1, 127, 128, -128, -129, 255, 256, 1000, 2**31 - 1, -(2**31)], dtype=torch.int32)
    fractions = torch.tensor([0.0, 0.9, -0.9, 126.9, 128.0, -128.9, -129.0, 255.9, 256.0, 3e9, torch.inf, -torch.inf])
    fractions = torch.cat([fractions, torch.tensor([torch.nan])])
    for x in (whole, fractions):
        y, back = torch.full(x.shape, 77, dtype=TORCH[dtype]), torch.empty(x.shape)
        run(kernel, backend, x, y, back)
        exact = np.nan_to_num(np.trunc(x.double().numpy()))
        assert y.tolist() == held(exact, dtype, x is fractions).tolist()
        assert back.tolist() == (held(exact, "i8", x is fractions) - held(exact, "u8", x is fractions)).tolist()


@kd.kernel(x="N", total="ONE", most="ONE")
def carried(x: kd.In, total: kd.Out, most: kd.Out) -> None:
    """Tiles with one axis, masked; a variable of the type, which a loop carries."""
    for one in kd.parallel("ONE"):
        seen, top = kd.full([], 0, kd.i32), kd.full([], 1, x.dtype)
        for n in kd.sequential(kd.tile("N")):
            seen += kd.sum(x[n] + 1, axis=0)
            top = kd.maximum(top, kd.max(x[n], axis=0)).to(x.dtype)
        total[one] = seen
        most[one] = top


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("backend", BACKENDS)
def test_loops_carry_them(backend: str, dtype: str) -> None:
    x = (torch.arange(999) * 37 % 200 - 100).to(TORCH[dtype])
    total, most = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=TORCH[dtype])
    run(carried, backend, x, total, most, block_N=128)
    assert total.item() == (x.int() + 1).sum()
    assert most.item() == x.max()


@kd.kernel(x="N", y="N")
def copied(x: kd.In, y: kd.Out) -> None:
    for n in kd.parallel("N"):
        value = x[n]
        y[n] = value


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_element_at_a_time(backend: str, dtype: str) -> None:
    x = torch.arange(-4, 252).to(TORCH[dtype])
    y = torch.zeros_like(x)
    run(copied, backend, x, y)
    assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("target", ["nvidia-h200", "nvidia-a100", "amd-mi300x", "amd-rx-7900"])
def test_they_compile(target: str, dtype: str) -> None:
    dtypes = dict.fromkeys(("wide", "total", "negated"), "i32") | dict.fromkeys(("x", "least", "same"), dtype)
    dtypes |= {"scale": "f32", "y": "bf16"}
    report = kd.compile(computed, target, shapes={"M": 4096, "N": 1000}, dtypes=dtypes)
    assert not report.spills
