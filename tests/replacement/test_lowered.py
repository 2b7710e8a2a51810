"""Models of some makes under autocast, replaced: as good as they were there themselves, and of the same types."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

import kpt
from tests import soak
from tests.replacement import table
from tests.replacement.lowered import judge
from tests.replacement.models import Subject, subject_here

COMPILED = ("nanoGPT",)
HERE = ("bert", "gemma2", "gpt2", "llama", "nn.Sequential", "nn.TransformerEncoder", "qwen3", *COMPILED)
"""Those that run here, on kernels; all others do in ``make soak``."""


@pytest.mark.parametrize("name", [soak.unless(name in HERE, name) for name in table.read()])
def test_a_replaced_model_is_as_good_under_autocast(name: str) -> None:
    found = subject_here(name)
    with kpt.ops.prefer("numpy") if name in HERE else nullcontext():
        judge(found, compiled=name in COMPILED or name not in HERE)


class Own(nn.Module):
    """A norm that a replacement is to be as good as."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(64) + 0.5), 1e-5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class Coarse(torch.autograd.Function):
    """Gives what it is given, and gradients in 5 bits."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> torch.Tensor:
        return dy.to(torch.float8_e5m2).to(dy.dtype)


WRONG = {
    "another type": lambda y: y.bfloat16(),
    "coarse": lambda y: y.to(torch.float8_e5m2).to(y.dtype),
    "coarse gradients": Coarse.apply,
    "coarse where compiled": lambda y: y.to(torch.float8_e5m2).to(y.dtype) if torch.compiler.is_compiling() else y,
}


@pytest.mark.parametrize("name", ["right", *WRONG])
def test_what_is_worse_under_autocast_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(20)
    x = torch.randn(5, 64)
    model = nn.Sequential(Own(), nn.Linear(64, 64), Own())
    if name == "right":
        return judge(Subject(model, lambda model: [model(x)]), compiled=True)

    def replace(model: nn.Module, level: str) -> None:
        forward = lambda self, x: WRONG[name](Own.forward(self, x))  # noqa: E731
        model[2].__class__ = type("Worse", (Own,), {"forward": forward})

    monkeypatch.setattr(kpt, "optimize", replace)
    with pytest.raises(AssertionError, match="gives" if name == "another type" else "off by"):
        judge(Subject(model, lambda model: [model(x)]), compiled=True)
