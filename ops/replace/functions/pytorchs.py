"""PyTorch's own functions, called by a module's own code: by their name, or as part of what has one.

It is that very function, and what is called instead is the same in names, defaults, shapes and results: nothing is proven.
"""

import dis
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kpt.ops.replace.exchange import Within, within


@dataclass(frozen=True, slots=True)
class Exchange:
    """``other``, in the place of the function of ``torch.nn.functional`` that is called ``kind``, or within the module by which
    it is called."""

    kind: str
    other: Callable[..., Any]

    def instead_of(self, own: Any) -> Any:
        """What a global name means that is the function, or such a module."""
        path = _places(self.kind).get(within(own)) if isinstance(own, ModuleType) else None
        return self.other if path is None else Within(own, path, self.other)


def find(kind: str, forward: FunctionType) -> Iterator[str]:
    """The global names by which a forward calls the function of ``torch.nn.functional`` that is called so."""
    for name, path in _looked_up(forward.__code__):
        known = forward.__globals__.get(name)
        if known is getattr(F, kind) or (isinstance(known, ModuleType) and _places(kind).get(known) == path):
            yield name


@cache
def _places(kind: str) -> Mapping[ModuleType, str]:
    """Modules by which code calls it, and how."""
    return {torch: f"nn.functional.{kind}", nn: f"functional.{kind}", F: kind}


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
