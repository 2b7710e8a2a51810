"""Whole numbers: what ``kd.Int`` and ``kd.Float`` take, and arithmetic that would leave 32 bits is refused on every backend."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kpt
import kpt_dsl as kd
from kpt_dsl.passes import ranges
from tests.language.backends import BACKENDS, run
from tests.language.test_casts import copied

MOST, LEAST = 2**31 - 1, -(2**31)


@kd.kernel(x="M N", y="M N")
def windowed(x: kd.In, y: kd.Out, window: kd.Int) -> None:
    """The elements less than ``window`` behind the diagonal or on it, in a loop that ends there."""
    for m in kd.parallel(kd.tile("M")):
        for n in kd.sequential(kd.tile("N")):
            seen = n.index[None, :] < m.index[:, None] + window
            y[m, n] = kd.where(seen, x[m, n], 0.0)


@kd.kernel(x="M N", y="M")
def windowed_sums(x: kd.In, y: kd.Out, window: kd.Int) -> None:
    """The condition by itself stays in int32; where it holds is computed as ``m.start + window``."""
    for m in kd.parallel(kd.tile("M")):
        total = kd.zeros([m])
        for n in kd.sequential(kd.tile("N")):
            total += kd.sum(kd.where(n.index[None, :] - m.index[:, None] < window, x[m, n], 0.0), axis=1)
        y[m] = total


@kd.kernel(x="N", y="N")
def shifted(x: kd.In, y: kd.Out, by: kd.Int, times: kd.Int) -> None:
    for n in kd.parallel(kd.tile("N")):
        y[n] = x[n] + ((n.index + by) * times % 7).to(kd.f32)


@kd.kernel(x="N", y="N")
def bounded(x: kd.In, y: kd.Out, first: kd.Int, last: kd.Int) -> None:
    """Bounds beyond the dim are clamped."""
    for p in kd.parallel("N"):
        total = kd.zeros([])
        for n in kd.sequential(kd.tile("N"), start=first, stop=last):
            total += kd.sum(x[n], axis=0)
        y[p] = total


@kd.kernel(x="M N", y="M N")
def flat(x: kd.In, y: kd.Out) -> None:
    """The place of each element in memory."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        place = kd.size("N") * kd.size("M") - 1 - (m.index[:, None] * kd.size("N") + n.index[None, :])
        y[m, n] = x[m, n] + place.to(kd.f32)


@kd.kernel(x="M N", y="M N")
def flat_in_64_bits(x: kd.In, y: kd.Out) -> None:
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        wide = kd.size("N").to(kd.i64)
        y[m, n] = x[m, n] + ((wide * wide * kd.size("M")) // (wide * wide)).to(kd.f32)


@kd.kernel(x="N", y="N")
def loaded(x: kd.In, y: kd.Out) -> None:
    """What is loaded is unknown before, and wraps."""
    for n in kd.parallel(kd.tile("N")):
        y[n] = x[n] + 2147483647 + 1


@kd.kernel(x="N", y="N")
def loaded_one_by_one(x: kd.In, y: kd.Out) -> None:
    for i in kd.parallel("N"):
        twice = x[i] * 2
        y[i] = (twice + twice) * 1000003


@kd.kernel(x="N", y="N")
def scaled(x: kd.In, y: kd.Out, scale: kd.Float, window: kd.Int, bias: kd.Float = None) -> None:  # type: ignore[assignment]
    for n in kd.parallel(kd.tile("N")):
        value = x[n] * scale
        if window is not None:
            value = value + window.to(kd.f32)
        if bias is not None:
            value = value + bias
        y[n] = value


@kd.kernel(x="N", y="N")
def with_choice(x: kd.In, y: kd.Out, by: kd.Int) -> None:
    """Only one of the two ways overflows; both are asked, for the tuner may take either."""
    for n in kd.parallel(kd.tile("N")):
        if kd.choice("way", 1, 2):
            pass
        if kd.choice("twice", False, True):
            y[n] = x[n] + (n.index * by).to(kd.f32)
        else:
            y[n] = x[n] + by.to(kd.f32)


@kd.kernel(x="N", y="N")
def literal(x: kd.In, y: kd.Out) -> None:
    for n in kd.parallel(kd.tile("N")):
        y[n] = x[n] + (n.index + 2147483648).to(kd.f32)


# ------------------------------------------------------------------ values
@pytest.mark.parametrize(
    "value", [1.5, 2.0, "3", True, np.bool_(True), 2**31, -(2**31) - 1, [1], torch.ones(2), np.float32(2)], ids=repr
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_an_int_does_not_take(value: Any, backend: str) -> None:
    said = r"windowed: window is .*; a kd\.Int is a whole number from -2147483648 to 2147483647$"
    with pytest.raises(kd.InputError, match=said):
        run(windowed, backend, torch.ones(3, 4), torch.empty(3, 4), value)


@pytest.mark.parametrize("value", [2, np.int64(2), np.int8(2), np.uint64(2), torch.tensor(2)], ids=repr)
def test_what_an_int_takes(value: Any) -> None:
    given = windowed.bind(None, None, value)["window"]
    assert (given, type(given)) == (2, int)


def test_a_traced_int_is_refused_by_name() -> None:
    jax = pytest.importorskip("jax")
    out = jax.ShapeDtypeStruct((3, 4), np.float32)
    with pytest.raises(kd.InputError, match=r"windowed: window is .*Tracer.*a kd\.Int is a whole number"):
        jax.jit(lambda x, w: windowed(x, out, w))(np.ones((3, 4), np.float32), 2)


@pytest.mark.parametrize("value", ["1.0", True, [1.0], torch.ones(2), 1j, object], ids=repr)
def test_what_a_float_does_not_take(value: Any) -> None:
    with pytest.raises(kd.InputError, match=r"scaled: scale is .*; a kd\.Float is a real number$"):
        scaled(torch.ones(3), torch.empty(3), value, 1)


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int16(2), Fraction(4, 2)], ids=repr)
def test_what_a_float_takes(value: Any) -> None:
    given = scaled.bind(None, None, value, 1)["scale"]
    assert (given, type(given)) == (2.0, float)


def test_a_traced_float_stays_one() -> None:
    jax = pytest.importorskip("jax")
    out = jax.ShapeDtypeStruct((3,), np.float32)
    found = jax.jit(lambda x, s: scaled(x, out, s, None)["y"])(np.ones(3, np.float32), np.float32(2.5))
    assert found.tolist() == [2.5] * 3


def test_none_where_the_text_or_the_default_allows_it() -> None:
    y = torch.empty(3)
    scaled(torch.ones(3), y, 2.0, None)
    assert y.tolist() == [2.0] * 3
    scaled(torch.ones(3), y, 2.0, None, 1.0)
    assert y.tolist() == [3.0] * 3
    with pytest.raises(kd.InputError, match=r"argument scale is None, but is used here"):
        scaled(torch.ones(3), y, None, 1)
    with pytest.raises(kd.InputError, match=r"scaled: window is 1\.5 \(float\); a kd\.Int is a whole number"):
        scaled(torch.ones(3), y, 1.0, 1.5)
    with pytest.raises(kd.InputError, match=r"argument window is None, but is used here"):
        windowed(torch.ones(3, 4), torch.empty(3, 4), None)


# ------------------------------------------------------------------ arithmetic
def seen(m: int, n: int, window: int) -> torch.Tensor:
    return torch.arange(n) < torch.arange(m)[:, None] + window


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", [windowed, windowed_sums], ids=lambda k: k.name)
def test_a_window_that_wraps_is_refused(kernel: kd.Kernel, backend: str) -> None:
    x = torch.rand(70, 90)
    y = torch.empty(70, 90) if kernel is windowed else torch.empty(70)
    for window in (1, 30, -20, 1 << 30, MOST - 200, LEAST + 200):
        run(kernel, backend, x, y, window)
        wanted = x * seen(70, 90, window)
        torch.testing.assert_close(y, wanted if kernel is windowed else wanted.sum(1))
    what = (
        r"`m\.index\[:, None\] \+ window`"
        if kernel is windowed
        else "where the masks of this loop hold is computed, and"
    )
    said = rf"{kernel.name}: test_integers\.py:\d+: {what} comes to 2147483716, but i32 holds -2147483648 to 2147483647; here "
    with pytest.raises(kd.InputError, match=said) as error:
        run(kernel, backend, x, y, MOST)
    assert f"window is {MOST}" in str(error.value)
    assert "M is 70" in str(error.value)
    assert str(error.value).endswith("window may be up to 2147483578")
    run(kernel, backend, x, y, 2147483578)


@pytest.mark.parametrize("backend", BACKENDS)
def test_products_and_several_arguments(backend: str) -> None:
    y, x = torch.empty(100), torch.zeros(100)
    for by, times in ((3, 5), (-50, 7), (1000, 1000000), (-1000000, -2000), (3, 5)):
        run(shifted, backend, x, y, by, times)
        assert y.tolist() == ((torch.arange(100) + by) * times % 7).tolist()
    said = r"`\(n\.index \+ by\) \* times` comes to 2200000000, .*\n.*\n  by may be .*; times may be up to"
    with pytest.raises(kd.InputError, match=said):
        run(shifted, backend, x, y, 1001, 2000000)
    with pytest.raises(kd.InputError, match=r"`n\.index \+ by` comes to 2147483746"):
        run(shifted, backend, x, y, MOST, 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bounds_of_loops_are_clamped(backend: str) -> None:
    x, y = torch.rand(50), torch.empty(50)
    for first, last in ((LEAST, MOST), (0, MOST), (10, 20), (LEAST, 20), (30, 10), (MOST, MOST)):
        run(bounded, backend, x, y, first, last)
        torch.testing.assert_close(y, x[max(first, 0) : max(last, 0)].sum().expand(50))


@kd.kernel(x="N", first="P", y="P")
def from_loaded(x: kd.In, first: kd.In, y: kd.Out) -> None:
    for p in kd.parallel("P"):
        total = kd.zeros([])
        for n in kd.sequential(kd.tile("N"), start=first[p]):
            total += kd.sum(x[n], axis=0)
        y[p] = total


@kd.kernel(x="N", last="P", y="P")
def behind_loaded(x: kd.In, last: kd.In, y: kd.Out) -> None:
    """The condition holds from ``last[p] + 1`` on, which must not wrap."""
    for p in kd.parallel("P"):
        total, limit = kd.zeros([]), last[p]
        for n in kd.sequential(kd.tile("N")):
            total += kd.sum(kd.where(n.index > limit, x[n], 0.0), axis=0)
        y[p] = total


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", [from_loaded, behind_loaded], ids=lambda k: k.name)
def test_loaded_bounds_are_clamped(kernel: kd.Kernel, backend: str) -> None:
    """Also where rounding them up to a tile would leave int32."""
    x, first = torch.rand(300), torch.tensor([LEAST, -1, 0, 170, 299, 300, MOST - 1, MOST], dtype=torch.int32)
    y = torch.empty(8)
    run(kernel, backend, x, first, y)
    kept = torch.arange(300) >= first[:, None] if kernel is from_loaded else torch.arange(300) > first[:, None]
    torch.testing.assert_close(y, (x * kept).sum(1))


def test_extents_alone() -> None:
    x = torch.rand(9, 7)
    y = torch.empty(9, 7)
    flat(x, y)
    torch.testing.assert_close(y, x + torch.arange(62, -1, -1.0).reshape(9, 7))
    said = r"`kd\.size\(\"N\"\) \* kd\.size\(\"M\"\)` comes to 2500000000, .* N is 50000, M is 50000"
    for target in ("nvidia-h200", "amd-mi300x", "tpu-v6e", "cpu"):
        with pytest.raises(kd.InputError, match=said):
            kd.source(flat, target, shapes={"M": 50000, "N": 50000}, dtypes="f32")
    with pytest.raises(kd.InputError, match=r"\.to\(kd\.i64\)"):
        kd.source(flat, shapes={"M": 50000, "N": 50000}, dtypes="f32")
    with pytest.raises(kd.InputError, match=r"flat: dim N is 2147483648; indices are int32"):
        kd.source(flat, shapes={"M": 1, "N": 2**31}, dtypes="f32")


@pytest.mark.parametrize("backend", ["numpy", "triton"])
def test_64_bits_hold_more(backend: str) -> None:
    x, y = torch.zeros(9, 60000), torch.empty(9, 60000)
    run(flat_in_64_bits, backend, x, y)
    assert (y == 9.0).all()


def test_a_tpu_refuses_64_bits_by_name() -> None:
    with pytest.raises(kd.TargetError, match=r"flat_in_64_bits computes with int64 \(line \d+: .*wide"):
        run(flat_in_64_bits, "pallas", torch.zeros(9, 60), torch.empty(9, 60))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", [loaded, loaded_one_by_one], ids=lambda k: k.name)
def test_what_is_loaded_wraps(kernel: kd.Kernel, backend: str) -> None:
    x = torch.tensor([0, 1, -1, MOST, LEAST, 123456789], dtype=torch.int32)
    y = torch.empty_like(x)
    run(kernel, backend, x, y)
    assert y.tolist() == (x + MOST + 1 if kernel is loaded else x * 4 * 1000003).tolist()


def test_every_choice_is_asked() -> None:
    with pytest.raises(kd.InputError, match=r"`n\.index \* by` comes to"):
        with_choice(torch.zeros(3), torch.empty(3), MOST)


def test_a_number_in_the_text_that_int32_does_not_hold() -> None:
    with pytest.raises(kd.KernelError, match=r"2147483648 does not fit i32, which holds -2147483648 to 2147483647"):
        literal(torch.zeros(3), torch.empty(3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_windows_of_attention(backend: str) -> None:
    q, k = torch.randn(1, 2, 40, 32), torch.randn(1, 2, 60, 32)
    for window in (1, 17, 4096, 1 << 20):
        with kpt.ops.prefer(backend):
            got = kpt.ops.flash_attention(q, k, k, causal=True, window=window)
        distance = torch.arange(40)[:, None] + 20 - torch.arange(60)
        mask = (distance >= 0) & (distance < window)
        wanted = torch.nn.functional.scaled_dot_product_attention(q, k, k, attn_mask=mask)
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------ what it costs
def test_warm_calls_compare_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that comes near one seen before is not analysed again: decoding counts up."""
    x, y = torch.zeros(64), torch.empty(64)
    asked: list[int] = []
    original = ranges.beyond
    monkeypatch.setattr(ranges, "beyond", lambda *a: asked.append(1) or original(*a))
    shifted(x, y, 1, 1)
    first = len(asked)
    for by in range(2, 200):
        shifted(x, y, by, 1)
    assert first
    assert len(asked) == first


# ------------------------------------------------------------------ int64 on TPUs, and JAX with 64 bits
@kd.kernel(x="N", low="N", y="N")
def larger(x: kd.In, low: kd.In, y: kd.Out) -> None:
    for n in kd.parallel(kd.tile("N")):
        y[n] = kd.maximum(x[n], low[n])


def test_int64_tensors_on_a_tpu() -> None:
    index, x = torch.tensor([3, 0, MOST, LEAST]), torch.empty(4)
    run(copied, "pallas", index, x)
    assert (x == index.float()).all()
    wide, out = torch.tensor([5, -7, MOST, LEAST]), torch.empty(4, dtype=torch.int64)
    run(larger, "pallas", wide, torch.zeros(4, dtype=torch.int64), out)
    assert out.tolist() == [5, 0, MOST, 0]
    for number in (2**31, -(2**31) - 1, 2**40):
        with pytest.raises(
            kd.InputError, match=rf"x holds {number}; backend pallas takes int64 tensors whose numbers fit"
        ):
            run(larger, "pallas", torch.tensor([1, 2, number, 4]), torch.zeros(4, dtype=torch.int64), out)
    with pytest.raises(kd.InputError, match=r"low holds 4294967296"):
        larger(np.zeros(4, np.int64), np.array([0, 0, 2**32, 0]), np.zeros(4, np.int64), backend="pallas")


UNDER_X64 = """
import jax, numpy as np, pytest, torch
import jax.numpy as jnp
import kpt, kpt_dsl as kd
from kpt.ops.flash_attention.kernels import flash_attention_fwd
from tests.language.test_integers import bounded, larger, windowed_sums
from tests.language.test_casts import copied

assert jax.config.jax_enable_x64
shape = jax.ShapeDtypeStruct
q, k = torch.randn(2, 4, 70, 64), torch.randn(2, 2, 90, 64)
for flags in ({}, {"causal": True}, {"causal": True, "window": 30}, {"key_lengths": torch.tensor([50, 90], dtype=torch.int32)}):
    with kpt.ops.prefer("pallas"):
        got = kpt.ops.flash_attention(q, k, k, **flags)
    np.testing.assert_allclose(got, kpt.ops.flash_attention(q, k, k, **flags), atol=1e-4)
Q, K = jnp.asarray(q.numpy()), jnp.asarray(k.numpy())
def attend(q, k):
    return flash_attention_fwd(q, k, k, None, shape(q.shape, q.dtype), shape(q.shape[:3], q.dtype), 0.125, 30, True)
found, jitted = attend(Q, K), jax.jit(attend)(Q, K)
assert found["o"].dtype == jitted["o"].dtype == jnp.float32
np.testing.assert_allclose(found["o"], kpt.ops.flash_attention(q, k, k, causal=True, window=30), atol=1e-4)
np.testing.assert_allclose(jitted["o"], found["o"], atol=1e-5)
x = torch.rand(70, 90)
y = torch.empty(70)
windowed_sums(x, y, 20, backend="pallas")
np.testing.assert_allclose(y, (x * (torch.arange(90) < torch.arange(70)[:, None] + 20)).sum(1), rtol=1e-5)
bounded(x[0], z := torch.empty(90), 10, 20, backend="pallas")
np.testing.assert_allclose(z, x[0, 10:20].sum().expand(90), rtol=1e-5)

wide, low = jnp.array([5, -7, 2**31 - 1]), jnp.zeros(3, jnp.int64)
assert wide.dtype == jnp.int64
out = larger(wide, low, shape((3,), jnp.int64))["y"]
assert out.dtype == jnp.int64 and out.tolist() == [5, 0, 2**31 - 1]
with pytest.raises(kd.InputError, match="x holds 2147483648"):
    larger(wide + 1, low, shape((3,), jnp.int64))
with pytest.raises(kd.TargetError, match="x is a traced int64 array; .*pass x.astype"):
    jax.jit(lambda x: larger(x, low, shape((3,), jnp.int64)))(wide)
narrow = jax.jit(lambda x: copied(x.astype(jnp.int32), shape((3,), jnp.float32)))(wide)["y"]
assert narrow.tolist() == [5.0, -7.0, 2.0**31]
print("right")
"""


def test_jax_with_64_bits() -> None:
    pytest.importorskip("jax")
    environment = {**os.environ, "JAX_ENABLE_X64": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", UNDER_X64]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=300)
    assert done.stdout.strip().endswith("right"), done.stderr[-3000:]


def test_an_int64_output_of_jax_without_64_bits() -> None:
    jax = pytest.importorskip("jax")
    x = jax.numpy.zeros(3, "int32")
    with pytest.raises(
        kd.TargetError, match=r"output y is int64, which JAX has only with jax_enable_x64; declare it int32"
    ):
        larger(x, x, jax.ShapeDtypeStruct((3,), np.int64))
