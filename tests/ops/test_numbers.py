"""Numbers that went wrong in silence once: rows that hardly vary, what half precision cannot hold, memory that nobody wrote."""

import copy
import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kpt
from kpt.ops import flash_attention, layer_norm, linear_act, norms, prefer
from kpt.ops.flash_attention.backward import flash_attention_backward
from kpt.ops.layer_norm.backward_kernels import layer_norm_bwd_dx
from kpt.ops.layer_norm.kernels import layer_norm_fwd
from tests.tolerances import assert_close

KERNELS = ("numpy", "triton", "pallas")
EVERY = (*KERNELS, "reference")
WIDTH = 300


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------ rows that hardly vary
def one_differs(where: int, size: float) -> torch.Tensor:
    x = torch.full((4, WIDTH), size)
    x[:, where] += 1
    return x


ROWS = {
    "flat": torch.full((4, WIDTH), 1000.1),
    "flat and large": torch.full((4, WIDTH), 1e8),
    "one differs": one_differs(WIDTH // 2, 1e5),
    "the first differs": one_differs(0, 1e5),
    "the last differs": one_differs(-1, 1e5),
    "far away": randn(4, WIDTH) + 1000,
    "an outlier": torch.where(torch.arange(WIDTH) == 0, 1e5, randn(4, WIDTH)),
}


def norm_with_gradients(norm: Callable[..., torch.Tensor], given: tuple[torch.Tensor, ...], dy: torch.Tensor) -> Any:
    leaves = [t.detach().clone().requires_grad_() for t in given]
    y = norm(leaves[0], (leaves[0].shape[1],), *leaves[1:])
    return y.detach(), *torch.autograd.grad(y, leaves, dy)


@pytest.mark.parametrize("held", [True, False], ids=["whole", "tiled"])
@pytest.mark.parametrize("backend", EVERY)
def test_layer_norm_errs_no_more_than_pytorch(backend: Any, held: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not held:
        monkeypatch.setattr(norms, "HELD_BYTES", 10)
    weight, bias, dy = randn(WIDTH, seed=1), randn(WIDTH, seed=2), randn(4, WIDTH, seed=3)
    for name, x in ROWS.items():
        exact = norm_with_gradients(F.layer_norm, (x.double(), weight.double(), bias.double()), dy.double())
        native = norm_with_gradients(F.layer_norm, (x, weight, bias), dy)
        with prefer(backend):
            got = norm_with_gradients(layer_norm, (x, weight, bias), dy)
        for what, g, n, e in zip(("y", "dx", "dweight", "dbias"), got, native, exact, strict=True):
            error, bar = float((g - e).abs().max()), float((n - e).abs().max())
            scale = max(1.0, float(e.abs().max())) * (1 if what != "dweight" else float(WIDTH))
            assert error <= 1.5 * bar + 4e-6 * scale, f"{name}, {what}: {error:.3g}, PyTorch {bar:.3g}"


@pytest.mark.parametrize("backend", KERNELS)
def test_tiled_forms_of_kernels_that_hold_rows(backend: str) -> None:
    """The other choice of the kernels that read a whole row by default."""
    dy, ones = randn(4, WIDTH, seed=3), torch.ones(WIDTH)
    config = {"whole_row": False, "block_N": 128}
    for x in ROWS.values():
        y, dx = torch.empty_like(x), torch.empty_like(x)
        layer_norm_fwd(x, None, None, y, 1e-5, config=config, backend=backend)
        layer_norm_bwd_dx(dy, x, ones, dx, 1e-5, config=config, backend=backend)
        wide = x.double().requires_grad_()
        wanted = F.layer_norm(wide, (WIDTH,))
        assert_close(y, wanted, "f32", WIDTH, scale=max(1.0, float(wanted.detach().abs().max())))
        assert_close(dx, torch.autograd.grad(wanted, wide, dy.double())[0], "f32", WIDTH)


# ------------------------------------------------------------------ what half precision cannot hold
@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
def test_gradients_where_activations_are_flat(activation: str, dtype: torch.dtype, backend: Any) -> None:
    """The pre-activation lies beyond float16 on both sides, and where it is close to its end."""
    z = torch.tensor(
        [-180000.0, -70000, -65504, -40000, -32768, -200, -20, 20, 200, 32768, 40000, 65504, 70000, 180000]
    )
    given = [(z[:, None] / 300).to(dtype), torch.zeros(len(z), dtype=dtype)]
    x = torch.full((1, 1), 300.0, dtype=dtype)

    def gradients(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Any:
        weight, bias = weight.requires_grad_(), bias.requires_grad_()
        y = linear_act(x, weight, bias, activation=activation)
        return torch.autograd.grad(y, (weight, bias), torch.ones_like(y))

    with prefer(backend):
        got = gradients(x, *given)
    for g, wanted in zip(got, gradients(x.double(), *[t.detach().double() for t in given]), strict=True):
        assert_close(g, wanted, {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32"}[dtype])


# ------------------------------------------------------------------ memory that nobody wrote
@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("head_dim", [8, 264])
def test_nan_behind_key_lengths(head_dim: int, backend: Any) -> None:
    if head_dim > 256 and backend != "reference":
        pytest.skip("kernels hold a head of 256 at most")
    q, k, v = (randn(2, 2, n, head_dim, seed=n) for n in (5, 20, 21))
    v = v[:, :, :20].clone()
    lengths = torch.tensor([9, 20], dtype=torch.int32)
    k[0, :, 9:] = v[0, :, 9:] = math.nan

    def call(lse: bool) -> Any:
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        with prefer(backend):
            outputs = flash_attention(*leaves, key_lengths=lengths, return_lse=lse)
            o = outputs[0] if lse else outputs
            return [o, *torch.autograd.grad(o.square().sum(), leaves)]

    clean = [t.nan_to_num().double().requires_grad_() for t in (q, k, v)]
    o = torch.cat(
        [
            F.scaled_dot_product_attention(*(t[b : b + 1, :, :n] if i else t[b : b + 1] for i, t in enumerate(clean)))
            for b, n in enumerate((9, 20))
        ]
    )
    wanted = [o, *torch.autograd.grad(o.square().sum(), clean)]
    for lse in (False, True):
        for g, w in zip(call(lse), wanted, strict=True):
            assert_close(g, w, "f32", 100)


def test_nan_behind_key_lengths_in_pytorchs_gradient() -> None:
    q, k, do = randn(1, 1, 3, 8), randn(1, 1, 6, 8, seed=1), randn(1, 1, 3, 8, seed=2)
    lengths = torch.tensor([4], dtype=torch.int32)
    with prefer("reference"):
        o, lse = flash_attention(q, k, k, key_lengths=lengths, return_lse=True)
        wanted = flash_attention_backward(do, q, k, k, o, lse, key_lengths=lengths)
        k[:, :, 4:] = math.nan
        for g, w in zip(flash_attention_backward(do, q, k, k, o, lse, key_lengths=lengths), wanted, strict=True):
            assert torch.equal(g, w)


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("window", [5, 2**31 - 1, 2**31, 2**63 - 1])
@pytest.mark.parametrize("causal", [False, True])
def test_windows_as_wide_as_integers_go(causal: bool, window: int, backend: Any) -> None:
    q, k = randn(1, 2, 5, 16).requires_grad_(), randn(1, 2, 5, 16, seed=1)
    wanted = F.scaled_dot_product_attention(q, k, k, is_causal=causal)
    with prefer(backend):
        got = flash_attention(q, k, k, causal=causal, window=window)
        assert isinstance(got, torch.Tensor)
        (gradient,) = torch.autograd.grad(got.square().sum(), q)
    assert_close(got, wanted, "f32", 16)
    assert_close(gradient, torch.autograd.grad(wanted.square().sum(), q)[0], "f32", 16)


# ------------------------------------------------------------------ dtypes
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.mark.parametrize(("given", "weights"), list(itertools.product(FLOATS, FLOATS)), ids=str)
def test_rms_norm_of_every_pair_of_dtypes(given: torch.dtype, weights: torch.dtype) -> None:
    """As PyTorch's module computes them, replaced or not, with gradients; kernels take what they have types for."""
    native = nn.RMSNorm(24, eps=1e-3).to(weights)
    native.weight.data.copy_(randn(24))
    replaced = copy.deepcopy(native)
    kpt.replace_modules(replaced)
    dy = randn(3, 24, seed=2).to(given)

    def run(module: nn.Module) -> tuple[torch.Tensor, ...]:
        x = randn(3, 24, seed=1).to(given).requires_grad_()
        y = module(x)
        return y, *torch.autograd.grad(y, (x, module.weight), dy)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's about its own speed
        wanted = run(native)
    narrow = next(
        (name for t, name in ((torch.bfloat16, "bf16"), (torch.float16, "f16")) if t in (given, weights)), "f32"
    )
    for backend in ("reference", *(KERNELS if torch.float64 not in (given, weights) else ())):
        with prefer(backend):  # type: ignore[arg-type]
            for g, w in zip(run(replaced), wanted, strict=True):
                assert g.dtype == w.dtype
                assert_close(g, w, narrow, 24)
    run(replaced)  # whoever serves
