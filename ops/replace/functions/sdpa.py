"""PyTorch's ``scaled_dot_product_attention``, called by a module's own code: by its name, or as part of what has one.

It is that very function, and the op is the same in names, defaults, shapes and results: nothing is to be proven.
"""

import dis
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kpt.ops.flash_attention.sdpa import scaled_dot_product_attention
from kpt.ops.replace.exchange import Within

KIND = "scaled_dot_product_attention"

PLACES = {torch: f"nn.functional.{KIND}", nn: f"functional.{KIND}", F: KIND}
"""Modules by which code calls it, and how."""


@dataclass(frozen=True, slots=True)
class Attention:
    """The op, in the place of the function or within the module by which it is called."""

    kind = KIND

    def instead_of(self, own: Any) -> Any:
        """What a global name means that is the function, or such a module."""
        return Within(own, PLACES[own], scaled_dot_product_attention) if own in PLACES else scaled_dot_product_attention


def find(forward: FunctionType) -> Iterator[str]:
    """The global names by which a forward calls PyTorch's function."""
    for name, path in _looked_up(forward.__code__):
        known = forward.__globals__.get(name)
        if known is F.scaled_dot_product_attention or (isinstance(known, ModuleType) and PLACES.get(known) == path):
            yield name


def prove(name: str, own: Any) -> Attention | str:
    """The op."""
    return Attention()


def _looked_up(code: CodeType) -> Iterator[tuple[str, str]]:
    """Global names that code looks up, and the names with dots between that it looks up in each."""
    name, path = "", []
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and name:
            path.append(str(instruction.argval))
        elif instruction.opname not in ("CACHE", "PUSH_NULL"):
            if name:
                yield name, ".".join(path)
            name, path = str(instruction.argval) if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") else "", []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _looked_up(constant)
