"""Modules of one's own that are changed after they were replaced compute what they would have computed: what an attribute
said when it was shown what they compute, it may say no more."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kpt
from tests.ops.calls import served

X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(20))


class Act(nn.Module):
    """An activation that is told which."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class Gated(nn.Module):
    def __init__(self, act: Any = F.silu) -> None:
        super().__init__()
        torch.manual_seed(20)
        self.gate, self.up, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        self.act, self.dropout, self.scale, self.p, self.behind = act, nn.Dropout(0.0), 1.0, 0.0, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.dropout(self.act(self.gate(x)) * self.up(x)) * self.scale
        y = self.down(F.dropout(y, self.p, self.training))
        return y if self.behind is None else self.behind(y)


class Joined(nn.Module):
    def __init__(self, act: Any = F.gelu) -> None:
        super().__init__()
        torch.manual_seed(20)
        self.both, self.down, self.act = nn.Linear(8, 24), nn.Linear(12, 8), act

    def forward(self, x: torch.Tensor) -> Any:
        gate, up = self.both(x).chunk(2, -1)
        return self.down(self.act(gate) * up)


class MLP(nn.Module):
    def __init__(self, act: Any = F.gelu) -> None:
        super().__init__()
        torch.manual_seed(20)
        self.fc1, self.fc2, self.act, self.dropout = nn.Linear(8, 12), nn.Linear(12, 8), act, nn.Dropout(0.0)

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc2(self.dropout(self.act(self.fc1(x))))


class Layer(nn.Module):
    """An activation, and a sum before a norm, somewhere in a forward."""

    def __init__(self, act: Any = F.gelu, centred: bool = False) -> None:
        super().__init__()
        torch.manual_seed(20)
        self.fc, self.out, self.act, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), act, Norm(centred)

    def forward(self, x: torch.Tensor) -> Any:
        y = x + self.out(self.act(self.fc(x)))
        return y, self.norm(y)


class Norm(nn.Module):
    def __init__(self, centred: bool = False) -> None:
        super().__init__()
        torch.manual_seed(20)
        self.weight, self.eps, self.scale, self.centred = nn.Parameter(torch.rand(8)), 1e-6, 1.0, centred
        self.register_parameter("bias", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.double() if x.dtype is torch.float64 else x.float()
        wide = wide - wide.mean(-1, keepdim=True) if self.centred else wide
        y = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps) * self.scale
        y = y if self.weight is None else y * self.weight
        return (y if self.bias is None else y + self.bias).to(x.dtype)


def put(path: str, value: Any) -> Callable[[nn.Module], None]:
    """Sets an attribute of a module inside."""
    *inner, name = path.split(".")
    return lambda module: setattr(module.get_submodule(".".join(inner)), name, value)


CHANGES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], None]]] = {
    "a scale": (Gated, put("scale", 2.0)),
    "a function": (Gated, put("act", F.gelu)),
    "a probability": (Gated, put("p", 0.5)),
    "a child's probability": (Gated, put("dropout.p", 0.5)),
    "a child that was none": (Gated, put("behind", nn.Tanh())),
    "a child's word": (lambda: Gated(nn.GELU()), put("act.approximate", "tanh")),
    "a child of the same class": (lambda: Gated(nn.GELU()), put("act", nn.GELU("tanh"))),
    "a child's function": (lambda: Gated(Act(F.silu)), put("act.function", F.gelu)),
    "a child's child": (lambda: Gated(nn.Sequential(nn.SiLU(), nn.Dropout(0.0))), put("act.1.p", 0.5)),
    "a function, gate and up joined": (Joined, put("act", F.silu)),
    "a child's word, gate and up joined": (lambda: Joined(nn.GELU()), put("act.approximate", "tanh")),
    "a function behind a layer": (MLP, put("act", F.silu)),
    "a child's word behind a layer": (lambda: MLP(nn.GELU()), put("act.approximate", "tanh")),
    "a function in a text": (Layer, put("act", F.silu)),
    "a child's word in a text": (lambda: Layer(nn.GELU()), put("act.approximate", "tanh")),
    "a norm's scale": (Norm, put("scale", 2.0)),
    "a norm's mean": (Norm, put("centred", True)),
    "a norm's eps": (Norm, put("eps", 0.5)),
    "a norm's weight": (Norm, put("weight", nn.Parameter(torch.arange(8.0)))),
    "a norm's weight of one": (Norm, put("weight", nn.Parameter(torch.tensor([3.0])))),
    "a norm's weight of two dims": (Norm, put("weight", nn.Parameter(torch.arange(40.0).view(5, 8)))),
    "no weight": (Norm, put("weight", None)),
    "a bias that was none": (Norm, put("bias", nn.Parameter(torch.arange(8.0)))),
    "the scale of a norm of a sum": (Layer, put("norm.scale", 2.0)),
    "the scale of a layer norm of a sum": (lambda: Layer(centred=True), put("norm.scale", 2.0)),
    "the weight of a norm of a sum": (Layer, put("norm.weight", nn.Parameter(torch.tensor([3.0])))),
    "no weight of a norm of a sum": (Layer, put("norm.weight", None)),
}


def run(module: nn.Module, x: torch.Tensor = X) -> Any:
    torch.manual_seed(3)
    y = module(x)
    return torch.cat(y, -1) if isinstance(y, tuple) else y


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_is_computed_as_it_is(name: str) -> None:
    make, change = CHANGES[name]
    own, module = make(), make()
    assert kpt.optimize(module, "aggressive").changes
    torch.testing.assert_close(run(module), run(own))
    unchanged, compiled = run(own), torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(run(compiled), unchanged)
    change(own)
    change(module)
    assert not torch.equal(run(own), unchanged)
    for other in (module, compiled, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(run(other), run(own))
    kpt.restore_modules(module)
    assert torch.equal(run(module), run(own))
    assert not [name for name in vars(module) if name.startswith("_kpt")]


@pytest.mark.parametrize("make", [Gated, lambda: Gated(Act(F.silu)), Joined, MLP, lambda: MLP(Act(F.gelu)), Layer, Norm])
def test_what_says_what_it_said_is_served(make: Any) -> None:
    """Set anew to the same, put into another mode, with more attributes: none of it is a change."""
    module = make()
    kpt.optimize(module, "aggressive")
    ops = ("gated_act", "linear_act", "rms_norm", "add_rms_norm")
    module.eval().train()
    for part in list(module.modules()):
        for name, value in list(vars(part).items()):
            if not name.startswith("_"):
                setattr(part, name, value)
        part.more = 3  # type: ignore[assignment]
    before = sum(sum(served(op).values()) for op in ops)
    run(module)
    assert sum(sum(served(op).values()) for op in ops) > before
    torch.testing.assert_close(run(torch.compile(module, backend="eager", fullgraph=True)), run(module))


@pytest.mark.parametrize(("make", "op", "change"), [
    (Gated, "gated_act", put("scale", 2.0)), (Joined, "gated_act", put("act", F.silu)), (MLP, "linear_act", put("act", F.silu)),
    (Norm, "rms_norm", put("scale", 2.0)), (lambda: Norm(centred=True), "layer_norm", put("scale", 2.0)),
    (Layer, "rms_norm", put("norm.scale", 2.0)),
])  # fmt: skip
def test_what_runs_its_own_code_is_counted(make: Any, op: str, change: Callable[[nn.Module], None]) -> None:
    """Once a call, also of a norm that is joined with the sum before it."""
    module = make()
    kpt.optimize(module, "aggressive")
    change(module)
    before = _changed(op)
    run(module)
    assert _changed(op) == before + 1


def _changed(op: str) -> int:
    fallbacks = kpt.ops.counters()[op]["fallbacks"]
    return sum(n for why, n in fallbacks.items() if "was set to something else" in why)


class Unit(nn.Module):
    """A norm without a weight, of one width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.eps = width, 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.float() * torch.rsqrt(x.float().pow(2).sum(-1, keepdim=True) / self.width + self.eps)).to(x.dtype)


@pytest.mark.parametrize("width", [8, 48, 64])
def test_a_norm_of_one_width_without_a_weight_is_none(width: int) -> None:
    module = nn.Sequential(Unit(width))
    assert not kpt.replace_modules(module).changes
