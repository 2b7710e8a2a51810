"""Linear layers whose biases have their gradients from kpt's sums of columns."""

import copy
import io
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import kpt
from kpt.ops import counters, prefer
from kpt.ops.replace import linear as replaced
from kpt.ops.replace.modules import KptLinear
from tests.ops.calls import Asked
from tests.ops.gradients import leaves
from tests.tolerances import assert_close

F = torch.nn.functional
BACKENDS = ("numpy", "triton", "pallas")


def sums() -> int:
    """Calls of the op that were served by kernels so far."""
    return sum(n for who, n in counters()["linear_act_backward"]["served"].items() if who != "reference")


def gradients(function: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(function(*given).square().sum(), given)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(5, 9), (2, 5, 9), (3, 2, 37, 9), (1, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_is_pytorchs_but_the_gradient_of_the_bias(shape: tuple[int, ...], dtype: torch.dtype, backend: Any) -> None:
    given = leaves(shape, (7, 9), (7,), dtype=dtype)
    before = sums()
    with prefer(backend):
        found = replaced.linear(*given)
        got = gradients(replaced.linear, given)
    assert sums() == before + 1
    assert torch.equal(found, F.linear(*given))
    expected = gradients(F.linear, given)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])
    exact = gradients(F.linear, tuple(t.detach().double().requires_grad_() for t in given))
    assert_close(got[2], exact[2], "f32" if dtype is torch.float32 else "bf16", given[0].numel() // 9)
    assert got[2].dtype is dtype


class Odd(torch.Tensor):
    """A subclass that sees every function."""


SERVED_BY_PYTORCH: dict[str, Any] = {
    "no bias": lambda linear, x, w, b: linear(x, w),
    "a bias without gradient": lambda linear, x, w, b: linear(x, w, b.detach()),
    "a vector": lambda linear, x, w, b: linear(x[0], w, b),
    "nothing": lambda linear, x, w, b: linear(x[:0], w, b),
    "strides that are none of a matrix": lambda linear, x, w, b: linear(x.expand(3, 5, 9).mT.contiguous().mT, w, b),
    "a bias of two dims": lambda linear, x, w, b: linear(x, w, b[None]),
    "no features": lambda linear, x, w, b: linear(x, w[:0], b[:0]),
    "float64": lambda linear, x, w, b: linear(x.double(), w.double(), b.double()),
    "complex numbers": lambda linear, x, w, b: linear(x * 1j, w + 0j, b + 0j).abs(),
    "a sparse matrix": lambda linear, x, w, b: linear(x.detach().to_sparse_csr(), w, b),
    "a subclass": lambda linear, x, w, b: linear(x.as_subclass(Odd), w, b),
    "a transform": lambda linear, x, w, b: torch.func.vmap(linear, (0, None, None))(x, w, b),
    "compiled": lambda linear, x, w, b: torch.compile(linear, backend="eager", fullgraph=True)(x, w, b),
}


@pytest.mark.parametrize("case", SERVED_BY_PYTORCH)
def test_what_is_pytorchs_stays_so(case: str) -> None:
    found, expected, before = [], [], sums()
    for linear, grads in ((replaced.linear, found), (F.linear, expected)):
        given = leaves((5, 9), (7, 9), (7,))
        with prefer("numpy"):
            y = SERVED_BY_PYTORCH[case](linear, *given)
            y.square().sum().backward()
        grads += [y.detach(), *[t.grad for t in given]]
    assert sums() == before
    for got, wanted in zip(found, expected, strict=True):
        assert got is wanted is None or torch.equal(got, wanted)


def test_on_a_cpu_pytorch_sums_unless_kernels_are_preferred() -> None:
    given, before = leaves((5, 9), (7, 9), (7,)), sums()
    y = replaced.linear(*given)
    assert "Addmm" in y.grad_fn.next_functions[0][0].name() or "Addmm" in y.grad_fn.name()  # type: ignore[union-attr]
    with prefer("reference"):
        gradients(replaced.linear, given)
    assert sums() == before


def test_outputs_are_modified_in_place_as_pytorchs_are() -> None:
    given = leaves((2, 5, 9), (7, 9), (7,))
    with prefer("numpy"):
        got = gradients(lambda *g: replaced.linear(*g).mul_(2).relu_(), given)
    expected = gradients(lambda *g: F.linear(*g).mul_(2).relu_(), given)
    for found, wanted in zip(got, expected, strict=True):
        assert_close(found, wanted, "f32", 10)


def test_what_does_not_fit_is_refused_in_pytorchs_words() -> None:
    x, w, b = leaves((2, 6, 3), (7, 9), (7,))
    with prefer("numpy"), pytest.raises(RuntimeError, match="cannot be multiplied"):
        replaced.linear(x, w, b)


def test_the_gradient_is_differentiated_again() -> None:
    x, w, b = leaves((5, 9), (7, 9), (7,))
    with prefer("numpy"):
        once = torch.autograd.grad(replaced.linear(x, w, b).pow(3).sum(), (x, w, b), create_graph=True)
        again = torch.autograd.grad(sum(g.sum() for g in once), (x, w, b))
    expected = torch.autograd.grad(F.linear(x, w, b).pow(3).sum(), (x, w, b), create_graph=True)
    for found, wanted in zip(again, torch.autograd.grad(sum(g.sum() for g in expected), (x, w, b)), strict=True):
        assert_close(found, wanted, "f32", 100)


def test_several_gradients_at_once() -> None:
    x, w, b = leaves((5, 9), (7, 9), (7,))
    each = torch.randn(3, 5, 7)
    with prefer("numpy"):
        (got,) = torch.autograd.grad(replaced.linear(x, w, b), b, each, is_grads_batched=True)
    assert_close(got, each.sum(1), "f32", 5)


@pytest.mark.parametrize("frozen", [(0,), (1,), (0, 1)])
def test_whatever_else_is_frozen(frozen: tuple[int, ...]) -> None:
    given = leaves((5, 9), (7, 9), (7,))
    for i in frozen:
        given[i].requires_grad_(False)
    wanted = [t for t in given if t.requires_grad]
    with prefer("numpy"):
        got = torch.autograd.grad(replaced.linear(*given).square().sum(), wanted)
    for found, expected in zip(got, torch.autograd.grad(F.linear(*given).square().sum(), wanted), strict=True):
        assert_close(found, expected, "f32", 10)


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_no_gradient_needs_may_be_modified_before_the_backward(frozen: int) -> None:
    got = []
    for linear in (replaced.linear, F.linear):
        given = leaves((5, 9), (7, 9), (7,))
        given[frozen].requires_grad_(False)
        with prefer("numpy"):
            y = linear(*given)
            with torch.no_grad():
                given[1 - frozen].add_(1)
            got.append(torch.autograd.grad(y.square().sum(), (given[1 - frozen], given[2])))
    for found, wanted in zip(*got, strict=True):
        assert_close(found, wanted, "f32", 10)


def test_under_autocast_types_are_pytorchs() -> None:
    given, before = leaves((5, 9), (7, 9), (7,)), sums()
    with prefer("numpy"), torch.autocast("cpu", torch.bfloat16):
        y = replaced.linear(*given)
        got = torch.autograd.grad(y.float().square().sum(), given)
        own = F.linear(*given)
    assert sums() == before + 1
    assert torch.equal(y, own)
    for found, expected in zip(got, torch.autograd.grad(own.float().square().sum(), given), strict=True):
        assert found.dtype is expected.dtype
        assert_close(found, expected, "bf16", 10)


def test_inside_a_checkpoint() -> None:
    given, before = leaves((5, 9), (7, 9), (7,)), sums()
    with prefer("numpy"):
        got = gradients(lambda *g: checkpoint(replaced.linear, *g, use_reentrant=False), given)
    assert sums() == before + 1
    for found, expected in zip(got, gradients(F.linear, given), strict=True):
        assert_close(found, expected, "f32", 10)


@pytest.mark.parametrize("shape", [(5, 9), (2, 5, 9)])
def test_a_mode_sees_the_operations_that_it_knows(shape: tuple[int, ...]) -> None:
    """And what a checkpoint makes again when the mode is gone is what it made."""
    given, before = leaves(shape, (7, 9), (7,)), sums()
    with prefer("numpy"):
        with Asked() as asked:
            y = checkpoint(replaced.linear, *given, use_reentrant=False)
        got = torch.autograd.grad(y.square().sum(), given)
    assert "aten::addmm" in asked.names
    assert sums() == before + 1
    for found, expected in zip(got, gradients(F.linear, given), strict=True):
        assert_close(found, expected, "f32", 10)


# ------------------------------------------------------------------------------------------------------------ of whole models
class Block(nn.Module):
    """A linear layer of every kind: fused in a pair, called, without a bias, a subclass, and in PyTorch's own layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.free = nn.Linear(8, 8, bias=False)
        self.frozen = nn.Linear(8, 8)
        self.frozen.bias.requires_grad_(False)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.out = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.frozen(self.free(self.mlp(x)))
        return self.out(self.layer(self.attention(x, x, x, need_weights=False)[0]))


CALLED = ["mlp.2", "layer.linear2", "out"]


@pytest.fixture
def block() -> Iterator[Block]:
    block = Block()
    yield block
    kpt.restore_modules(block)
    assert not [path for path, module in block.named_modules() if "Kpt" in type(module).__name__]


def linears(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if type(module) is KptLinear]


def test_layers_that_are_called_and_train_a_bias(block: Block) -> None:
    assert not linears(block) and kpt.replace_modules(copy.deepcopy(block)).changes
    assert not [c for c in kpt.replace_modules(copy.deepcopy(block)).changes if c.kind == "bias_gradient"]  # asked for
    report = kpt.optimize(block)
    assert linears(block) == CALLED == [c.path for c in report.changes if c.kind == "bias_gradient"]
    assert "3  Linear -> KptLinear" in str(report) and "kpt.ops.linear_act_backward" in str(report)
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    own = copy.deepcopy(block)
    kpt.restore_modules(own)
    before = sums()
    with prefer("numpy"):
        block(x).square().sum().backward()
    assert sums() - before >= len(CALLED) + 2 * 2  # attention's two products have biases of their own, twice
    own(x).square().sum().backward()
    for p, wanted in zip(block.parameters(), own.parameters(), strict=True):
        if wanted.grad is not None:
            assert_close(p.grad, wanted.grad, "f32", 100)


def test_a_run_that_is_watched_is_served_as_others_are(block: Block) -> None:
    report = kpt.optimize(block)
    with prefer("numpy"), report.watching():
        block(torch.ones(2, 5, 8)).sum().backward()
    assert report.served().by["linear_act_backward"]["numpy"] >= len(CALLED)


@pytest.mark.parametrize(("kind", "features"), [("bias_gradient", 8), ("unaligned_linear", 9)])
def test_others_see_the_layers_that_they_know(kind: str, features: int) -> None:
    """Whatever was replaced first, pairs are found and fused, and run so."""
    model = nn.Sequential(nn.Linear(8, features), nn.ReLU())
    assert [c.path for c in kpt.replace_modules(model, only={kind}).changes] == ["0"]
    assert [c.kind for c in kpt.replace_modules(model).changes] == ["linear_act"]
    before = counters()["linear_act"]["served"].get("numpy", 0)
    with prefer("numpy"):
        model(torch.ones(2, 8))
    assert counters()["linear_act"]["served"]["numpy"] == before + 1
    assert len(kpt.restore_modules(model).changes) == 2
    assert type(model[0]) is nn.Linear


def test_copies_and_pickles(block: Block) -> None:
    kpt.optimize(block)
    buffer = io.BytesIO()
    torch.save(block, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(block), torch.load(buffer, weights_only=False)):
        assert linears(other) == CALLED
        kpt.restore_modules(other)
        assert type(other.out) is nn.Linear


def test_traced_by_fx() -> None:
    layer, x = nn.Linear(8, 4), torch.ones(3, 8)
    kpt.replace_modules(layer, only={"bias_gradient"})
    assert torch.equal(torch.fx.symbolic_trace(layer)(x), layer(x))


def test_lazy_layers_are_none_before_their_first_call() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d())
    assert not kpt.optimize(model).changes
    model(torch.ones(3, 16))
    kpt.optimize(model)
    assert linears(model) == ["0"]


@pytest.mark.parametrize("mode", ["eval", "no_grad"])
def test_nothing_is_noted_where_no_gradient_is_wanted(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaced, "_follow", None)
    layer, x = nn.Linear(8, 4), torch.ones(3, 8)
    kpt.replace_modules(layer, only={"bias_gradient"})
    if mode == "eval":
        layer.eval().requires_grad_(False)
    with prefer("numpy"), torch.no_grad() if mode == "no_grad" else nullcontext():
        y = layer(x)
    assert y.grad_fn is None
    assert torch.equal(y, F.linear(x, layer.weight, layer.bias))
