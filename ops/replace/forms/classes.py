"""What any form asks of a module's class, and how a forward of ours takes the place of its own."""

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import nn


def is_pytorchs(module: nn.Module) -> bool:
    """Whether its class and all that it is made of is PyTorch's."""
    return all(base.__module__.partition(".")[0] in ("torch", "builtins") for base in type(module).__mro__)


def inputs(module: nn.Module) -> list[str]:
    """What its forward takes, by name."""
    return [p.name for p in list(inspect.signature(type(module).forward).parameters.values())[1:]]


def why_not(module: nn.Module) -> str | None:
    """Why no module of this class is replaced by what takes one input; None where nothing speaks against it."""
    if len(inputs(module)) != 1:
        return why_changed(module) or f"{type(module).__name__} takes {', '.join(inputs(module)) or 'no named input'}"
    return why_changed(module)


def why_changed(module: nn.Module) -> str | None:
    """Why a module whose class PyTorch made, of another one, stays; None for others."""
    if type(module).__module__.partition(".")[0] == "torch":
        return f"its class was changed to {type(module).__name__} by PyTorch: replace it before that"
    return None


def taking(name: str, forward: Any) -> Callable[..., torch.Tensor]:
    """The same function with its input ``x`` called so: callers may name it."""
    code = forward.__code__
    names = tuple([name if n == "x" else n for n in code.co_varnames])
    return FunctionType(
        code.replace(co_varnames=names), forward.__globals__, "forward", forward.__defaults__, forward.__closure__
    )
