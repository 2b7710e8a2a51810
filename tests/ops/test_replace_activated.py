"""A linear layer whose output goes to an activation, in modules of one's own: one op where that was shown, else left alone."""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kpt
from kpt.ops import prefer
from kpt.ops.replace import lowered, proof
from kpt.ops.replace.forms.stand_ins import Child
from tests.ops.calls import served
from tests.tolerances import assert_close

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(20))


class MLP(nn.Module):
    """As vision transformers'."""

    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(20)
        self.fc1, self.fc2, self.drop = nn.Linear(8, 12), nn.Linear(12, 8), nn.Dropout(0.1)
        self.act = act or nn.GELU()

    def forward(self, hidden: torch.Tensor) -> Any:
        return self.drop(self.fc2(self.drop_inside(self.act(self.fc1(hidden)))))

    def drop_inside(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Functional(MLP):
    """As nanoGPT's relatives: the activation is in the code."""

    def forward(self, hidden: torch.Tensor) -> Any:
        return self.fc2(F.relu(self.fc1(hidden)).square())


class Intermediate(nn.Module):
    """As BERT's: what comes behind is another module's."""

    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(20)
        self.dense, self.act = nn.Linear(8, 12, bias=False), act or nn.Tanh()

    def forward(self, x: torch.Tensor) -> Any:
        return self.act(self.dense(x))


class Power(nn.Module):
    """Which autocast on a GPU computes in float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x * (1.0 + torch.tanh(0.7978845608028654 * (x + 0.044715 * torch.pow(x, 3.0))))


class Transposed(MLP):
    """As GPT-2's, whose weights lie the other way round."""

    def __init__(self) -> None:
        super().__init__(nn.GELU("tanh"))
        conv = pytest.importorskip("transformers.pytorch_utils").Conv1D
        self.fc1, self.fc2 = conv(12, 8), conv(8, 12)


RIGHT: dict[str, tuple[Any, dict[str, Any]]] = {
    "a child": (MLP, {"first": ("fc1", Child(nn.Linear)), "after": ("fc2", "drop"), "activation": "gelu"}),
    "another": (lambda: MLP(nn.SiLU()), {"between": (("act", Child(nn.SiLU, (("inplace", False),))),), "activation": "silu"}),
    "code": (Functional, {"between": (), "after": ("fc2",), "activation": "relu2"}),
    "nothing behind": (Intermediate, {"after": (), "activation": "tanh"}),
    "Conv1D": (Transposed, {"activation": "gelu_tanh"}),
    "a power": (lambda: MLP(Power()), {"activation": "gelu_tanh", "widens": False}),
    "a power, nothing behind": (lambda: Intermediate(Power()), {"activation": "gelu_tanh", "widens": True}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_layer_and_its_activation_are_one_op(name: str) -> None:
    make, parts = RIGHT[name]
    own, module, x = make().eval(), make().eval(), X.repeat(3, 1)
    report = kpt.replace_modules(module)
    assert [(c.path, c.kind) for c in report.changes] == [("(model)", "linear_act")]
    assert {part: getattr(module.served, part) for part in parts} == parts
    before = served("linear_act").get("numpy", 0)
    with prefer("numpy"):
        got, expected = module(x), own(x)
        got.square().sum().backward()
    assert served("linear_act")["numpy"] == before + 1
    assert_close(got.detach(), expected.detach(), "f32", 12)
    expected.square().sum().backward()
    for a, b in zip(module.parameters(), own.parameters(), strict=True):
        assert_close(a.grad, b.grad, "f32", 24, scale=max(float(b.grad.abs().max()), 1e-3))
    for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert torch.equal(other(x), module(x))
    torch._dynamo.reset()
    assert_close(torch.compile(module, fullgraph=True, backend="eager")(x), module(x), "f32", 12)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(module(x), own(x).double(), "bf16", 12)
        assert module(x).dtype == own(x).dtype
    assert widens_on_a_gpu(module) == widens_on_a_gpu(own) == (name == "a power, nothing behind")
    kpt.restore_modules(module)
    assert torch.equal(module(x), own(x))


def widens_on_a_gpu(module: nn.Module) -> bool:
    """Whether it gives another type than bfloat16 for that, under autocast."""

    def trial(case: proof.Case, draw: proof.Draw) -> proof.Run:
        parameters = {name: draw(*p.shape) for name, p in module.named_parameters()}
        return proof.Run({}, lambda: torch.func.functional_call(module, parameters, (draw(300, 8),)))

    return lowered.widens(trial)


WRONG = {
    "another activation": lambda s, x: s.fc2(torch.sin(s.fc1(x))),
    "one that is nearly one": lambda s, x: s.fc2(F.gelu(s.fc1(x)) * 1.001),
    "two": lambda s, x: s.fc2(F.silu(F.relu(s.fc1(x)))),
    "of rows": lambda s, x: s.fc2(torch.softmax(s.fc1(x), -1)),
    "a limit": lambda s, x: s.fc2(F.relu(s.fc1(x)).clamp(max=100)),
    "dropout in the code": lambda s, x: s.fc2(F.dropout(F.gelu(s.fc1(x)), 0.1, s.training)),
    "no gradient": lambda s, x: s.fc2(F.gelu(s.fc1(x)).detach()),
    "float32 given": lambda s, x: s.fc2(F.gelu(s.fc1(x)).float()),
    "the input beside": lambda s, x: s.fc2(F.gelu(s.fc1(x)) + x.sum()),
}
OTHERS = {
    "a residual": lambda s, x: x + s.fc2(s.act(s.fc1(x))),
    "an input of its own": lambda s, x: s.fc2(s.act(s.fc1(x * 2))),
    "the last layer's output changed": lambda s, x: s.fc2(s.act(s.fc1(x))) * 1.001,
    "between layers": lambda s, x: s.fc2(s.act(s.fc1(x)) * 1.001),
    "no activation": lambda s, x: s.fc2(s.fc1(x)),
    "dropout only": lambda s, x: s.fc2(s.drop(s.fc1(x))),
    "one behind": lambda s, x: s.act(s.fc2(s.fc1(x))),
    "before": lambda s, x: s.fc2(s.fc1(s.act(x))),
    "another way in training": lambda s, x: s.fc2(s.act(s.fc1(x))) if s.training else s.fc2(s.drop(s.act(s.fc1(x)))),
    "a tuple": lambda s, x: (s.fc2(s.act(s.fc1(x))),),
    "by its weight": lambda s, x: F.linear(s.act(s.fc1(x)), s.fc2.weight),
}


@pytest.mark.parametrize("name", [*WRONG, *OTHERS])
def test_what_only_looks_like_one_is_left_alone(name: str) -> None:
    kind = type("Wrong", (MLP,), {"forward": WRONG.get(name) or OTHERS[name]})
    module = kind().eval()
    report = kpt.replace_modules(module)
    assert type(module) is kind
    assert report.changes == ()
    assert [s.reason.partition(";")[0] for s in report.skipped] == ["Wrong has no activation of kpt's"] * (name in WRONG)


class Noting(nn.GELU):
    """One that keeps what shapes it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Size] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.shape)
        return super().forward(x)


def test_an_activation_that_keeps_something_is_called() -> None:
    module = MLP(Noting())
    (skipped,) = kpt.replace_modules(module).skipped
    assert "it leaves something in seen" in skipped.reason
    module(X)
    assert module.act.seen == [(3, 12)]


def test_who_watches_or_exchanges_a_part_gets_the_modules_own_code() -> None:
    module, own, seen = MLP().eval(), MLP().eval(), []
    kpt.replace_modules(module)
    before = sum(served("linear_act").values())
    for part in (module.act, module.fc1):
        handle = part.register_forward_hook(lambda *_: seen.append(1))
        assert torch.equal(module(X), own(X))
        handle.remove()
    for m in (module, own):
        m.fc1 = nn.Sequential(m.fc1, nn.Tanh())
    assert torch.equal(module(X), own(X))
    assert seen == [1, 1]
    assert sum(served("linear_act").values()) == before


def test_layers_behind_are_called_as_modules() -> None:
    module, own, seen = MLP().eval(), MLP().eval(), []
    kpt.replace_modules(module)
    module.fc2.register_forward_hook(lambda *_: seen.append(1))
    assert_close(module(hidden=X), own(X), "f32", 12)
    assert seen == [1]
    for m in (module, own):
        m.fc2 = nn.Sequential(m.fc2, nn.Tanh())
    assert_close(module(X), own(X), "f32", 12)
    torch.manual_seed(1)
    dropped = module.train()(X)
    torch.manual_seed(1)
    assert_close(dropped, own.train()(X), "f32", 12)
