"""Gated MLPs of classes of one's own: replaced where gate, up and down lie around an activation, and left alone where not."""

import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kpt
from tests.ops.calls import served
from tests.tolerances import assert_close

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(20))


class MLP(nn.Module):
    """As Llama's."""

    def __init__(self, act: nn.Module | None = None, width: int = 12) -> None:
        super().__init__()
        torch.manual_seed(20)
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, width), nn.Linear(8, width), nn.Linear(width, 8)
        self.act_fn = act or nn.SiLU()

    def forward(self, hidden: torch.Tensor) -> Any:
        return self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden))


class Swapped(MLP):
    """What its names say is the other way round."""

    def forward(self, hidden: torch.Tensor) -> Any:
        return self.down_proj(self.gate_proj(hidden) * self.act_fn(self.up_proj(hidden)))


class Joined(nn.Module):
    """As Phi-3's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(20)
        self.both, self.down = nn.Linear(8, 24, bias=False), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> Any:
        gate, up = self.both(x).chunk(2, dim=-1)
        return self.down(up * F.gelu(gate, approximate="tanh"))


class JoinedSwapped(Joined):
    def forward(self, x: torch.Tensor) -> Any:
        up, gate = self.both(x).chunk(2, dim=-1)
        return self.down(up * F.gelu(gate, approximate="tanh"))


RIGHT = {
    "silu": (MLP, {"products": ("gate_proj", "up_proj"), "activation": "silu"}),
    "gelu": (lambda: MLP(nn.GELU()), {"activation": "gelu"}),
    "gelu_tanh": (lambda: MLP(nn.GELU("tanh")), {"activation": "gelu_tanh"}),
    "square": (lambda: MLP(width=8), {"products": ("gate_proj", "up_proj"), "down": "down_proj"}),
    "swapped": (Swapped, {"products": ("up_proj", "gate_proj"), "activation": "silu"}),
    "joined": (Joined, {"products": ("both",), "gate_first": True, "activation": "gelu_tanh"}),
    "joined, swapped": (JoinedSwapped, {"gate_first": False}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_gated_mlps_are_replaced(name: str) -> None:
    make, parts = RIGHT[name]
    own, module = make(), make()
    report = kpt.replace_modules(module)
    assert [(c.path, c.kind) for c in report.changes] == [("(model)", "gated_act")]
    assert {part: getattr(module.served, part) for part in parts} == parts
    before = sum(served("gated_act").values())
    got, expected = module(X), own(X)
    assert sum(served("gated_act").values()) == before + 1
    assert_close(got, expected, "f32", 12)
    got.square().sum().backward()
    expected.square().sum().backward()
    for a, b in zip(module.parameters(), own.parameters(), strict=True):
        assert_close(a.grad, b.grad, "f32", 24)
    again = pickle.loads(pickle.dumps(module))
    assert torch.equal(again(X), got)
    if name in ("silu", "joined"):
        compiled = torch.compile(module, fullgraph=True, backend="eager")
        assert_close(compiled(X), got, "f32", 12)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(module(X), own(X).double(), "bf16", 12)
        assert module(X).dtype == own(X).dtype
    kpt.restore_modules(module)
    assert torch.equal(module(X), expected)


def silu_of(scale: float) -> Any:
    return lambda x: x * torch.sigmoid(scale * x)


def kept(module: nn.Module, gate: torch.Tensor) -> torch.Tensor:
    module.sparsity = gate.abs().mean()  # type: ignore[assignment]
    return gate


WRONG = {
    "activation of the product": lambda s, x: s.down_proj(s.act_fn(s.gate_proj(x) * s.up_proj(x))),
    "a sum": lambda s, x: s.down_proj(s.act_fn(s.gate_proj(x)) + s.up_proj(x)),
    "both activated": lambda s, x: s.down_proj(s.act_fn(s.gate_proj(x)) * s.act_fn(s.up_proj(x))),
    "the gate twice": lambda s, x: s.down_proj(s.act_fn(s.gate_proj(x)) * s.gate_proj(x)),
    "another activation": lambda s, x: s.down_proj(silu_of(1.01)(s.gate_proj(x)) * s.up_proj(x)),
    "a residual": lambda s, x: x + s.down_proj(s.act_fn(s.gate_proj(x)) * s.up_proj(x)),
    "a scale": lambda s, x: s.down_proj(s.act_fn(s.gate_proj(x)) * s.up_proj(x)) * 1.001,
    "another input": lambda s, x: s.down_proj(s.act_fn(s.gate_proj(x)) * s.up_proj(x * 2)),
    "the last layer left out": lambda s, x: s.act_fn(s.gate_proj(x)) * s.up_proj(x),
    "the last layer by its weight": lambda s, x: F.linear(s.act_fn(s.gate_proj(x)) * s.up_proj(x), s.down_proj.weight),
    "dropout": lambda s, x: s.down_proj(F.dropout(s.act_fn(s.gate_proj(x)) * s.up_proj(x), 0.1, s.training)),
    "no gradient": lambda s, x: s.down_proj(s.act_fn(s.gate_proj(x)).detach() * s.up_proj(x)),
    "a loss beside": lambda s, x: s.down_proj(kept(s, s.act_fn(s.gate_proj(x))) * s.up_proj(x)),
    "a limit": lambda s, x: s.down_proj(s.act_fn(s.gate_proj(x)).clamp(max=100) * s.up_proj(x)),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_only_looks_like_a_gated_mlp_is_left_alone(name: str) -> None:
    kind = type("Wrong", (MLP,), {"forward": WRONG[name]})
    module = kind().eval()
    report = kpt.replace_modules(module)
    assert type(module) is kind
    assert ([c.kind for c in report.changes], [s.kind for s in report.skipped]) == ([], ["gated_act"])
    assert "Wrong is gated by no activation of kpt's" in report.skipped[0].reason


def test_modules_with_three_layers_of_another_form_are_no_candidates() -> None:
    attention = type("Attention", (MLP,), {"forward": lambda self, x, mask=None: x})
    assert kpt.replace_modules(attention()).skipped == ()
    assert kpt.replace_modules(MLP(nn.PReLU())).skipped == ()  # its activation has a parameter


def test_who_watches_or_exchanges_the_activation_gets_the_modules_own_code() -> None:
    module, own, seen = MLP(), MLP(), []
    kpt.replace_modules(module)
    before = sum(served("gated_act").values())
    handle = module.act_fn.register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(module(X), own(X))
    assert seen == [1]
    handle.remove()
    module.act_fn, own.act_fn = nn.ReLU(), nn.ReLU()
    assert torch.equal(module(X), own(X))
    assert sum(served("gated_act").values()) == before


def test_layers_are_called_as_modules() -> None:
    """So that hooks see them, and adapters may take their place."""
    module, own, seen = MLP(), MLP(), []
    kpt.replace_modules(module)
    for name in ("gate_proj", "up_proj", "down_proj"):
        module.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.append(name))
    assert_close(module(hidden=X), own(X), "f32", 12)
    assert seen == ["gate_proj", "up_proj", "down_proj"]
    for m in (module, own):
        m.up_proj = nn.Sequential(m.up_proj, nn.Tanh())
    assert_close(module(X), own(X), "f32", 12)


def test_layers_of_unlike_types_run_the_modules_own_code() -> None:
    module, own = MLP(), MLP()
    kpt.replace_modules(module)
    for m in (module, own):
        m.gate_proj.register_forward_hook(lambda _, __, out: out.bfloat16())
    assert torch.equal(module(X), own(X))
