"""The NumPy backend: its text, its arithmetic, its float64 mode, and what it does with tensors of other libraries."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import kpt_dsl as kd
from kpt_dsl.emit.numpy import emit_kernel
from kpt_dsl.instance import Instance
from kpt_dsl.runtime.numpy import run
from kpt_dsl.space import Config
from tests.tolerances import assert_close


@kd.kernel(x="M N", out="M N")
def softmax(x: kd.In, out: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        row = x[m, :].to(kd.f32)
        e = kd.exp(row - kd.max(row, axis=1)[:, None])
        out[m, :] = e / kd.sum(e, axis=1)[:, None]


SOFTMAX = '''\
"""softmax on NumPy, in the types of the kernel: what the kernel means, tile by tile."""

import ml_dtypes
import numpy as np


def tiles(start, stop, block):
    """Slices of range(start, stop), cut at multiples of the block."""
    if start < stop:
        for first in range(start // block * block, stop, block):
            yield slice(max(first, start), min(first + block, stop))


@np.errstate(all="ignore")  # infinities and NaNs follow IEEE 754, as on a device
def softmax(x, out):                                        # def softmax(x: kd.In, out: kd.Out) -> None:
    block_M = 5
    M = x.shape[0]
    for m in tiles(0, M, block_M):
        row = x[m, :].astype(np.float32)                    # row = x[m, :].to(kd.f32)
        # e = kd.exp(row - kd.max(row, axis=1)[:, None])
        e = np.exp(row - np.max(row, axis=1, initial=-np.inf)[:, None])
        # out[m, :] = e / kd.sum(e, axis=1)[:, None]
        out[m, :] = (e / np.sum(e, axis=1, dtype=np.float32)[:, None]).astype(ml_dtypes.bfloat16)
'''


def call(kernel: kd.Kernel, config: dict[str, Any], precision: Any = "typed", **arguments: Any) -> None:
    """Float64 arrays, which only the float64 mode has, stand for float32 ones."""
    typed = {k: a.astype(np.float32) if getattr(a, "dtype", None) == np.float64 else a for k, a in arguments.items()}
    run(Instance.bind(kernel, typed), arguments, Config(**config), precision)


def test_the_text_is_pleasant() -> None:
    instance = Instance.of_shapes(softmax, {"M": 37, "N": 19}, {"x": "bf16", "out": "bf16"})
    assert emit_kernel(instance.lower(), Config(block_M=5)).text == SOFTMAX


@pytest.mark.parametrize("block", [1, 5, 37, 64])
def test_any_block_gives_the_same_result(block: int, rng: np.random.Generator) -> None:
    x = rng.standard_normal((37, 19)).astype(np.float32)
    out = np.full_like(x, np.nan)
    call(softmax, {"block_M": block}, x=x, out=out)
    e = np.exp(x.astype(np.float64))
    assert_close(out, e / e.sum(axis=1, keepdims=True), "f32", 19)


@pytest.mark.parametrize("block", [0, -1, True, 2.0, None])
def test_a_block_that_is_no_length_is_refused(block: Any) -> None:
    instance = Instance.of_shapes(softmax, {"M": 3, "N": 4}, {"x": "f32", "out": "f32"})
    with pytest.raises(kd.ConfigError, match=r"block_M is .*, but tiles of M need a length: a positive integer"):
        emit_kernel(instance.lower(), {"block_M": block} if block is not None else {})


# ------------------------------------------------------------------ arithmetic
@kd.kernel(x="M", out="M")
def rounded(x: kd.In, out: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        out[m] = x[m].to(kd.bf16).to(kd.f32)


def test_casts_round_in_typed_mode_and_not_in_float64() -> None:
    x = np.array([1.0, 1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8, np.inf, np.nan], np.float32)
    out = np.zeros_like(x)
    call(rounded, {"block_M": 4}, x=x, out=out)
    np.testing.assert_array_equal(out, np.array([1, 1, 1 + 2.0**-6, np.inf, np.nan], np.float32))  # ties to even
    wide = np.zeros(5)
    call(rounded, {"block_M": 4}, "f64", x=x, out=wide)
    np.testing.assert_array_equal(wide, x.astype(np.float64))


@kd.kernel(x="M", out="M")
def copy(x: kd.In, out: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        out[m] = x[m]


@pytest.mark.parametrize(
    ("dtype", "largest"), [(ml_dtypes.float8_e4m3fn, 448.0), (ml_dtypes.float8_e5m2, 57344.0)], ids=["e4m3", "e5m2"]
)
@pytest.mark.parametrize("precision", ["typed", "f64"])
def test_fp8_saturates_and_keeps_nan(dtype: Any, largest: float, precision: str) -> None:
    x = np.array([0.0, 1.0625, 1.1875, -1e9, 1e9, np.inf, np.nan], np.float32)
    out = np.zeros(7, dtype)
    call(copy, {"block_M": 16}, precision, x=x, out=out)
    expected = [0.0, 1.0, 1.25, -largest, largest, largest, np.nan]
    np.testing.assert_array_equal(out.astype(np.float32), np.array(expected, np.float32))


@kd.kernel(x="M", out="M", count="M")
def scalars(x: kd.In, out: kd.Out, count: kd.Out, alpha: kd.Float, n: kd.Int) -> None:
    for m in kd.parallel(kd.tile("M")):
        factor = kd.where(n > 3, alpha, 0.5) * kd.sqrt(2.0) + kd.maximum(alpha, 0.25)
        picked = kd.where(x[m] > 0.0, 1.0, 2.0)
        out[m] = x[m] * factor + picked
        count[m] = kd.where((x[m] > 0.0) & ~(x[m] > 1.0), 1, -(7 // 2)) + m.index % 3 + n // -2


def test_scalars_have_the_dtype_of_the_ir() -> None:
    """Python's own numbers are double: mixed up with them, scalars of the kernel would be too."""
    x = np.array([0.5, -1.0, 3.0, 0.1], np.float32)
    out, count = np.zeros(4, np.float32), np.zeros(4, np.int32)
    call(scalars, {"block_M": 3}, x=x, out=out, count=count, alpha=0.1, n=5)
    alpha = np.float32(0.1)
    factor = alpha * np.sqrt(np.float32(2)) + np.float32(0.25)
    np.testing.assert_array_equal(out, x * factor + np.where(x > 0, np.float32(1), np.float32(2)))
    np.testing.assert_array_equal(count, [1 + 0 - 3, -3 + 1 - 3, -3 + 2 - 3, 1 + 0 - 3])


@kd.kernel(x="M", out="M")
def special(x: kd.In, out: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        v = x[m]
        out[m] = (
            kd.erf(v)
            + kd.ndtr(v)
            + kd.sigmoid(-v * 2.0)
            - kd.rsqrt(kd.abs(v) + 1.0) * kd.floor(v)
            + kd.tanh(v) / kd.log2(v * v + 2.0)
            + kd.sin(v) * kd.cos(v * 2.0) * kd.round(v * 3.0)
        )


@pytest.mark.parametrize("precision", ["typed", "f64"])
def test_functions(precision: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal(200).astype(np.float32)
    out = np.zeros(200, np.float64 if precision == "f64" else np.float32)
    call(special, {"block_M": 64}, precision, x=x, out=out)
    v = torch.from_numpy(x.astype(np.float64))
    expected = v.erf() + (-v * 2).sigmoid() - (v.abs() + 1).rsqrt() * v.floor() + v.tanh() / (v * v + 2).log2()
    expected += torch.special.ndtr(v) + v.sin() * (v * 2).cos() * (v * 3).round()
    assert_close(out, expected, "f32")
    if precision == "f64":
        assert np.abs(out - expected.numpy()).max() < 1e-13


# ------------------------------------------------------------------ loops
@kd.kernel(x="N", bounds="B TWO", out="B", counts="B")
def windowed_sum(x: kd.In, bounds: kd.In, out: kd.Out, counts: kd.Out) -> None:
    for b in kd.parallel("B"):
        total, count = kd.full([], 0.0), kd.full([], 0, kd.i32)
        for n in kd.sequential(kd.tile("N"), start=bounds[b, 0], stop=bounds[b, 1]):
            total = total + kd.sum(x[n], axis=0)
            count = n.before + n.count
        out[b] = total
        counts[b] = count


@pytest.mark.parametrize("block", [1, 4, 7, 64])
def test_loop_bounds_may_be_anything(block: int) -> None:
    x = np.arange(1, 21, dtype=np.float32)
    bounds = [(0, 20), (3, 17), (5, 5), (7, 6), (-4, 3), (18, 90), (25, 30), (0, 0)]
    out, counts = np.zeros(len(bounds), np.float32), np.zeros(len(bounds), np.int32)
    call(windowed_sum, {"block_N": block}, x=x, bounds=np.array(bounds, np.int32), out=out, counts=counts)
    np.testing.assert_array_equal(out, [x[max(a, 0) : max(b, 0)].sum() for a, b in bounds])
    np.testing.assert_array_equal(counts, [max(0, min(b, 20) - max(a, 0)) for a, b in bounds])


@kd.kernel(x="M N", out="M", least="M")
def extremes(x: kd.In, out: kd.Out, least: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        out[m] = kd.max(x[m, :], axis=1)
        least[m] = kd.min(kd.where(x[m, :] > 0.0, 1, 2), axis=1)


def test_reductions_over_nothing_give_their_identity() -> None:
    out, least = np.zeros(3, np.float32), np.zeros(3, np.int32)
    call(extremes, {"block_M": 2}, x=np.zeros((3, 0), np.float32), out=out, least=least)
    np.testing.assert_array_equal(out, [-np.inf] * 3)
    np.testing.assert_array_equal(least, [np.iinfo(np.int32).max] * 3)


@kd.kernel(np="M N", out="M")
def tiles(np: kd.In, out: kd.Out) -> None:
    for length in kd.parallel(kd.tile("M")):
        dot = kd.full([length], 0.0)
        dot_ = kd.full([length], 1.0)
        for M in kd.sequential(kd.tile("N")):
            dot = kd.maximum(dot, kd.max(np[length, M], axis=1))
        out[length] = dot + dot_


def test_names_that_the_text_needs_are_still_the_authors_to_use() -> None:
    x = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    out = np.zeros(3, np.float32)
    call(tiles, {"block_M": 2, "block_N": 3}, np=x, out=out)
    np.testing.assert_array_equal(out, x.max(axis=1) + 1)


# ------------------------------------------------------------------ arrays
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_torch_tensors_are_written_in_place_through_their_strides(dtype: torch.dtype) -> None:
    x = torch.linspace(-2, 2, 24).reshape(4, 6).to(dtype)
    storage = torch.zeros(13, dtype=torch.float32).to(dtype)
    every_other = storage[1::2]
    call(copy, {"block_M": 4}, x=x.T[1], out=(row := every_other[:4]))
    assert torch.equal(row.float(), x.T[1].float())
    assert storage.float()[[0, 2, 4, 6, 8]].eq(0).all()


def test_tensors_that_need_grad_are_read_as_they_are() -> None:
    x, out = torch.ones(3, requires_grad=True), torch.zeros(3)
    call(copy, {"block_M": 4}, x=x, out=out)
    assert out.eq(1).all()


def test_other_arrays_are_refused_by_name() -> None:
    instance = Instance.of_shapes(copy, {"M": 3}, {"x": "f32", "out": "f32"})
    with pytest.raises(kd.InputError, match="x is list; backend numpy takes NumPy arrays and torch tensors of the CPU"):
        run(instance, {"x": [1, 2, 3], "out": np.zeros(3)}, Config(block_M=4))
    with pytest.raises(kd.InputError, match=r"out is on meta; backend numpy takes tensors of the CPU: out\.cpu\(\)"):
        run(instance, {"x": np.zeros(3, np.float32), "out": torch.zeros(3, device="meta")}, Config(block_M=4))


def test_a_traceback_shows_the_generated_line() -> None:
    instance = Instance.of_shapes(copy, {"M": 3}, {"x": "f32", "out": "f32"})
    with pytest.raises(ValueError, match="broadcast") as caught:
        run(instance, {"x": np.zeros(2, np.float32), "out": np.zeros(3, np.float32)} | {"x": np.zeros(3), "out": np.zeros(2)},
            Config(block_M=4))  # fmt: skip
    assert "out[m] = x[m]" in str(caught.traceback[-1].statement)
