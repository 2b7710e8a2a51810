"""The gradients of the norms as an op and through autograd: which kernels a call launches, layouts, dtypes, what is refused.

The kernels' own numbers are held against float64 in ``tests/generated``.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

import kpt
from kpt.ops import layer_norm, norms, rms_norm
from kpt.ops.column_sums import share_count
from kpt.ops.layer_norm.backward import layer_norm_backward
from kpt.ops.rms_norm.backward import rms_norm_backward
from kpt_dsl.errors import InputError
from tests.ops.calls import served
from tests.tolerances import assert_close

BACKENDS = ("numpy", "triton", "pallas")
Tensors = tuple[torch.Tensor, ...]


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + seed)).to(dtype)


def inputs(*shape: int) -> tuple[Tensors, torch.Tensor]:
    """x, weight and bias of a norm over the last dim, and dy."""
    width = shape[-1]
    return (randn(*shape), randn(width, seed=1), randn(width, seed=2)), randn(*shape, seed=3)


def layer(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    return layer_norm(x, x.shape[-1:], weight, bias)


def rms(x: torch.Tensor, weight: torch.Tensor | None, _: Any) -> torch.Tensor:
    return rms_norm(x, x.shape[-1:], weight, 1e-5)


NORMS = {"layer_norm": layer, "rms_norm": rms}


def gradients(norm: Callable[..., torch.Tensor], given: Tensors, dy: torch.Tensor, wants: str = "xwb") -> Tensors:
    """Those of x, weight and bias that are wanted and reached."""
    leaves = [t.detach().requires_grad_(letter in wants) for t, letter in zip(given, "xwb", strict=True)]
    found = torch.autograd.grad(norm(*leaves), [t for t in leaves if t.requires_grad], dy, allow_unused=True)
    return tuple(g for g in found if g is not None)


def in_float64(norm: Callable[..., torch.Tensor], given: Tensors, dy: torch.Tensor, wants: str = "xwb") -> Tensors:
    """The same by PyTorch's own autograd."""
    return gradients(norm, tuple(t.double() for t in given), dy.double(), wants)


def assert_all_close(got: Tensors, expected: Tensors, dtype: str = "f32", length: int = 200) -> None:
    assert len(got) == len(expected)
    for g, e in zip(got, expected, strict=True):
        assert_close(g, e, dtype, length)


# ------------------------------------------------------------------ values
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 37), (50, 199), (37, 760)])
def test_against_float64(norm: str, rows: int, width: int, backend: Any) -> None:
    given, dy = inputs(rows, width)
    before = served(f"{norm}_backward").get(backend, 0)
    with kpt.ops.prefer(backend):
        got = gradients(NORMS[norm], given, dy)
    assert served(f"{norm}_backward")[backend] == before + 1
    for g, e in zip(got, in_float64(NORMS[norm], given, dy), strict=True):
        assert_close(g, e, "f32", width + rows, scale=max(1.0, float(e.abs().max())))  # one element leaves no gradient


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
def test_rows_too_wide_to_hold(norm: str, backend: Any, launched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "HELD_BYTES", 100)
    (x, *parameters), dy = inputs(50, 199)
    given = (x + 30.0, *parameters)
    with kpt.ops.prefer(backend):
        got = gradients(NORMS[norm], given, dy)
    assert launched[1:] == [f"{norm}_bwd_rows", f"{norm}_bwd_tiles", "column_sums"]
    assert_all_close(got, in_float64(NORMS[norm], given, dy), length=10_000)


@pytest.mark.parametrize("backend", ["numpy", "triton"])
@pytest.mark.parametrize("norm", NORMS)
def test_more_shares_than_rows(norm: str, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "shares", lambda rows, held: 7)
    given, dy = inputs(3, 37)
    with kpt.ops.prefer(backend):
        got = gradients(NORMS[norm], given, dy)
    assert_all_close(got, in_float64(NORMS[norm], given, dy))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
def test_ugly_strides(norm: str, backend: Any) -> None:
    """Rows that lie apart, gradients that lie across, and those of a sum: one number seen through stride 0."""
    x = randn(40, 5, 60).transpose(0, 1)[:, :, 3:40]
    given = (x, randn(80)[::2][:37], randn(37, seed=2))
    ones = torch.ones(()).expand(5, 40, 37)
    for dy in (randn(37, 40, 5, seed=3).permute(2, 1, 0), ones, randn(5, 40, 1).expand(5, 40, 37)):
        with kpt.ops.prefer(backend):
            got = gradients(NORMS[norm], given, dy)
        assert all(g.is_contiguous() for g in got)
        assert_all_close(got, in_float64(NORMS[norm], given, dy))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wide", [False, True])
def test_gradients_have_the_dtype_of_what_they_belong_to(norm: str, dtype: torch.dtype, wide: bool) -> None:
    parameters = torch.float32 if wide else dtype
    (x, weight, bias), dy = inputs(50, 199)
    given = x.to(dtype), weight.to(parameters), bias.to(parameters)
    dy, narrow = dy.to(dtype), {torch.float16: "f16", torch.bfloat16: "bf16"}[dtype]
    with kpt.ops.prefer("numpy"):
        dx, *sums = gradients(NORMS[norm], given, dy)
    assert dx.dtype == dtype
    assert {s.dtype for s in sums} == {parameters}
    wanted_dx, *wanted = in_float64(NORMS[norm], given, dy)
    assert_close(dx, wanted_dx, narrow, 199)
    # Sums of exact products of what was given: rounded once, to the parameters' own type.
    assert_all_close(tuple(sums), tuple(wanted), "f32" if wide else narrow)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_weight_and_bias_may_differ_in_dtype(backend: Any) -> None:
    """Asked of the op itself: autograd would cast what it is given."""
    (x, weight, bias), dy = inputs(50, 40)
    x, dy, bias = x.bfloat16(), dy.bfloat16(), bias.bfloat16()
    with kpt.ops.prefer(backend):
        for w, b in ((weight, bias), (bias, weight), (weight, None), (None, bias)):
            needed = (True, w is not None, b is not None)
            got = layer_norm_backward(dy, x, (40,), w, b, 1e-5, needed)
            assert [g.dtype for g in got] == [t.dtype for t in (x, w, b) if t is not None]
            assert_close(got[-1], (dy if b is not None else dy * F.layer_norm(x, (40,))).double().sum(0), "bf16", 50)
        assert [g.dtype for g in rms_norm_backward(dy, x, (40,), weight, None, (True, True))] == [x.dtype, weight.dtype]


def test_normalised_shapes_of_several_dims() -> None:
    x, weight, bias, dy = randn(6, 3, 4, 5), randn(4, 5, seed=1), randn(4, 5, seed=2), randn(6, 3, 4, 5, seed=3)
    native = gradients(
        lambda x, w, b: F.layer_norm(x, (4, 5), w, b), (x.double(), weight.double(), bias.double()), dy.double()
    )
    with kpt.ops.prefer("numpy"):
        dx, dweight, dbias = layer_norm_backward(dy, x, [4, 5], weight, bias, 1e-5, [True, True, True])
    assert_all_close((dx, dweight, dbias), native)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rows", [0, 3])
def test_empty(norm: str, rows: int) -> None:
    width = 8 if rows == 0 else 0
    given, dy = inputs(rows, width)
    for g, t in zip(gradients(NORMS[norm], given, dy), given, strict=False):
        assert torch.equal(g, torch.zeros_like(t))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_runs_give_the_same_bits(norm: str, backend: Any) -> None:
    given, dy = inputs(50, 199)
    with kpt.ops.prefer(backend):
        first, second = (gradients(NORMS[norm], given, dy) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_reference_in_float64() -> None:
    """Equal to PyTorch's autograd of the forward, and differentiable itself."""
    given, dy = inputs(5, 7)
    x, weight, bias = given = tuple(t.double() for t in given)
    dy = dy.double()
    native = gradients(lambda x, w, b: F.layer_norm(x, (7,), w, b), given, dy)
    got = layer_norm_backward(dy, x, (7,), weight, bias, 1e-5, (True, True, True))
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(got, native, strict=True))
    native = gradients(lambda x, w, _: F.rms_norm(x, (7,), w, 1e-5), given, dy)
    got = rms_norm_backward(dy, x, (7,), weight, 1e-5, (True, True))
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(got, native, strict=True))
    leaves = tuple(t.detach().requires_grad_() for t in (dy, x, weight))
    torch.autograd.gradcheck(
        lambda dy, x, w: tuple(layer_norm_backward(dy, x, (7,), w, bias, 1e-5, (True, True, True))), leaves
    )
    torch.autograd.gradcheck(lambda dy, x, w: tuple(rms_norm_backward(dy, x, (7,), w, None, (True, True))), leaves)


# ------------------------------------------------------------------ only what is needed
@pytest.mark.parametrize(
    ("norm", "wants", "kernels"),
    [
        ("layer_norm", "xwb", ["layer_norm_bwd", "column_sums"]),
        ("layer_norm", "x", ["layer_norm_bwd_dx"]),
        ("layer_norm", "w", ["layer_norm_bwd", "column_sums"]),
        ("layer_norm", "b", ["partial_column_sums", "column_sums"]),
        ("layer_norm", "xb", ["layer_norm_bwd", "column_sums"]),
        ("layer_norm", "wb", ["layer_norm_bwd", "column_sums"]),
        ("rms_norm", "xw", ["rms_norm_bwd", "column_sums"]),
        ("rms_norm", "x", ["rms_norm_bwd_dx"]),
        ("rms_norm", "w", ["rms_norm_bwd", "column_sums"]),
    ],
)
def test_only_what_is_needed_is_computed(norm: str, wants: str, kernels: list[str], launched: list[str]) -> None:
    given, dy = inputs(50, 199)
    with kpt.ops.prefer("numpy"):
        got = gradients(NORMS[norm], given, dy, wants)
    assert launched == [f"{norm}_fwd", *kernels]
    assert_all_close(got, in_float64(NORMS[norm], given, dy, wants))


def test_without_parameters() -> None:
    (x, *_), dy = inputs(50, 199)
    for norm, native in ((layer_norm, F.layer_norm), (rms_norm, F.rms_norm)):
        (expected,) = gradients(lambda x, *_: native(x, (199,)), (x.double(), x, x), dy.double(), "x")  # noqa: B023
        with kpt.ops.prefer("triton"):
            (got,) = gradients(lambda x, *_: norm(x, (199,)), (x, x, x), dy, "x")  # noqa: B023
        assert_close(got, expected, "f32", 199)


def test_nothing_is_copied_to_be_saved() -> None:
    x, weight, bias = (randn(*s).requires_grad_() for s in ((4, 8), (8,), (8,)))
    with kpt.ops.prefer("numpy"):
        y = layer_norm(x, (8,), weight, bias)
    saved = {t.data_ptr() for t in y.grad_fn.saved_tensors if t is not None}
    assert saved == {t.data_ptr() for t in (x, weight, bias)}


# ------------------------------------------------------------------ PyTorch around it
@pytest.mark.parametrize("needed", [[True, True, True], [False, True, False], [True, False, False]])
def test_opcheck(needed: list[bool]) -> None:
    (x, weight, _), dy = inputs(4, 6, 8)
    opcheck(torch.ops.kpt.layer_norm_backward.default, (dy, x, [8], weight, weight, 1e-5, needed))
    opcheck(torch.ops.kpt.rms_norm_backward.default, (dy, x, [8], weight, None, needed[:2]))


@pytest.mark.parametrize("norm", NORMS)
def test_a_compiled_step_runs_the_kernels_of_an_eager_one(norm: str) -> None:
    given, dy = inputs(12, 40)
    torch._dynamo.reset()
    compiled = torch.compile(NORMS[norm], fullgraph=True, backend="aot_eager")
    before = served(f"{norm}_backward").get("numpy", 0)
    with kpt.ops.prefer("numpy"):
        eager, traced = gradients(NORMS[norm], given, dy), gradients(compiled, given, dy)
    assert served(f"{norm}_backward")["numpy"] == before + 2
    assert all(torch.equal(a, b) for a, b in zip(eager, traced, strict=True))


# ------------------------------------------------------------------ bad input
X, W = randn(3, 8), randn(8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dy": randn(3, 9)}, r"layer_norm_backward: dy is of shape \(3, 9\); accepted: the shape of input"),
        ({"dy": X.half()}, r"dy is of dtype torch.float16; accepted: the dtype of input, torch.float32"),
        ({"dy": X.to("meta")}, r"dy is on meta; accepted: the device of input, cpu"),
        ({"weight": None}, r"weight is None; accepted: a tensor, as the gradient of weight is needed"),
        ({"bias": None}, r"bias is None; accepted: a tensor, as the gradient of bias is needed"),
        ({"bias": randn(9)}, r"bias is of shape \(9,\); accepted: normalized_shape, here \(8,\)"),
        ({"needed": (True,)}, r"needed is \(True,\); accepted: 3 bools, for input, weight, bias"),
        ({"needed": (1, 0, 1)}, r"needed is \(1, 0, 1\); accepted: 3 bools"),
        ({"eps": "small"}, r"eps is 'small'"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    given = {"dy": X, "input": X, "normalized_shape": (8,), "weight": W, "bias": W, "eps": 1e-5}
    with pytest.raises(InputError, match=message):
        layer_norm_backward(**(given | {"needed": (True, True, True)} | change))


# ------------------------------------------------------------------ how rows are shared out
@pytest.mark.parametrize(
    ("rows", "width", "dtype", "held", "count"),
    [
        (32768, 1024, torch.bfloat16, True, 2 * 132),
        (8192, 4096, torch.bfloat16, True, 132),
        (8192, 8192, torch.bfloat16, True, 132),
        (4096, 16384, torch.bfloat16, True, 132),
        (4096, 16384, torch.float32, False, 33),
        (512, 65536, torch.bfloat16, False, 8),
        (16, 4096, torch.bfloat16, True, 16),
        (200, 1024, torch.bfloat16, True, 128),
        (1, 262_144, torch.float32, False, 1),
        (1 << 20, 1, torch.float32, True, 264),
    ],
)
def test_shares(rows: int, width: int, dtype: torch.dtype, held: bool, count: int) -> None:
    """A program for each multiprocessor of an H200, two where rows are narrow."""
    matrix = torch.empty(rows, width, dtype=dtype, device="meta")
    assert norms.is_held(matrix) == held
    assert norms.shares(matrix, held) == count


@pytest.mark.parametrize("most", [3, 128, 264])
def test_numbers_of_shares_are_few(most: int) -> None:
    """Each has kernels of its own."""
    found = {share_count(wanted, most) for wanted in range(10 * most)}
    assert max(found) == most
    assert len(found) <= 1 + most.bit_length()
    assert all(share_count(n, most) <= max(1, n) < 2 * share_count(n, most) for n in range(most))
