"""Norms of residual streams, and gains that are kept less one: against PyTorch in float64, as an op and through autograd."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

import kpt
from kpt.ops import add_layer_norm, add_rms_norm, norms, rms_norm
from kpt.ops.rms_norm.backward import rms_norm_backward
from kpt_dsl.errors import KptError
from tests.ops.test_norms_backward import BACKENDS, randn
from tests.tolerances import assert_close

Tensors = tuple[torch.Tensor, ...]


def ours_rms(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, _: Any) -> Tensors:
    return add_rms_norm(x, residual, x.shape[-1:], weight, 1e-5, 1.0)


def ours_layer(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Tensors:
    return add_layer_norm(x, residual, x.shape[-1:], weight, bias)


def native_rms(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, _: Any) -> Tensors:
    total = x + residual
    return total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + 1e-5) * (1.0 + weight), total


def native_layer(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Tensors:
    total = x + residual
    return F.layer_norm(total, x.shape[-1:], weight, bias), total


NORMS: dict[str, tuple[Callable[..., Tensors], Callable[..., Tensors]]] = {
    "rms_norm": (ours_rms, native_rms),
    "layer_norm": (ours_layer, native_layer),
}


def inputs(*shape: int) -> list[torch.Tensor]:
    """x, residual, weight and bias."""
    return [randn(*shape), randn(*shape, seed=4), randn(shape[-1], seed=1), randn(shape[-1], seed=2)]


def answers(norm: Callable[..., Tensors], given: list[torch.Tensor], used: str = "ys") -> list[torch.Tensor]:
    """The outputs, and the gradients of all that is given from those of the outputs that are ``used``."""
    leaves = [t.detach().requires_grad_() for t in given]
    outputs = norm(*leaves)
    slopes = [randn(*o.shape, seed=5 + i).to(o) for i, o in enumerate(outputs)]
    chosen = [i for i, letter in enumerate("ys") if letter in used]
    found = torch.autograd.grad([outputs[i] for i in chosen], leaves, [slopes[i] for i in chosen], allow_unused=True)
    return [*[o.detach() for o in outputs], *[g for g in found if g is not None]]


# ------------------------------------------------------------------ values
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 37), (50, 199), (37, 760)])
def test_against_float64(norm: str, rows: int, width: int, backend: Any) -> None:
    ours, native = NORMS[norm]
    given = inputs(rows, width)
    with kpt.ops.prefer(backend):
        got = answers(ours, given)
    for g, e in zip(got, answers(native, [t.double() for t in given]), strict=True):
        assert_close(g, e, "f32", width + rows, scale=max(1.0, float(e.abs().max())))


@pytest.mark.parametrize("backend", ["reference", "numpy", "triton"])
@pytest.mark.parametrize("norm", NORMS)
def test_the_sum_is_rounded_before_its_norm_is_taken(norm: str, backend: Any) -> None:
    given = [t.bfloat16() for t in inputs(40, 199)]
    x, residual, *rest = given
    with kpt.ops.prefer(backend):
        y, total, dx, dresidual, *_ = answers(NORMS[norm][0], given)
        again, *_ = NORMS[norm][0](total, torch.zeros_like(total), *rest)
    assert torch.equal(total, x + residual)
    assert torch.equal(y, again)
    wide = [(x + residual).double(), torch.zeros(40, 199).double(), *[t.double() for t in rest]]
    expected = answers(NORMS[norm][1], wide)
    assert_close(y, expected[0], "bf16")
    assert_close(dx, expected[2], "bf16")
    assert torch.equal(dx, dresidual)


@pytest.mark.parametrize("backend", ["numpy", "triton"])
@pytest.mark.parametrize("norm", NORMS)
def test_rows_too_wide_to_hold(norm: str, backend: Any, launched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "HELD_BYTES", 100)
    ours, native = NORMS[norm]
    given = inputs(50, 199)
    with kpt.ops.prefer(backend):
        got = answers(ours, given)
    assert launched == [f"{norm}_fwd", f"{norm}_bwd_rows", f"{norm}_bwd_tiles", "column_sums"]
    for g, e in zip(got, answers(native, [t.double() for t in given]), strict=True):
        assert_close(g, e, "f32", 10_000, scale=max(1.0, float(e.abs().max())))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("used", ["y", "s"])
def test_one_output_alone(norm: str, used: str) -> None:
    """A last layer has no use for the sum; the norm may be looked at and forgotten."""
    ours, native = NORMS[norm]
    given = inputs(20, 37)
    with kpt.ops.prefer("numpy"):
        got = answers(ours, given, used)[2:]
    expected = answers(native, [t.double() for t in given], used)[2:]
    for g, e in zip(got, expected, strict=True):  # none for parameters that are not reached: an optimizer would decay them
        assert_close(g, e, "f32", 60)


@pytest.mark.parametrize("wants", ["xr", "x", "r", "w", "rw"])
def test_only_what_is_needed_is_computed(wants: str, launched: list[str]) -> None:
    ours, native = NORMS["rms_norm"]
    given = inputs(20, 37)[:3]

    def gradients(norm: Callable[..., Tensors], tensors: list[torch.Tensor]) -> Tensors:
        leaves = [t.detach().requires_grad_(letter in wants) for t, letter in zip(tensors, "xrw", strict=True)]
        y, total = norm(*leaves, None)
        return torch.autograd.grad((y * y.detach()).sum() + total.sum(), [t for t in leaves if t.requires_grad])

    with kpt.ops.prefer("numpy"):
        got = gradients(ours, given)
    assert launched[1] == ("rms_norm_bwd" if "w" in wants else "rms_norm_bwd_dx")
    for g, e in zip(got, gradients(native, [t.double() for t in given]), strict=True):
        assert_close(g, e, "f32", 60, scale=max(1.0, float(e.abs().max())))


def test_gradients_of_both_that_were_added_may_be_changed_apart() -> None:
    x, residual, weight, _ = inputs(4, 8)
    x.requires_grad_()
    residual.requires_grad_()
    with kpt.ops.prefer("numpy"):
        y, total = add_rms_norm(x, residual, (8,), weight)
        (y + total).sum().backward()
    assert x.grad is not None
    before = residual.grad.clone()
    x.grad.zero_()
    assert torch.equal(residual.grad, before)


def test_a_second_derivative_is_refused() -> None:
    x, residual, weight, _ = inputs(4, 8)
    x.requires_grad_()
    with kpt.ops.prefer("numpy"):
        y, total = add_rms_norm(x, residual, (8,), weight)
        (dx,) = torch.autograd.grad((y * total).sum(), x, create_graph=True)
        with pytest.raises(KptError, match="add_rms_norm: the gradient of a generated kernel cannot be differentiated again"):
            dx.sum().backward()


# ------------------------------------------------------------------ gains that are kept less one
class GemmaNorm(torch.nn.Module):
    """As Transformers' GemmaRMSNorm, Gemma2RMSNorm and Gemma3RMSNorm compute it."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = 1e-6
        self.weight = torch.nn.Parameter(randn(width, dtype=dtype) * 0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (normal * (1.0 + self.weight.float())).type_as(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["reference", "numpy", "triton"])
def test_gemmas_norm(backend: Any, dtype: torch.dtype) -> None:
    """Rounded once, at the end: all but ties, which float32 decides one way or the other, are equal bits."""
    x, module = randn(64, 199, dtype=dtype), GemmaNorm(199, dtype)
    theirs = module(x)
    with kpt.ops.prefer(backend):
        ours = rms_norm(x, (199,), module.weight.detach(), module.eps, weight_offset=1.0)
    if dtype == torch.bfloat16:
        assert (ours != theirs).sum() <= 2
    assert_close(ours, theirs.detach().double(), "f32" if dtype == torch.float32 else "bf16", 199)


def test_no_offset_leaves_no_trace() -> None:
    """Nor does a residual that is not there: kernels of a norm alone are what they were."""
    x, weight = randn(8, 40), randn(40)
    with kpt.ops.prefer("triton"):
        plain, zero, moved = (
            kpt.ops.explain("rms_norm", x, (40,), weight, 1e-5, offset).kernels[0].binary for offset in (0.0, 0, 1.0)
        )
        of_sum = kpt.ops.explain("add_rms_norm", x, x, (40,), weight).kernels[0].binary
    assert plain == zero
    assert len({plain, moved, of_sum}) == 3


# ------------------------------------------------------------------ PyTorch around it
def test_opcheck() -> None:
    x, residual, weight, bias = inputs(6, 8)
    tensors = [t.requires_grad_() for t in (x, residual, weight, bias)]
    opcheck(torch.ops.kpt.add_layer_norm.default, (x, residual, [8], weight, bias, 1e-5))
    opcheck(torch.ops.kpt.add_rms_norm.default, (x, residual.T.contiguous().T, [8], weight, None, 1.0))
    opcheck(torch.ops.kpt.rms_norm.default, (x, [8], weight, None, 1.0))
    dy, x, weight, added = (t.detach() for t in (*tensors[:2], weight, residual))
    opcheck(torch.ops.kpt.rms_norm_backward.default, (dy, x, [8], weight, None, [True, True], 1.0, added))
    opcheck(torch.ops.kpt.layer_norm_backward.default, (dy, x, [8], weight, None, 1e-5, [True, False, False], added))


@pytest.mark.parametrize("norm", NORMS)
def test_compiled(norm: str) -> None:
    given = inputs(12, 40)
    torch._dynamo.reset()
    compiled = torch.compile(NORMS[norm][0], fullgraph=True, backend="aot_eager")
    with kpt.ops.prefer("numpy"):
        eager, traced = answers(NORMS[norm][0], given), answers(compiled, given)
    assert all(torch.equal(a, b) for a, b in zip(eager, traced, strict=True))


def test_what_is_the_default_may_be_left_out_of_torch_ops() -> None:
    x, weight = randn(5, 8), randn(8)
    with kpt.ops.prefer("numpy"):
        assert torch.equal(torch.ops.kpt.rms_norm(x, (8,), weight, None), rms_norm(x, (8,), weight))
        first, second = (torch.ops.kpt.rms_norm_backward(x, x, (8,), weight, None, (True, True), *o) for o in ((), (0.0, None)))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_is_added_is_refused_where_it_does_not_fit() -> None:
    x, weight = randn(5, 8), randn(8)
    with pytest.raises(KptError, match=r"added is of shape \(2, 8\); accepted: the shape of input"):
        rms_norm_backward(x, x, (8,), weight, None, (True, True), 0.0, x[:2])
