"""NaN stays in maxima and minima, as in PyTorch, on every backend; a form that may drop it exists by name."""

import math
from typing import Any

import pytest
import torch

import kpt
import kpt_dsl as kd
from kpt.ops.flash_attention.kernels import flash_attention_fwd
from kpt_dsl import targets
from kpt_dsl.dtypes import DType, f32, i32
from kpt_dsl.emit import emit
from kpt_dsl.instance import Instance
from kpt_dsl.ir import Binary, Reduce, every_expr
from kpt_dsl.space import Config
from tests.language.backends import BACKENDS, run

NAN, INF = math.nan, math.inf


@kd.kernel(x="M N", high="M", low="M")
def rows(x: kd.In, high: kd.Out, low: kd.Out) -> None:
    """Along a whole dim."""
    for m in kd.parallel(kd.tile("M")):
        high[m] = kd.max(x[m, :], axis=1)
        low[m] = kd.min(x[m, :], axis=1)


@kd.kernel(x="M N", high="M", low="M")
def rows_in_tiles(x: kd.In, high: kd.Out, low: kd.Out) -> None:
    """Along a dim in tiles, ragged at its end."""
    for m in kd.parallel(kd.tile("M")):
        top, bottom = kd.full([m], -kd.inf), kd.full([m], kd.inf)
        for n in kd.sequential(kd.tile("N")):
            top = kd.maximum(top, kd.max(x[m, n], axis=1))
            bottom = kd.minimum(bottom, kd.min(x[m, n], axis=1))
        high[m] = top
        low[m] = bottom


@kd.kernel(x="M N", high="N", low="N")
def columns(x: kd.In, high: kd.Out, low: kd.Out) -> None:
    """Along the first axis."""
    for n in kd.parallel(kd.tile("N")):
        high[n] = kd.max(x[:, n], axis=0)
        low[n] = kd.min(x[:, n], axis=0)


@kd.kernel(a="N", b="N", high="N", low="N")
def elementwise(a: kd.In, b: kd.In, high: kd.Out, low: kd.Out) -> None:
    for n in kd.parallel(kd.tile("N")):
        high[n] = kd.maximum(a[n], b[n])
        low[n] = kd.minimum(a[n], b[n])


@kd.kernel(x="N", bound="N", high="N", low="N")
def scalars(x: kd.In, bound: kd.In, high: kd.Out, low: kd.Out, scale: kd.Float) -> None:
    """Of loaded scalars, arguments and numbers: NaN on either side."""
    for i in kd.parallel("N"):
        high[i] = kd.maximum(kd.maximum(x[i], bound[i] * scale), -100.0)
        low[i] = kd.minimum(100.0, kd.minimum(bound[i] * scale, x[i]))


@kd.kernel(x="N", y="N")
def numbers(x: kd.In, y: kd.Out, bound: kd.Static) -> None:
    """Of numbers that are known before the kernel runs."""
    for n in kd.parallel(kd.tile("N")):
        y[n] = x[n] + kd.maximum(1.0, bound) + kd.minimum(1.0, bound)


@kd.kernel(x="M N", y="M N", high="M")
def may_drop(x: kd.In, y: kd.Out, high: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        row = x[m, :]
        high[m] = kd.max(row, axis=1, drop_nan=True) - kd.min(row, axis=1, drop_nan=True)
        y[m, :] = kd.maximum(kd.minimum(row, 2.0, drop_nan=True), -2.0, drop_nan=True)


@kd.kernel(x="M N", i="M N", high="M")
def mixed(x: kd.In, i: kd.In, high: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        whole = kd.max(i[m, :], axis=1, drop_nan=True) + kd.max(kd.maximum(i[m, :], 3), axis=1)
        high[m] = whole.to(kd.f32) + kd.max(x[m, :], axis=1)


def with_nans(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random numbers and infinities; NaN in about every third row, at its ends too."""
    torch.manual_seed(sum(shape))
    x = torch.randn(*shape)
    x[torch.rand(shape) < 0.02] = INF
    x[torch.rand(shape) < 0.02] = -INF
    x.view(-1)[:: 3 * shape[-1] + 1] = NAN
    x[-1, ..., -1] = NAN
    return x.to(dtype)


def same(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kernel", [rows, rows_in_tiles], ids=lambda k: k.name)
def test_rows(kernel: kd.Kernel, dtype: torch.dtype, backend: str) -> None:
    x = with_nans(37, 199, dtype=dtype)
    high, low = torch.empty(37, dtype=dtype), torch.empty(37, dtype=dtype)
    run(kernel, backend, x, high, low)
    assert high.isnan().any()
    assert not high.isnan().all()
    same(high, x.amax(1))
    same(low, x.amin(1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_columns(backend: str) -> None:
    x = with_nans(37, 199)
    high, low = torch.empty(199), torch.empty(199)
    run(columns, backend, x, high, low)
    same(high, x.amax(0))
    same(low, x.amin(0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", [rows, rows_in_tiles], ids=lambda k: k.name)
def test_rows_without_elements(kernel: kd.Kernel, backend: str) -> None:
    high, low = torch.empty(5), torch.empty(5)
    run(kernel, backend, torch.empty(5, 0), high, low)
    same(high, torch.full((5,), -INF))
    same(low, torch.full((5,), INF))


PAIRS = torch.cartesian_prod(*[torch.tensor([NAN, -INF, INF, 0.0, 1.0, -2.0])] * 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_elementwise(backend: str) -> None:
    a, b = PAIRS.T.contiguous()
    high, low = torch.empty_like(a), torch.empty_like(a)
    run(elementwise, backend, a, b, high, low)
    same(high, torch.maximum(a, b))
    same(low, torch.minimum(a, b))


@pytest.mark.parametrize("backend", BACKENDS)
def test_scalars(backend: str) -> None:
    a, b = PAIRS.T.contiguous()
    high, low = torch.empty_like(a), torch.empty_like(a)
    run(scalars, backend, a, b, high, low, 1.0)
    same(high, torch.maximum(a, b).clamp(min=-100.0))
    same(low, torch.minimum(a, b).clamp(max=100.0))
    run(scalars, backend, torch.ones(4), torch.ones(4), high[:4], low[:4], NAN)
    assert high[:4].isnan().all()
    assert low[:4].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers(backend: str) -> None:
    y = torch.empty(3)
    run(numbers, backend, torch.zeros(3), y, NAN)
    assert y.isnan().all()
    run(numbers, backend, torch.zeros(3), y, 4.0)
    same(y, torch.full((3,), 5.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_may_drop_it_is_right_where_there_is_none(backend: str) -> None:
    x = torch.randn(20, 70) * 3
    y, high = torch.empty_like(x), torch.empty(20)
    run(may_drop, backend, x, y, high)
    same(y, x.clamp(-2.0, 2.0))
    same(high, x.amax(1) - x.amin(1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_integers_have_one_maximum(backend: str) -> None:
    x, i = torch.randn(20, 70), torch.randint(-9, 9, (20, 70), dtype=torch.int32)
    high = torch.empty(20)
    run(mixed, backend, x, i, high)
    torch.testing.assert_close(high, i.amax(1) + i.clamp(min=3).amax(1) + x.amax(1))


def operations(kernel: kd.Kernel, **dtypes: str) -> set[tuple[str, DType]]:
    instance = Instance.of_shapes(
        kernel, dict.fromkeys(kernel.dim_names, 64), dict.fromkeys(kernel.tensors, "f32") | dtypes
    )
    found = every_expr(instance.lower().body)
    return {(e.op, e.type.dtype) for e in found if isinstance(e, Binary | Reduce) and e.op[:3] in ("max", "min")}


def test_in_the_ir_what_may_drop_it_has_names_of_its_own() -> None:
    assert operations(rows) == {("max", f32), ("min", f32)}
    assert operations(may_drop) == {("maxnum", f32), ("minnum", f32)}
    assert operations(mixed, i="i32") == {("max", i32), ("max", f32)}


@pytest.mark.parametrize("target", ["nvidia-h200", "amd-mi300x"])
def test_the_text_asks_for_what_costs_more_only_where_it_must(target: str) -> None:
    texts = {k: kd.source(k, target, dtypes="f32") for k in (rows, may_drop, elementwise)}
    assert "tl.reduce(" in texts[rows]
    assert "max_or_nan" in texts[elementwise]
    assert "or_nan" not in texts[may_drop]
    assert "tl.max(" in texts[may_drop]
    assert "or_nan" not in kd.source(
        flash_attention_fwd, target, shapes={"D": 64}, key_lengths=None, causal=True, window=None
    )
    whole = kd.source(mixed, target, dtypes={"x": "f32", "i": "i32", "high": "f32"})
    assert "tl.max(i_tile, axis=1) + tl.max(tl.maximum(" in whole


@pytest.mark.parametrize("said", ["1", "None", "x[m, :]"])
def test_drop_nan_is_true_or_false(said: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "said.py").write_text(
        "import kpt_dsl as kd\n\n\n@kd.kernel(x='M N', y='M')\ndef k(x: kd.In, y: kd.Out) -> None:\n"
        f"    for m in kd.parallel(kd.tile('M')):\n        y[m] = kd.max(x[m, :], axis=1, drop_nan={said})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import importlib
    import sys

    sys.modules.pop("said", None)
    kernel = importlib.import_module("said").k
    with pytest.raises(kd.KernelError, match=r"said\.py:7: drop_nan is .*\n.*\n.*\n  it is True or False"):
        kernel(torch.ones(3, 4), torch.empty(3))


# ------------------------------------------------------------------ ops
def attention(where: str, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    tensors = {name: torch.randn(1, 2, length, 32) for name, length in (("q", 70), ("k", 90), ("v", 90))}
    tensors[where][0, 1, 20, 5] = NAN
    q, k, v = tensors.values()
    with kpt.ops.prefer(backend):
        got = kpt.ops.flash_attention(q, k, v, causal=True)
    mask = torch.ones(70, 90, dtype=torch.bool).tril(20)
    scores = (q @ k.mT / math.sqrt(32)).masked_fill(~mask, -INF)
    return got, scores.softmax(-1) @ v


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_attention_drops_nan_from_its_maximum_but_not_from_its_result(where: str, backend: str) -> None:
    got, wanted = attention(where, backend)
    seen = wanted.isnan()
    assert seen.any()
    assert not seen.all()
    assert (got.isnan() | ~seen).all(), "a NaN that PyTorch shows is missing"
    if where == "q":
        assert (got.isnan() == seen).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_with_nan_quantises_to_nan(backend: str) -> None:
    x = torch.randn(4, 300)
    x[2, 270] = NAN
    with kpt.ops.prefer(backend):
        y, scale = kpt.ops.quantize_fp8(x, "row")
        whole, one = kpt.ops.quantize_fp8(x, "tensor")
    assert scale.isnan().flatten().tolist() == [False, False, True, False]
    assert y.float().isnan().all(1).tolist() == [False, False, True, False]
    assert one.isnan()
    assert whole.float().isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_relu_of_nan(backend: str) -> None:
    x = torch.randn(5, 40)
    x[3, 7] = NAN
    with kpt.ops.prefer(backend):
        y = kpt.ops.linear_act(x, torch.randn(8, 40), activation="relu")
    assert y.isnan().any(1).tolist() == [False, False, False, True, False]


def test_tpu_text_reduces_with_what_keeps_it() -> None:
    """jnp.max and jnp.maximum keep NaN, in interpret mode and in what Mosaic makes of them (arith.maximumf)."""
    instance = Instance.of_shapes(rows, {"M": 64, "N": 256}, dict.fromkeys(rows.tensors, "f32"))
    text = emit(instance, targets.get("tpu-v6e"), Config(block_M=64)).text
    assert "jnp.max(x_ref[...], axis=1, keepdims=True)" in text
