"""gated_act: every implementation against float64, layouts that are not copied, and which gradients are made."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import kpt
from kpt.ops import gated_act, prefer
from kpt.ops.gated_act.backward import gated_act_backward
from kpt.ops.linear_act.activations import ACTIVATIONS, ALIASES
from kpt.ops.registry import get
from tests.activations import FORMULAS, slope
from tests.tolerances import assert_close, assert_within, tolerance

BACKENDS = ("reference", "numpy", "triton", "pallas")
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64}


def randn(*shape: int, dtype: str = "f32") -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DTYPES[dtype])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "shape"), [("f32", (1,)), ("f16", (37, 199)), ("bf16", (2, 3, 760)), ("f64", (3, 5)), ("f32", (2, 0, 3))],
    ids=str,
)  # fmt: skip
def test_values_and_gradients(backend: Any, dtype: str, shape: tuple[int, ...]) -> None:
    if dtype == "f64" and backend != "reference":
        return
    gate, up = randn(*shape, dtype=dtype).requires_grad_(), randn(*shape, dtype=dtype).flip(0).requires_grad_()
    with prefer("reference" if 0 in shape else backend):
        y = gated_act(gate, up, "silu")
        dy = randn(*shape, dtype=dtype)
        found = torch.autograd.grad(y, (gate, up), dy)
    act = FORMULAS["silu"](gate.double())
    wanted = act * up, dy * up * slope("silu", gate), dy * act
    for got, right in zip((y, *found), wanted, strict=True):
        assert (got.dtype, got.shape) == (gate.dtype, gate.shape)
        assert got.is_contiguous()
        assert_close(got.detach(), right.detach(), "f32" if dtype == "f64" else dtype)


@pytest.mark.parametrize("activation", FORMULAS)
def test_every_activation_of_the_reference(activation: str) -> None:
    """In float64, and its gradient by autograd, through the op's backward, and by finite differences."""
    z = torch.linspace(-12, 12, 240, dtype=torch.float64).requires_grad_()
    up, dy = randn(240, dtype="f64"), randn(240, dtype="f64").flip(0)
    y = gated_act(z, up, activation)
    wanted = (dy * up * slope(activation, z)).detach()
    assert_within(y.detach(), (FORMULAS[activation](z) * up).detach(), 1e-6)  # laplace's numbers have seven digits
    for got in (torch.autograd.grad(y, z, dy)[0], gated_act_backward(dy, z.detach(), up, activation, (True, False))[0]):
        assert_within(got, wanted, 1e-6)
    torch.autograd.gradcheck(lambda g, u: gated_act(g, u, activation), (z, up.requires_grad_()), fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS.keys() - ALIASES.keys()))
def test_every_activation_of_the_kernels(activation: str, backend: Any) -> None:
    """Where curves bend, far out, and NaN. Slopes are asked for beside those of ``linear_act``."""
    far = torch.tensor([0.0, -0.0, 1e3, -1e3, 1e15, -1e15, 1e-30, torch.nan])
    z = torch.cat([torch.linspace(-12, 12, 241), far])
    with prefer(backend):
        y = gated_act(z, torch.ones_like(z), activation)
    wanted = FORMULAS[activation](z.double())
    if activation == "relu":
        wanted[-1] = torch.nan  # which torch.where drops
    assert_within(y, wanted, tolerance("f32") * (1 + wanted.abs()).nan_to_num(0.0).numpy())


def test_transformers_activations_are_known() -> None:
    activations = pytest.importorskip("transformers.activations")
    z, one = torch.linspace(-12, 12, 240, dtype=torch.float64), torch.ones(240, dtype=torch.float64)
    unknown = {"prelu", "xielu", "sqrtsoftplus", "linear"}  # parameters; a slope that never rests; no activation
    for name in activations.ACT2CLS.keys() - unknown:
        assert_close(gated_act(z, one, name), activations.ACT2FN[name](z), "f32")


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_kernels_round_once(dtype: str) -> None:
    """Nearer to float64 than PyTorch, which rounds the activation first."""
    gate, up = randn(64, 64, dtype=dtype), randn(64, 64, dtype=dtype).flip(0)
    exact = FORMULAS["silu"](gate.double()) * up.double()
    with prefer("numpy"):
        y = gated_act(gate, up, "silu")
    assert ((y - exact).abs() <= 0.501 * torch.finfo(y.dtype).eps * exact.abs() + 1e-7).all()
    assert ((torch.nn.functional.silu(gate) * up - exact).abs() / exact.abs()).max() > 0.501 * torch.finfo(y.dtype).eps


LAYOUTS: dict[str, tuple[Callable[[], tuple[torch.Tensor, ...]], bool]] = {
    "halves of a row": (lambda: randn(3, 5, 2 * 7).chunk(2, -1), True),
    "every second row": (lambda: randn(6, 2, 7).unbind(1), True),
    "one more than aligned": (lambda: (randn(36)[1:].view(5, 7), randn(35).view(5, 7)), True),
    "a row for all": (lambda: (randn(1, 7).expand(5, 7), randn(5, 7)), True),
    "transposed": (lambda: (randn(7, 5).T, randn(5, 7)), False),
    "halves of channels": (lambda: randn(3, 2 * 5, 7).chunk(2, 1), False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, in_place = LAYOUTS[layout]
    gate, up = make()
    seen = []
    from kpt.ops import backends

    launched = backends.Launches.__call__
    monkeypatch.setattr(backends.Launches, "__call__", lambda self, *given: (seen.append(given), launched(self, *given)))
    leaves = gate.detach().requires_grad_(), up.detach().requires_grad_()
    with prefer("numpy"):
        y = gated_act(*leaves, "gelu")
        dgate, dup = torch.autograd.grad(y.sum(), leaves)
    act = FORMULAS["gelu"](gate.double())
    for got, right in ((y.detach(), act * up), (dgate, up * slope("gelu", gate)), (dup, act)):
        assert_close(got, right, "f32")
    forward, backward = seen  # one launch each
    assert [kernel.name for kernel, *_ in seen] == ["gated_act_fwd", "gated_act_bwd"]
    given = {t.data_ptr() for t in forward[1:3]} | {t.data_ptr() for t in backward[2:4]}
    assert (given == {gate.data_ptr(), up.data_ptr()}) == in_place


@pytest.mark.parametrize("needed", [(True, False), (False, True), (False, False)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_gradients_that_are_needed(needed: tuple[bool, bool], backend: Any) -> None:
    gate, up = randn(5, 7), randn(5, 7).flip(0)
    both = [up * slope("silu", gate), FORMULAS["silu"](gate.double())]
    with prefer(backend):
        found = gated_act_backward(torch.ones(5, 7), gate, up, "silu", needed)
    for got, right in zip(found, [g for g, n in zip(both, needed, strict=True) if n], strict=True):
        assert_within(got, right, 2 * tolerance("f32"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_leaves_it_alone(dtype: torch.dtype) -> None:
    gate, up = randn(5, 7).to(dtype).requires_grad_(), randn(5, 7).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = gated_act(gate, up, "mish")
        (dgate,) = torch.autograd.grad(y.sum(), gate)
    assert y.dtype == dgate.dtype == dtype
    assert torch.equal(y, gated_act(gate, up, "mish"))


def test_compiles_into_one_graph_of_any_length() -> None:
    def mlp(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return gated_act(*(x @ w).chunk(2, -1), "gelu_pytorch_tanh")

    torch._dynamo.reset()
    compiled = torch.compile(mlp, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (5, 6, 9):
        given = randn(rows, 8).requires_grad_(), randn(8, 14).requires_grad_()
        for got, right in zip(
            torch.autograd.grad(compiled(*given).sum(), given), torch.autograd.grad(mlp(*given).sum(), given), strict=True
        ):
            assert_close(got, right, "f32", 16)


def test_its_kernels_are_recorded() -> None:
    assert [i.kernel.name for i in get("gated_act").instances({"M": 8, "N": 16}, "bf16", joined=True)] == ["gated_act_fwd"]
    assert [i.kernel.name for i in get("gated_act_backward").instances({"M": 8, "N": 16}, "bf16")] == ["gated_act_bwd"]
    with prefer("numpy"):
        explained = kpt.ops.explain("gated_act", randn(5, 14)[:, :7], randn(5, 7), "silu")
    assert explained.implementation == "numpy"


X = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("gated_act: gate is None (NoneType)", lambda: gated_act(None, X, "silu")),  # type: ignore[arg-type]
        ("gated_act: gate is of dtype torch.int64", lambda: gated_act(X.long(), X.long(), "silu")),
        ("gated_act: gate is of rank 0; accepted: rank 1 or more", lambda: gated_act(X[0, 0], X[0, 0], "silu")),
        ("gated_act: up is of shape (4,); accepted: the shape of gate, here (3, 4)", lambda: gated_act(X, X[0], "silu")),
        ("gated_act: up is of dtype torch.float16; accepted: the dtype of gate", lambda: gated_act(X, X.half(), "silu")),
        ("gated_act: up is on meta; accepted: the device of gate, cpu", lambda: gated_act(X, X.to("meta"), "silu")),
        ("gated_act: activation is 'prelu'; accepted: none, relu", lambda: gated_act(X, X, "prelu")),
        ("gated_act_backward: dy is of shape (4,)", lambda: gated_act_backward(X[0], X, X, "silu", (True, True))),
        ("gated_act_backward: needed is (1, 0); accepted: two bools",
         lambda: gated_act_backward(X, X, X, "silu", (1, 0))),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(kpt.InputError) as error:
        call()
    assert message in str(error.value)
