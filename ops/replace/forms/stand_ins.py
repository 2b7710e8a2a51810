"""What stands for a module or its children while it is tried, and whether children are those that it was tried with."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from kpt.ops.replace.modules import is_watched


class Given(nn.Module):
    """In the place of a linear layer: gives what was drawn, for the input of the whole and nothing else."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        super().__init__()
        self.x, self.y = x, y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x is not self.x:
            raise ValueError("a linear layer is given something else than the input")
        return self.y


class Negated(nn.Module):
    """In the place of the last linear layer: what it gives tells that it was there."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x


class Noted(nn.Module):
    """In the place of any child: notes in ``calls`` its name, what it is given and what it gives, which is new."""

    def __init__(self, name: str, calls: list[tuple[str, Any, torch.Tensor]]) -> None:
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        self.calls.append((self.name, x, y))
        return y


class Layer:
    """In the place of a module of which some lines run: has these children, what cannot be called, and for all else another
    function."""

    def __init__(self, module: nn.Module, children: Mapping[str, Any], training: bool) -> None:
        self._module, self._children, self.training = module, children, training

    def __getattr__(self, name: str) -> Any:
        if name in self._children:
            return self._children[name]
        value = getattr(self._module, name)
        return _another if callable(value) else value


def _another(*arguments: Any, **keywords: Any) -> torch.Tensor:
    """Another function of the first tensor than any norm or activation."""
    first = next(a for a in (*arguments, *keywords.values()) if isinstance(a, torch.Tensor))
    return 0.5 * first + 1


def are_as_proven(module: nn.Module, others: tuple[tuple[str, type[nn.Module]], ...]) -> bool:
    """Whether children that are not called any more are still those that were there, and nobody watches them."""
    for name, kind in others:
        child = getattr(module, name)
        if type(child) is not kind or is_watched(child):
            return False
    return True
