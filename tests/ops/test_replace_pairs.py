"""A linear layer and an activation behind it, anywhere in a forward: one op where that was shown, else as it is written."""

import ast
import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kpt
from kpt.ops import prefer
from kpt.ops.replace import levels
from kpt.ops.replace.rewriting.pairs import join_pairs
from kpt.ops.replace.rewriting.text import text_of
from tests.ops.calls import served
from tests.tolerances import assert_close

X = torch.randn(3, 16, generator=torch.Generator().manual_seed(20))


def doubled(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x).square()


class Block(nn.Module):
    """Neither a form that is known, nor without a residual."""

    def __init__(self, act: Any = None) -> None:
        super().__init__()
        torch.manual_seed(20)
        self.fc1, self.fc2, self.drop, self.act = nn.Linear(16, 16), nn.Linear(16, 16), nn.Dropout(0.5), act or nn.GELU()
        self.norm = nn.LayerNorm(16)

    def forward(self, x: torch.Tensor, more: torch.Tensor | None = None) -> Any:
        """Of two lines,
        which stay as they are."""
        y = self.act(self.fc1(self.norm(x)))
        if more is not None:
            y = y + more
        return x + self.drop(self.fc2(y))


class Steps(Block):
    """As OPT's: one name for all."""

    def forward(self, x: torch.Tensor, more: torch.Tensor | None = None) -> Any:
        residual = x
        x = self.fc1(x)
        x = self.act(x)
        x = self.drop(x)
        return self.fc2(x) + residual


class Steps2(Block):
    """Names of their own, and an activation inside of an expression."""

    def forward(self, x: torch.Tensor, more: torch.Tensor | None = None) -> Any:
        h = self.fc1(x)
        y = x + self.drop(self.act(h))
        if y.ndim > 1:
            z = self.fc2(y)
            return torch.sigmoid(z) * y
        return y


class Functions(Block):
    """Functions of PyTorch's and of the file, several of them, and one layer twice."""

    def forward(self, x: torch.Tensor, more: torch.Tensor | None = None) -> Any:
        y = F.gelu(self.fc1(x), approximate="tanh") * torch.relu(self.fc2(x))
        y = y + doubled(self.fc1(F.gelu(self.fc1(y), approximate="tanh")))
        return self.drop(y)


class Layer(Block):
    """As BART's: sums with their norms besides."""

    def forward(self, x: torch.Tensor, more: torch.Tensor | None = None) -> Any:
        residual = x
        x = self.fc1(x)
        x = self.drop(x)
        x = residual + x
        x = self.norm(x)
        x = self.act(self.fc2(x))
        return x + residual


RIGHT: dict[str, tuple[Any, tuple[str, ...], int]] = {
    "nested": (Block, ("gelu",), 1),
    "another": (lambda: Block(nn.SiLU()), ("silu",), 1),
    "a function that it keeps": (lambda: Block(F.relu), ("relu",), 1),
    "one name": (Steps, ("gelu",), 1),
    "in place": (lambda: Steps(nn.ReLU(inplace=True)), ("relu",), 1),
    "two names": (Steps2, ("gelu", "sigmoid"), 2),
    "functions": (Functions, ("gelu_tanh", "relu", "relu2"), 4),
}


def joined(op: str = "linear_act") -> int:
    return sum(served(op).values())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", RIGHT)
def test_both_are_one_op(name: str, training: bool) -> None:
    make, activations, calls = RIGHT[name]
    own, module = make().train(training), make().train(training)
    report = kpt.replace_modules(module, only=["inner_linear_act"])
    assert [(c.kind, c.after, c.unserved) for c in report.changes] == [("inner_linear_act", f"Kpt{type(own).__name__}", ())]
    assert tuple(pair.activation for pair in type(module).served.pairs) == activations
    before = joined()
    outputs = []
    for each in (own, module):
        torch.manual_seed(7)
        x = X.clone().requires_grad_()
        out = each(x)
        outputs.append([out.detach(), *torch.autograd.grad(out.square().sum(), [x, *each.parameters()], allow_unused=True)])
    assert joined() == before + calls
    for expected, got in zip(*outputs, strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            assert_close(got, expected, "f32", 64, scale=max(1.0, float(expected.abs().max())))
    kpt.restore_modules(module)
    assert type(module) is type(own)


@pytest.mark.parametrize("name", RIGHT)
def test_they_are_copied_pickled_and_compiled(name: str) -> None:
    make, _, calls = RIGHT[name]
    own, module = make().eval(), make().eval()
    kpt.replace_modules(module, only=["inner_linear_act"])
    torch._dynamo.reset()
    with torch.no_grad(), prefer("numpy"):
        expected = own(X)
        compiled = torch.compile(module, fullgraph=True, backend="eager")
        for each in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module)), compiled):
            before = served("linear_act").get("numpy", 0)
            assert_close(each(X), expected, "f32", 64)
            assert served("linear_act")["numpy"] == before + calls
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got, expected = module(X), own(X)
        assert got.dtype is expected.dtype
        assert_close(got, expected.double(), "bf16", 64)


def test_they_are_exported() -> None:
    module = Steps2().eval()
    kpt.replace_modules(module, only=["inner_linear_act"])
    with torch.no_grad():
        program = torch.export.export(module, (X,))
        assert_close(program.module()(X), Steps2().eval()(X), "f32", 64)
    assert [str(n.target) for n in program.graph.nodes].count("kpt.linear_act.default") == 2


def text(kind: Any) -> str:
    found = text_of(kind.forward)
    assert found is not None
    join_pairs(found, lambda pair: 3 if pair.linear.startswith("fc") and pair.activation != "self.fc2" else None)
    return ast.unparse(found.tree)


def test_only_the_two_calls_are_rewritten() -> None:
    own = text_of(Steps2.forward)
    assert own is not None
    expected = ast.unparse(own.tree)
    for old, new in (
        ("self.fc1(x)", "_kpt_linear_act_3(self.fc1, self.act, x)"), ("self.act(h)", "h"),
        ("self.fc2(y)", "_kpt_linear_act_3(self.fc2, torch.sigmoid, y)"), ("torch.sigmoid(z)", "z"),
    ):  # fmt: skip
        assert expected.count(old) == 1
        expected = expected.replace(old, new)
    assert text(Steps2) == expected
    assert "doubled" in text(Functions)
    assert "_kpt_linear_act_3(self.fc1, doubled, _kpt_linear_act_3(self.fc1, F.gelu, y, approximate='tanh'))" in text(Functions)


class Elsewhere(Block):
    """What goes into the activation is used behind it."""

    def forward(self, x: torch.Tensor) -> Any:
        h = self.fc1(x)
        y = self.act(h)
        return y + h


class Twice(Block):
    def forward(self, x: torch.Tensor) -> Any:
        h = self.fc1(x)
        return self.act(h) * h


class Between(Block):
    def forward(self, x: torch.Tensor) -> Any:
        return self.act(self.drop(self.fc1(x)))


class BetweenSteps(Block):
    def forward(self, x: torch.Tensor) -> Any:
        x = self.fc1(x)
        x = self.drop(x)
        x = self.act(x)
        return self.fc2(x)


class Before(Block):
    def forward(self, x: torch.Tensor) -> Any:
        return self.fc1(self.act(x))


HOW = "tanh"


class Chosen(Block):
    """Which activation is not known before it is called."""

    def forward(self, x: torch.Tensor, doubled: Any = F.gelu) -> Any:
        return doubled(self.fc1(x)) + F.gelu(self.fc2(x), approximate=HOW)


class Handled(Block):
    def forward(self, x: torch.Tensor) -> Any:
        try:
            x = self.fc1(x)
            x = self.act(x)
        except ValueError:
            x = self.drop(x)
        return x


class Sometimes(Block):
    def forward(self, x: torch.Tensor) -> Any:
        h = self.fc1(x)
        x = self.act(h) if self.training else x
        return self.fc2(x)


class Later(Block):
    def forward(self, x: torch.Tensor) -> Any:
        for _ in range(2):
            h = self.fc1(x)
            x = self.act(h)
        return x + h


class Kept(Block):
    """A function inside has the name as well."""

    def forward(self, x: torch.Tensor) -> Any:
        inner = lambda: x  # noqa: E731
        x = self.fc1(x)
        return self.act(x) + inner()


class None_(Block):
    """No activations: dropout, a norm of rows, another layer, a product by the class's own method."""

    def forward(self, x: torch.Tensor) -> Any:
        x = self.drop(self.fc1(x))
        x = torch.softmax(self.fc2(x), 1)
        return self.twice(self.fc1(self.fc2(self.fc1(x))))

    def twice(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


@pytest.mark.parametrize(
    "kind", [Elsewhere, Twice, Between, BetweenSteps, Before, Chosen, Handled, Sometimes, Later, Kept, None_]
)
def test_other_texts_stay(kind: type[Block]) -> None:
    module = kind()
    report = kpt.replace_modules(module, only=["inner_linear_act"])
    assert type(module) is kind
    assert not report.changes and not report.skipped


class Nearly(nn.GELU):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (1.001 if self.training else 1)


class WithoutGradient(nn.SiLU):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.detach())


class Halved(nn.SiLU):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.half()).to(x.dtype)


WRONG = {
    "another": nn.Softplus(), "another slope": nn.LeakyReLU(0.2), "another way in training": Nearly(), "rounded": Halved(),
    "no gradient": WithoutGradient(), "a limit": nn.Hardtanh(0, 100.0), "a function": torch.sin,
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("kind", [Block, Steps])
def test_another_activation_is_refused(name: str, kind: type[Block]) -> None:
    module = kind(copy.deepcopy(WRONG[name]))
    report = kpt.replace_modules(module, only=["inner_linear_act"])
    assert type(module) is kind
    (reason,) = [s.reason for s in report.skipped]
    assert reason.startswith("self.act of fc1 is no activation of kpt's; with ")


def test_who_watches_or_exchanges_a_part_gets_the_forwards_own_text(monkeypatch: pytest.MonkeyPatch) -> None:
    own, module = Functions().eval(), Functions().eval()
    block = Block().eval()
    kpt.replace_modules(nn.ModuleList([module, block]), only=["inner_linear_act"])

    def calls(subject: Any) -> int:
        before = joined()
        with torch.no_grad():
            subject(X)
        return joined() - before

    seen: list[torch.Tensor] = []
    assert (calls(module), calls(block)) == (4, 1)
    with_hook = module.fc2.register_forward_hook(lambda _, __, y: seen.append(y))
    assert calls(module) == 3
    assert len(seen) == 1
    with_hook.remove()
    monkeypatch.setattr(F, "gelu", lambda x, approximate: torch.zeros_like(x))
    assert calls(module) == 2
    assert_close(module(X), own(X), "f32", 64)
    block.act.register_forward_hook(lambda _, __, y: seen.append(y))
    assert calls(block) == 0
    block.act = nn.SiLU()
    assert calls(block) == 0
    block.act = nn.GELU()
    assert calls(block) == 1
    block.fc1 = nn.Sequential(block.fc1)
    assert calls(block) == 0


def test_sums_and_activations_of_one_forward() -> None:
    own, module = Layer().eval(), Layer().eval()
    report = kpt.optimize(module, "aggressive")
    changed = [(c.path, c.kind) for c in report.changes]
    assert changed[:2] == [("norm", "layer_norm"), ("(model)", "add_norm, inner_linear_act")]
    assert {kind for _, kind in changed[2:]} == {"bias_gradient"}
    assert report.ops == ("layer_norm", "add_layer_norm", "linear_act", "linear_act_backward")
    (line,) = [line for line in str(report).splitlines() if "Layer -> KptLayer " in line]
    assert line.split("  ")[-2:] == ["kpt.ops.add_layer_norm, linear_act", "(model)"]
    before = joined(), joined("add_layer_norm")
    with torch.no_grad():
        assert_close(module(X), own(X), "f32", 64)
    assert (joined(), joined("add_layer_norm")) == (before[0] + 1, before[1] + 1)
    assert kpt.optimize(module, "aggressive").changes == ()
    kpt.restore_modules(module)
    assert type(module) is Layer
    assert [c.kind for c in kpt.replace_modules(module, only=["inner_linear_act"]).changes] == ["inner_linear_act"]


def test_what_is_slower_stays_beside_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "why_slower", lambda _, kind, __: "slower so" if kind == "linear_act" else None)
    module = nn.ModuleList([Layer(), Steps()])
    report = kpt.optimize(module, "aggressive")
    changed = [(c.path, c.kind, c.unserved) for c in report.changes if c.kind != "bias_gradient"]
    assert changed[-1] == ("0", "add_norm", ("self.act of fc2: slower so",))
    assert [(s.path, s.kind, s.reason) for s in report.skipped] == [("1", "inner_linear_act", "self.act of fc1: slower so")]
    assert "stays PyTorch's: self.act of fc2: slower so" in str(report)


class MLP(Block):
    """Of a form that is known."""

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc2(self.act(self.fc1(x)))


def test_why_a_module_stays_is_said_once() -> None:
    module = MLP(nn.Softplus())
    del module.norm
    report = kpt.optimize(module, "aggressive")
    assert [(s.path, s.kind) for s in report.skipped] == [("(model)", "linear_act")]
    assert {c.kind for c in report.changes} == {"bias_gradient"}


def test_what_has_a_form_is_not_looked_at_again() -> None:
    mlp = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
    report = kpt.optimize(nn.ModuleList([mlp, Steps()]), "aggressive")
    assert [(c.path, c.kind) for c in report.changes if "linear" in c.kind] == [("0", "linear_act"), ("1", "inner_linear_act")]
    assert not [c for c in kpt.optimize(Steps()).changes if c.kind == "inner_linear_act"]  # of another level
