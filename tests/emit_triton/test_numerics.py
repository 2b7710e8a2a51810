"""Generated Triton source against float64, under Triton's interpreter."""

import math
from typing import Any

import pytest
import torch

import kpt_dsl as kd
from tests.emit_triton.kernels import (
    apply,
    attention,
    batched,
    divide,
    gelu,
    linear,
    product,
    row_sum,
    scaled,
    softmax,
    taken,
)
from tests.emit_triton.support import TORCH, normal, run, unset
from tests.tolerances import assert_close

FLOATS = ("f32", "f16", "bf16")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (37, 199), (4, 760), (9, 128)])
def test_whole_rows(dtype: str, rows: int, columns: int) -> None:
    x, out = normal(rows, columns, dtype=dtype), unset((rows, columns), dtype)
    run(softmax, knobs=dict(block_M=4, num_warps=4), x=x, out=out)
    assert_close(out, x.double().softmax(1), dtype, columns)


def test_the_authors_names_and_generated_ones_do_not_meet() -> None:
    x, out = normal(7, 30), unset((7, 30), "f32")
    run(taken, knobs=dict(block_M=2, num_warps=4), x=x, out=out)
    assert_close(out, x.double().softmax(1) / 2 * math.tanh(2), "f32", 30)


@pytest.mark.parametrize("columns", [1, 37, 199, 760, 1024])
def test_a_carried_sum(columns: int) -> None:
    x, total = normal(7, columns, dtype="bf16"), unset((7,), "f32")
    run(row_sum, knobs=dict(block_M=2, block_N=64, num_warps=4), x=x, total=total)
    assert_close(total, x.double().sum(1), "f32", columns, scale=columns**0.5 * 3)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 37, 199), (37, 760, 96), (64, 64, 64), (70, 128, 40)])
@pytest.mark.parametrize(
    "knobs",
    [
        dict(),
        dict(descriptors=True),
        dict(group=2, persistent=True),
        dict(group=4, persistent=True, descriptors=True, epilogue=2),
        dict(descriptors=True, epilogue=4),
        dict(epilogue=2),
    ],
    ids=str,
)
def test_products(dtype: str, shape: tuple[int, int, int], knobs: dict[str, Any]) -> None:
    m, n, k = shape
    x, weight = normal(m, k, dtype=dtype), normal(n, k, dtype=dtype, scale=k**-0.5)
    bias, y = normal(n, dtype=dtype), unset((m, n), dtype)
    knobs = dict(block_M=16, block_N=32, block_K=32, num_warps=4) | knobs
    run(linear, knobs=knobs, x=x, weight=weight, bias=bias, y=y, activation=gelu)
    expected = torch.nn.functional.gelu(x.double() @ weight.double().T + bias.double())
    assert_close(y, expected, dtype, k, scale=8.0)


@pytest.mark.parametrize("descriptors", [False, True])
def test_outer_loops_and_strides(descriptors: bool) -> None:
    # Rows that lie apart, in a larger tensor, batches in reverse order of memory.
    x = normal(40, 3, 64, dtype="f16").transpose(0, 1)[:, :, :48]
    weight, y = normal(24, 48, dtype="f16"), unset((3, 40, 32), "f16")[:, :, :24]
    knobs = dict(block_M=16, block_N=16, block_K=16, num_warps=4, group=2, descriptors=descriptors)
    run(batched, knobs=knobs, x=x, weight=weight, y=y)
    assert_close(y, x.double() @ weight.double().T, "f16", 48)


@pytest.mark.parametrize("descriptors", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("m", "n", "d", "window", "lengths"),
    [(64, 64, 32, None, None), (37, 199, 80, None, None), (199, 37, 16, None, None), (1, 100, 64, None, (0, 77)),
     (100, 100, 64, 20, None), (50, 130, 32, 1, (130, 3))],
)  # fmt: skip
def test_loops_with_bounds(
    m: int, n: int, d: int, window: int | None, lengths: tuple[int, ...] | None, causal: bool, descriptors: bool
) -> None:
    def heads(count: int, rows: int) -> torch.Tensor:
        return normal(2, rows, count, d, dtype="bf16").transpose(1, 2)

    q, k, v = heads(4, m), heads(2, n), heads(2, n)
    counts = None if lengths is None else torch.tensor(lengths, dtype=torch.int32)
    if counts is not None:  # what lies behind the end must not matter
        for b, count in enumerate(lengths or ()):
            k[b, :, count:] = v[b, :, count:] = math.nan
    o = unset((2, 4, m, d), "bf16")
    run(
        attention, knobs=dict(block_M=16, block_N=32, num_warps=4, descriptors=descriptors),
        q=q, k=k, v=v, lengths=counts, o=o, scale=d**-0.5, window=window, causal=causal,
    )  # fmt: skip
    i, j = torch.arange(m)[:, None] + n - m, torch.arange(n)[None, :]
    seen = torch.ones(m, n, dtype=torch.bool)
    if causal:
        seen &= j <= i
    if window is not None:
        seen &= j > i - window
    seen = seen.expand(2, 1, m, n)
    if counts is not None:
        seen = seen & (j < counts[:, None, None, None])
    keys, values = (t.double().nan_to_num().repeat_interleave(2, 1) for t in (k, v))
    scores = (q.double() @ keys.transpose(2, 3) * d**-0.5).masked_fill(~seen, -math.inf)
    assert_close(o, scores.softmax(-1).nan_to_num(0) @ values, "bf16", n)


@pytest.mark.parametrize("target", ["nvidia-h200", "nvidia-a100"])
@pytest.mark.parametrize(("a_type", "b_type"), [("f8e4m3", "f8e4m3"), ("f8e5m2", "f8e5m2"), ("f8e4m3", "f8e5m2")])
def test_products_of_8_bit_floats(target: str, a_type: str, b_type: str) -> None:
    a, b, y = normal(37, 80, dtype=a_type), normal(24, 80, dtype=b_type), unset((37, 24), "f32")
    run(product, target, knobs=dict(block_M=16, block_N=16, block_K=32, num_warps=4), a=a, b=b, y=y)
    assert_close(y, a.double() @ b.double().T, "f32", 80)


@pytest.mark.parametrize("epilogue", [1, 2])
def test_scales_loaded_ahead_and_repeated_ones(epilogue: int) -> None:
    a, b, y = normal(37, 80, dtype="f16"), normal(72, 80, dtype="f16"), unset((37, 72), "f32")
    rows, columns = torch.tensor([1.5]).expand(37), normal(72)
    knobs = dict(block_M=16, block_N=32, block_K=32, num_warps=4, epilogue=epilogue)
    run(scaled, knobs=knobs, a=a, b=b, scale_a=rows, scale_b=columns, y=y)
    assert_close(y, a.double() @ b.double().T * 1.5 * columns.double(), "f16", 80)


@kd.function
def identity(x):  # type: ignore[no-untyped-def]
    return x


@pytest.mark.parametrize("target", ["nvidia-h200", "nvidia-a100"])
@pytest.mark.parametrize("dtype", ["f8e4m3", "f8e5m2"])
def test_all_8_bit_floats_survive_and_all_others_round_to_nearest_even(target: str, dtype: str) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(TORCH[dtype])
    largest = torch.finfo(TORCH[dtype]).max
    wide = unset((256,), "f32")
    run(apply, target, knobs=dict(block_N=64, num_warps=4), x=every, y=wide, fn=identity)
    torch.testing.assert_close(wide, every.float(), equal_nan=True, rtol=0, atol=0)
    # Everything between two neighbours, ties included, beyond the largest, and NaN.
    steps = torch.linspace(-1.1 * largest, 1.1 * largest, 4001)
    small = torch.linspace(-4, 4, 2049) * torch.finfo(TORCH[dtype]).smallest_normal
    x = torch.cat([steps, small, torch.tensor([math.inf, -math.inf, math.nan, 0.0])])
    narrow = torch.zeros(x.shape).to(TORCH[dtype])
    run(apply, target, knobs=dict(block_N=1024, num_warps=4), x=x, y=narrow, fn=identity)
    expected = x.clamp(-largest, largest).to(TORCH[dtype])
    torch.testing.assert_close(narrow.float(), expected.float(), equal_nan=True, rtol=0, atol=0)


@kd.function
def tanh(x):  # type: ignore[no-untyped-def]
    return kd.tanh(x)


def test_tanh_is_right_to_a_few_units_also_near_zero() -> None:
    magnitudes = torch.logspace(-30, 2, 4000)
    x = torch.cat([magnitudes, -magnitudes, torch.tensor([0.0, math.inf, -math.inf, 0.625, -0.625])])
    y = unset(tuple(x.shape), "f32")
    run(apply, knobs=dict(block_N=1024, num_warps=4), x=x, y=y, fn=tanh)
    expected = x.double().tanh()
    error = ((y.double() - expected).abs() / expected.abs().clamp(min=1e-38)).nan_to_num(0)
    assert error.max() < 3 * 2.0**-23


@kd.function
def ndtr(x):  # type: ignore[no-untyped-def]
    return kd.ndtr(x)


def test_ndtr_is_as_good_as_float32_is_near_one_and_far_below_zero() -> None:
    magnitudes = torch.cat([torch.linspace(0, 7, 20001), torch.logspace(1, 38, 100)])
    x = torch.cat([magnitudes, -magnitudes, torch.tensor([math.inf, -math.inf, math.nan])])
    y = unset(tuple(x.shape), "f32")
    run(apply, knobs=dict(block_N=1024, num_warps=4), x=x, y=y, fn=ndtr)
    expected = torch.special.ndtr(x.double())
    assert y.isnan().equal(expected.isnan())
    error = (y.double() - expected).abs().nan_to_num(0)
    assert error.max() < 1.4e-7
    below = (x < 0) & (x >= -4)
    assert (error / expected)[below].max() < 1e-4  # nothing cancels
    assert y[x.abs() > 15].frac().eq(0).all() and y[0] == 0.5


def test_integer_division_rounds_down() -> None:
    i = torch.arange(-9, 9, dtype=torch.int32)
    for by in (4, -4, 3):
        quotient, remainder = torch.zeros_like(i), torch.zeros_like(i)
        run(divide, knobs=dict(block_N=32, num_warps=4), i=i, quotient=quotient, remainder=remainder, by=by)
        assert torch.equal(quotient, torch.div(i, by, rounding_mode="floor"))
        assert torch.equal(remainder, torch.remainder(i, by))


def test_compiling_still_works_after_interpreting() -> None:
    from kpt_dsl import compile as compile_kernel

    x, out = normal(3, 16), unset((3, 16), "f32")
    run(softmax, knobs=dict(block_M=1, num_warps=4), x=x, out=out)
    assert compile_kernel(softmax, "nvidia-h200", dtypes="f32").registers
    run(softmax, knobs=dict(block_M=1, num_warps=4), x=x, out=out)
    assert_close(out, x.double().softmax(1), "f32", 16)
