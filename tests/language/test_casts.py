"""Casts mean one thing on every backend: floats to integers truncate and saturate, NaN is 0; conditions; 64-bit integers."""

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import kpt_dsl as kd
from kpt_dsl import arithmetic
from kpt_dsl.dtypes import ALL, bf16, bool_, f8e4m3, f16, f32, i32, i64
from tests.language.backends import BACKENDS, run

NAN, INF = math.nan, math.inf
WIDE = ("numpy", "triton")
"""The backends that have 64-bit integers."""

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]
HARD = torch.tensor(
    [0.0, -0.0, 0.5, -0.5, 0.999, 1.5, -1.5, 2.5, -2.7, 100.9, 448.0, -448.0, 65504.0, 1e6, 2147483520.0, 2147483648.0,
     -2147483648.0, -2147483904.0, 3e9, -3e9, 9.2e18, 9223372036854775808.0, -9223372036854775808.0, -9.3e18, 1e30, -1e30,
     1e-30, 1e-45, INF, -INF, NAN]
)  # fmt: skip


@kd.kernel(x="N", y="N")
def copied(x: kd.In, y: kd.Out) -> None:
    for n in kd.parallel(kd.tile("N")):
        y[n] = x[n]


@kd.kernel(x="N", y="N")
def copied_one_by_one(x: kd.In, y: kd.Out) -> None:
    for i in kd.parallel("N"):
        y[i] = x[i]


@kd.kernel(x="M N", y="M N")
def copied_rows(x: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        y[m, :] = x[m, :]


@kd.kernel(x="N", y="N")
def truncated(x: kd.In, y: kd.Out) -> None:
    """A float, cast and used as an integer."""
    for n in kd.parallel(kd.tile("N")):
        whole = x[n].to(kd.i32)
        y[n] = kd.where(whole == 2147483647, -1.0, kd.where(whole == -2147483648, -2.0, whole.to(kd.f32)))


@kd.kernel(x="N", y="N")
def numbers(x: kd.In, y: kd.Out, bound: kd.Static) -> None:
    """Numbers known before the kernel runs, cast there."""
    for n in kd.parallel(kd.tile("N")):
        y[n] = x[n].to(kd.i32) + kd.full([], bound).to(kd.i32) + kd.full([n], bound, kd.i32)


@kd.kernel(x="N", y="N")
def rounded_numbers(x: kd.In, y: kd.Out) -> None:
    for n in kd.parallel(kd.tile("N")):
        y[n] = x[n] + kd.full([], 1.001).to(kd.bf16).to(kd.f32) + kd.full([], 500.0).to(kd.f8e4m3).to(kd.f32)


@kd.kernel(x="M N", y="M")
def counted(x: kd.In, y: kd.Out) -> None:
    """Padding goes through casts as all else: 0.5 in it is 0, minus infinity the least integer."""
    for m in kd.parallel(kd.tile("M")):
        tile = x[m, :]
        low = kd.max(kd.where(tile > 0.0, -kd.inf, -kd.inf).to(kd.i32), axis=1)
        odd = kd.sum((tile * 0.0 + 0.5).to(kd.i32) * 2 - 1, axis=1)
        y[m] = odd + kd.sum((tile * 0.0 + 1.5).to(kd.i32), axis=1) * 2 + low


@kd.kernel(x="N", y="N", z="N")
def narrowed(x: kd.In, y: kd.Out, z: kd.Out) -> None:
    for n in kd.parallel(kd.tile("N")):
        y[n] = x[n].to(kd.i32)
        z[n] = x[n].to(kd.i32).to(kd.i64)


@kd.kernel(flag="N", x="N", y="N")
def chosen(flag: kd.In, x: kd.In, y: kd.Out) -> None:
    for i in kd.parallel("N"):
        y[i] = kd.where(~flag[i], x[i], flag[i].to(kd.f32) * 3.0)


@kd.kernel(size="N", y="N")
def halves(size: kd.In, y: kd.Out) -> None:
    """A scalar that follows from extents alone."""
    for n in kd.parallel(kd.tile("N")):
        y[n] = size[n] + (kd.size("N") / 2).to(kd.i32)


def whole(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The rule, in Python's whole numbers."""
    low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    found = [0 if v != v else low if v <= low else high if v >= high else int(v) for v in x.double().tolist()]
    return torch.tensor(found, dtype=dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", [copied, copied_one_by_one], ids=lambda k: k.name)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_floats_to_int32(dtype: torch.dtype, kernel: kd.Kernel, backend: str) -> None:
    x, y = HARD.to(dtype), torch.empty(len(HARD), dtype=torch.int32)
    run(kernel, backend, x, y)
    assert y.tolist() == whole(x, torch.int32).tolist()


@pytest.mark.parametrize("backend", WIDE)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_floats_to_int64(dtype: torch.dtype, backend: str) -> None:
    x, y = HARD.to(dtype), torch.empty(len(HARD), dtype=torch.int64)
    run(copied, backend, x, y)
    assert y.tolist() == whole(x, torch.int64).tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_the_middle_of_a_kernel(backend: str) -> None:
    y = torch.empty(len(HARD))
    run(truncated, backend, HARD, y)
    wanted = whole(HARD, torch.int32)
    edges = {2**31 - 1: -1.0, -(2**31): -2.0}
    assert y.tolist() == [edges.get(v, float(v)) for v in wanted.tolist()]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bound", [NAN, 1.9, -1.9, 7.0])
def test_numbers_known_before(bound: float, backend: str) -> None:
    y = torch.empty(3, dtype=torch.int32)
    run(numbers, backend, torch.tensor([1.5, -1.5, 9.0]), y, bound)
    add = 0 if bound != bound else 2 * int(bound)
    assert y.tolist() == [1 + add, -1 + add, 9 + add]


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_known_before_are_rounded(backend: str) -> None:
    y = torch.empty(3)
    run(rounded_numbers, backend, torch.zeros(3), y)
    assert y.tolist() == [float(torch.tensor(1.001).bfloat16()) + 448.0] * 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_goes_through_casts(backend: str) -> None:
    y = torch.empty(5, dtype=torch.int32)
    run(counted, backend, torch.randn(5, 77), y)
    assert y.tolist() == [77 - 2**31] * 5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", [copied, copied_one_by_one], ids=lambda k: k.name)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.int32, torch.bool], ids=str)
def test_to_conditions(dtype: torch.dtype, kernel: kd.Kernel, backend: str) -> None:
    """True of all but zero, of NaN too, as in PyTorch."""
    x = torch.tensor([0.0, -0.0, 0.25, 1.0, -2.0, NAN, INF]).to(dtype)
    y = torch.empty(len(x), dtype=torch.bool)
    run(kernel, backend, x, y)
    assert y.tolist() == (x.float() != 0).tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", [copied, copied_one_by_one], ids=lambda k: k.name)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.int32], ids=str)
def test_from_conditions(dtype: torch.dtype, kernel: kd.Kernel, backend: str) -> None:
    x = torch.tensor([True, False, True])
    y = torch.empty(3, dtype=dtype)
    run(kernel, backend, x, y)
    assert y.float().tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_conditions_of_two_axes(backend: str) -> None:
    x = torch.randn(9, 40)
    x[x < 0] = 0
    flags, y = torch.empty(9, 40, dtype=torch.bool), torch.empty(9, 40, dtype=torch.int32)
    run(copied_rows, backend, x, flags)
    assert (flags == (x != 0)).all()
    run(copied_rows, backend, flags, y)
    assert (y == flags.int()).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_conditions_that_are_loaded_one_by_one(backend: str) -> None:
    flag, x, y = torch.tensor([True, False, True]), torch.tensor([5.0, 6.0, 7.0]), torch.empty(3)
    run(chosen, backend, flag, x, y)
    assert y.tolist() == [3.0, 6.0, 3.0]


INTEGERS = torch.tensor([0, 1, -1, 257, 2**24 + 1, -(2**24) - 3, 2**31 - 1, -(2**31), 123456789, 65519, 65520, 33, 465],
                        dtype=torch.int32)  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", [copied, copied_one_by_one], ids=lambda k: k.name)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_integers_to_floats(dtype: torch.dtype, kernel: kd.Kernel, backend: str) -> None:
    y = torch.empty(len(INTEGERS), dtype=dtype)
    run(kernel, backend, INTEGERS, y)
    wide = INTEGERS.float()
    if dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        wide = wide.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
    assert y.float().tolist() == wide.to(dtype).float().tolist()


LONG = torch.tensor([0, -1, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**32 + 5, 2**40 + 7, 2**63 - 1, -(2**63)])


@pytest.mark.parametrize("backend", WIDE)
def test_int64_to_int32_wraps(backend: str) -> None:
    y, z = torch.empty(len(LONG), dtype=torch.int32), torch.empty_like(LONG)
    run(narrowed, backend, LONG, y, z)
    assert y.tolist() == LONG.to(torch.int32).tolist()
    assert z.tolist() == LONG.to(torch.int32).tolist()
    run(copied_one_by_one, backend, LONG, y)
    assert y.tolist() == LONG.to(torch.int32).tolist()


@pytest.mark.parametrize("backend", WIDE)
def test_int64_to_floats(backend: str) -> None:
    y = torch.empty(len(LONG))
    run(copied, backend, LONG, y)
    assert y.tolist() == LONG.float().tolist()


@kd.kernel(x="N", y="N", z="N")
def rounded_tiles(x: kd.In, y: kd.Out, z: kd.Out) -> None:
    for n in kd.parallel(kd.tile("N")):
        y[n] = x[n].to(kd.bf16).to(kd.f32)
        z[n] = x[n].to(kd.f16).to(kd.f32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tiles_round_to_nearest_even(backend: str) -> None:
    """Also where a device has no such type and holds it in a wider one."""
    generator = np.random.default_rng(0)
    drawn = generator.standard_normal(4000) * 10.0 ** generator.integers(-9, 6, 4000)
    ties = (np.arange(-2049, 2049) + 0.5) * 2.0 ** generator.integers(-26, 6, 4098)
    special = [0.0, -0.0, 65519.9, 65520.0, -65520.0, 1e38, 5.9e-8, 2.98e-8, 2.99e-8, INF, -INF, NAN]
    values = np.concatenate([drawn, ties, special]).astype(np.float32)
    y, z = torch.empty(len(values)), torch.empty(len(values))
    run(rounded_tiles, backend, torch.from_numpy(values), y, z)
    for found, dtype in ((y.numpy(), ml_dtypes.bfloat16), (z.numpy(), np.float16)):
        with np.errstate(over="ignore"):
            expected = values.astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(found, expected)
        kept = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(found[kept]), np.signbit(expected[kept]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scalar_of_extents(backend: str) -> None:
    y = torch.empty(5, dtype=torch.int32)
    run(halves, backend, torch.zeros(5, dtype=torch.int32), y)
    assert y.tolist() == [2] * 5


# ------------------------------------------------------------------ numbers that are known before
NARROW = [(bf16, ml_dtypes.bfloat16), (f16, np.float16), (f8e4m3, ml_dtypes.float8_e4m3fn), (f32, np.float32)]


@pytest.mark.parametrize(("dtype", "numpy"), NARROW, ids=str)
def test_numbers_round_as_arrays_do(dtype: Any, numpy: Any) -> None:
    generator = np.random.default_rng(0)
    for value in (generator.standard_normal(2000) * 10.0 ** generator.integers(-12, 12, 2000)).tolist():
        expected = float(np.float64(value).astype(np.float32).astype(numpy))
        got = arithmetic.converted(float(np.float32(value)), dtype)
        if dtype == f8e4m3 and not math.isfinite(expected):
            expected = math.copysign(448.0, value)
        assert got == expected, value


def test_casts_of_numbers() -> None:
    assert [arithmetic.converted(v, i32) for v in (NAN, INF, -INF, 1.9, -1.9, 2**31, -(2**31) - 1, True)] == [
        0, 2**31 - 1, -(2**31), 1, -1, -(2**31), 2**31 - 1, 1,
    ]  # fmt: skip
    assert arithmetic.converted(1e30, i64) == 2**63 - 1
    assert [arithmetic.converted(v, bool_) for v in (NAN, 0.0, -0.0, 2, 0)] == [True, False, False, True, False]
    assert all(math.isnan(arithmetic.converted(NAN, d)) for d in ALL.values() if d.is_float)
    assert arithmetic.converted(10**400, f32) == INF


@pytest.mark.parametrize(
    ("op", "values", "wanted"),
    [
        ("max", (NAN, 1.0), NAN), ("max", (1.0, NAN), NAN), ("min", (NAN, 1.0), NAN), ("div", (1.0, 0.0), INF),
        ("div", (-1.0, 0.0), -INF), ("div", (0.0, 0.0), NAN), ("div", (1.0, -0.0), -INF), ("log", (0.0,), -INF),
        ("log2", (-1.0,), NAN), ("sqrt", (-1.0,), NAN), ("rsqrt", (0.0,), INF), ("exp", (1000.0,), INF),
        ("exp2", (2000.0,), INF), ("floor", (INF,), INF), ("floor", (-1.5,), -2.0), ("sigmoid", (-1000.0,), 0.0),
        ("floordiv", (1, 0), None), ("mod", (1, 0), None),
    ],
)  # fmt: skip
def test_numbers_follow_ieee_754(op: str, values: tuple[float, ...], wanted: float | None) -> None:
    got = arithmetic.evaluate(op, *values)
    assert got == wanted or (got is not None and wanted is not None and math.isnan(got) and math.isnan(wanted))
