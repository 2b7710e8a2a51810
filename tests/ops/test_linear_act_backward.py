"""linear_act's gradients: PyTorch's implementation and the generated ones against float64 autograd, and what is around them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import kpt
from kpt.ops import linear_act, prefer
from kpt.ops.linear_act import activations, reference
from kpt.ops.linear_act.backward import linear_act_backward
from kpt.ops.linear_act.saving import linear_act_saving
from kpt.ops.linear_act.weights import is_transposed
from tests import soak
from tests.activations import FORMULAS, slope
from tests.tolerances import assert_close, assert_within, tolerance

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")
"""For what all activations have in common."""
BACKENDS = ("reference", "numpy", "triton", "pallas")
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
Tensors = tuple[torch.Tensor, ...]


def randn(*shape: int, dtype: str = "f32") -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DTYPES[dtype])


def expected(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> Tensors:
    """In float64, through the definition of the op."""
    given = [t.detach().double().requires_grad_() for t in (x, weight, bias) if t is not None]
    z = given[0] @ given[1].T + (given[2] if bias is not None else 0)
    return torch.autograd.grad(FORMULAS[activation](z), given, dy.double())


def test_every_activation_has_a_formula_and_a_gradient() -> None:
    assert set(activations.ACTIVATIONS) == set(reference.ACTIVATIONS) == set(FORMULAS)
    assert set(activations.BACKWARD) == set(reference.BACKWARD) == set(FORMULAS) - {"none"}
    for alias, name in activations.ALIASES.items():
        assert activations.ACTIVATIONS[alias] is activations.ACTIVATIONS[name]
        assert activations.BACKWARD[alias] is activations.BACKWARD[name]
        assert reference.ACTIVATIONS[alias] is reference.ACTIVATIONS[name]


SLOW = ("triton", "pallas")
"""Interpreters, which see every other combination."""


@pytest.mark.parametrize(
    ("activation", "recompute", "backend"),
    [
        soak.unless(backend not in SLOW or (i % 2 == 0) == recompute, activation, recompute, backend)
        for i, activation in enumerate(ACTIVATIONS)
        for recompute in (False, True)
        for backend in BACKENDS
    ],
)
def test_gradients(activation: str, recompute: bool, backend: Any) -> None:
    """Leading dims, dims that are multiples of nothing, a bias or none, every dtype."""
    for dtype, bias in (("f32", True), ("f32", False), ("f16", True), ("bf16", False)):
        x, weight = randn(2, 37, 19, dtype=dtype), randn(31, 19, dtype=dtype) / 4
        b = randn(31, dtype=dtype) if bias else None
        given = [t.requires_grad_() for t in (x, weight, b) if t is not None]
        with prefer(backend):
            y = linear_act(x, weight, b, activation=activation, recompute=recompute)
        dy = randn(*y.shape, dtype=dtype)
        for got, wanted in zip(torch.autograd.grad(y, given, dy), expected(dy, x, weight, b, activation), strict=True):
            assert got.dtype == x.dtype
            assert got.is_contiguous()
            assert_close(got, wanted, dtype, 74)


LAYOUTS: dict[str, Callable[[], Tensors]] = {
    "a vector": lambda: (randn(9), randn(7, 9), randn(7)),
    "one row": lambda: (randn(1, 9), randn(7, 9), randn(7)),
    "one feature": lambda: (randn(5, 1), randn(1, 1), randn(1)),
    "transposed": lambda: (randn(9, 5).T, randn(9, 7).T, randn(7)),
    "transposed, rows apart": lambda: (randn(5, 9), randn(9, 20)[:, 3:10].T, randn(7)),
    "rows apart": lambda: (randn(5, 18)[:, ::2], randn(14, 9)[::2], randn(14)[::2]),
    "batch inside": lambda: (randn(9, 4, 5).transpose(0, 1), randn(7, 5), randn(7)),
    "expanded": lambda: (randn(1, 9).expand(5, 9), randn(1, 9).expand(7, 9), randn(1).expand(7)),
    "many rows": lambda: (randn(700, 9), randn(7, 9), randn(7)),  # several shares of the bias's sums
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, backend: Any) -> None:
    given = tuple(t.detach().requires_grad_() for t in LAYOUTS[layout]())
    for recompute in (False, True):
        with prefer(backend):
            y = linear_act(*given, activation="silu", recompute=recompute)
        dy = randn(*reversed(y.shape)).permute(*range(y.ndim - 1, -1, -1))
        for got, wanted in zip(torch.autograd.grad(y, given, dy), expected(dy, *given, "silu"), strict=True):
            assert_close(got, wanted, "f32", 700)


def test_which_weights_are_transposed() -> None:
    kept = torch.empty(9, 7)
    assert all(map(is_transposed, (kept.mT, kept[:, 2:5].mT, kept[:, :1].mT, torch.empty_strided((0, 9), (1, 4)))))
    for other in (kept, kept[:, ::2], kept[:1].mT, kept[:, ::2].mT, kept[:, :1].expand(9, 7), kept.as_strided((7, 9), (1, 1)),
                  kept.as_strided((7, 9), (1, 6)), torch.empty(1, 1), kept[0].expand(9, 7).mT):  # fmt: skip
        assert not is_transposed(other), other.stride()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("backend", ["numpy", "triton"])
def test_a_transposed_weight_is_used_as_it_lies(backend: Any, recompute: bool) -> None:
    """GPT-2 keeps (K, N): neither the kernels nor autograd, which adds to the parameter's gradient, copy that around."""
    x, kept, bias, dy = randn(37, 9).requires_grad_(), randn(9, 7).requires_grad_(), randn(7).requires_grad_(), randn(37, 7)

    def step() -> None:
        linear_act(x, kept.mT, bias, activation="gelu_tanh", recompute=recompute).backward(dy)

    with prefer(backend):
        step()
        kept.grad = None
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            step()
    names = {event.name for event in seen.events()}
    assert "aten::new_empty" in names
    assert names.isdisjoint({"aten::clone", "aten::contiguous", "aten::copy_"})
    assert kept.grad is not None
    assert kept.grad.stride() == kept.stride()
    assert_close(kept.grad, expected(dy, x, kept.mT, bias, "gelu_tanh")[1].mT, "f32", 37)


@pytest.mark.parametrize("shape", [(0, 9, 7), (5, 0, 7), (5, 9, 0)], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_nothing(shape: tuple[int, int, int], activation: str) -> None:
    rows, inner, outer = shape
    dy, x, weight, bias = randn(rows, outer), randn(rows, inner), randn(outer, inner), randn(outer)
    wanted = expected(dy, x, weight, bias, activation)
    z = x @ weight.T + bias
    for preactivation in (z, None):
        got = linear_act_backward(dy, x, weight, bias, preactivation, activation=activation)
        for g, w in zip(got, wanted, strict=True):
            assert_close(g, w, "f32", 9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", sorted(activations.BACKWARD.keys() - activations.ALIASES.keys()))
def test_slopes_everywhere(activation: str, backend: Any) -> None:
    """At zero, where curves bend, far out, at infinities and NaN: gradients of the activation alone, as PyTorch's are."""
    z = torch.cat([torch.linspace(-12, 12, 241), torch.tensor([0.0, -0.0, 1e3, -1e3, 1e15, -1e15, 1e-30, torch.nan])])
    dy = torch.linspace(-2, 2, z.numel())
    wanted = slope(activation, z) * dy.double()
    with prefer(backend):
        # the weight is one: its product hands dz on
        (dz,) = linear_act_backward(dy[:, None], None, torch.ones(1, 1), None, z[:, None], activation=activation,
                                    needed=(True, False, False))  # fmt: skip
    if activation == "relu":
        wanted[-1] = dy[-1]  # of NaN, as PyTorch has it
    allowed = tolerance("f32") * (wanted.abs() + dy.abs())  # dz is rounded, and so are slopes, of size one
    assert_within(dz[:, 0], wanted, allowed.nan_to_num(0.0).numpy())


@pytest.mark.parametrize("backend", BACKENDS)
def test_relu_keeps_infinite_gradients_out(backend: Any) -> None:
    dy = torch.tensor([[torch.inf, torch.nan, torch.inf]])
    with prefer(backend):
        (db,) = linear_act_backward(
            dy, None, None, None, torch.tensor([[-1.0, 0.0, 2.0]]), activation="relu", needed=(False, False, True)
        )
    assert torch.equal(db, torch.tensor([0.0, 0.0, torch.inf]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("needed", [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)], ids=str)
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_any_of_the_gradients(activation: str, needed: tuple[int, int, int], backend: Any) -> None:
    dy, x, weight, bias = randn(5, 7), randn(5, 9), randn(7, 9), randn(7)
    wanted = [g for g, n in zip(expected(dy, x, weight, bias, activation), needed, strict=True) if n]
    with prefer(backend):
        got = linear_act_backward(
            dy, x if needed[1] else None, weight if needed[0] else None, None, x @ weight.T + bias,
            activation=activation, needed=tuple(map(bool, needed)),
        )  # fmt: skip
    assert len(got) == len(wanted)
    for g, w in zip(got, wanted, strict=True):
        assert_close(g, w, "f32", 9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_saving_forward(activation: str, backend: Any) -> None:
    x, weight, bias = randn(2, 3, 9), randn(7, 9), randn(7)
    z = x.double() @ weight.double().T + bias.double()
    with prefer(backend):
        y, saved = linear_act_saving(x, weight, bias, activation=activation)
    assert y.data_ptr() != saved.data_ptr()
    assert_close(y, FORMULAS[activation](z), "f32", 9)
    assert_close(saved, z, "f32", 9)


DY, X, W = torch.zeros(3, 4), torch.zeros(3, 8), torch.zeros(4, 8)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("dy is None (NoneType); accepted: a torch.Tensor", lambda: linear_act_backward(None, X, W)),  # type: ignore[arg-type]
        ("dy is of shape (); accepted: (..., features out)", lambda: linear_act_backward(torch.zeros(()), X, W)),
        ("dy is of dtype torch.int64", lambda: linear_act_backward(DY.long(), X, W)),
        ("x is of shape (2, 8); accepted: (3, features in), as dy is of shape (3, 4)",
         lambda: linear_act_backward(DY, X[:2], W)),
        ("x is of dtype torch.float16; accepted: the dtype of dy, torch.float32",
         lambda: linear_act_backward(DY, X.half(), W)),
        ("weight is on meta; accepted: the device of dy, cpu", lambda: linear_act_backward(DY, X, W.to("meta"))),
        ("weight is of shape (4, 7); accepted: (features out, features in), here (4, 8)",
         lambda: linear_act_backward(DY, X, W[:, :7])),
        ("bias is of shape (3,); accepted: (features out,), here (4,)", lambda: linear_act_backward(DY, X, W, DY[:, 0])),
        ("preactivation is of shape (3, 8); accepted: the shape of dy, here (3, 4)",
         lambda: linear_act_backward(DY, X, W, None, X, activation="gelu")),
        ("activation is 'selu'; accepted: none, relu, gelu", lambda: linear_act_backward(DY, X, W, activation="selu")),
        ("needed is (True,); accepted: three bools, for x, weight and bias",
         lambda: linear_act_backward(DY, X, W, needed=(True,))),
        ("needed is (1, 0, 0); accepted: three bools", lambda: linear_act_backward(DY, X, W, needed=(1, 0, 0))),
        ("x is None; accepted: a tensor, as the gradient of weight is needed", lambda: linear_act_backward(DY, None, W)),
        ("weight is None; accepted: a tensor, as the gradient of x is needed", lambda: linear_act_backward(DY, X, None)),
        ("x is None; accepted: a tensor, as the pre-activation is made again",
         lambda: linear_act_backward(DY, None, W, activation="gelu", needed=(True, False, True))),
    ],
)  # fmt: skip
def test_gradients_that_do_not_fit_are_refused(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(kpt.InputError) as error:
        call()
    assert f"linear_act_backward: {message}" in str(error.value)


def test_forward_flags_that_do_not_fit_are_refused() -> None:
    with pytest.raises(kpt.InputError, match=r"linear_act: recompute is 1 \(int\); accepted: True or False"):
        linear_act(X, W, recompute=1)  # type: ignore[arg-type]
    with pytest.raises(kpt.InputError, match="linear_act_saving: activation is 'selu'"):
        linear_act_saving(X, W, activation="selu")
