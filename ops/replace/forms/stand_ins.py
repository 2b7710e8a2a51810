"""What stands for a module or its children while it is tried, and whether children are those that it was tried with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kpt.ops.replace.modules import is_watched
from kpt.ops.replace.proof import attributes, is_kept


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


@dataclass(frozen=True, slots=True)
class Child:
    """A child that is not called any more, as it was tried: its class, what that class is told, and its own children."""

    kind: type[nn.Module]
    told: tuple[tuple[str, Any], ...] = ()
    children: "Children" = ()

    def is_still(self, module: Any) -> bool:
        """Whether a module is such a one, and nobody watches it."""
        return (
            type(module) is self.kind
            and not is_watched(module)
            and all(getattr(module, name, None) == value for name, value in self.told)
            and are_as_proven(module, self.children)
        )


Children = tuple[tuple[str, Child], ...]
"""By name."""


def as_it_is(module: nn.Module) -> Child:
    """A module without parameters, as it is."""
    told = tuple([(name, value) for name, value in attributes(module).items() if is_kept(value)])
    return Child(type(module), told, tuple([(name, as_it_is(inner)) for name, inner in module.named_children()]))


def are_as_proven(module: nn.Module, children: Children) -> bool:
    """Whether children that are not called any more are still those that were there, and nobody watches them."""
    return all(known.is_still(getattr(module, name)) for name, known in children)
