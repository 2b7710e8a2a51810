"""The form of a module whose code calls a function that an op serves: it runs the same code, which calls the op.

The function is exchanged for this module. Nobody else who looks it up, in the library or beside it, sees that.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any

from torch import nn

from kpt.ops.replace.exchange import giving_way
from kpt.ops.replace.forms.classes import is_pytorchs, why_changed
from kpt.ops.replace.functions import cross_entropy, rotary, sdpa
from kpt.ops.replace.proven import Refused, Served

FUNCTIONS: tuple[Any, ...] = (rotary, sdpa, cross_entropy)


@dataclass(frozen=True, slots=True)
class Calls:
    """A module's own forward. ``exchanges``: the global names that mean something else there, and what."""

    exchanges: tuple[tuple[str, Any], ...]
    live = None

    @property
    def kind(self) -> str:
        return ", ".join(dict.fromkeys(found.kind for _, found in self.exchanges))

    def forward(self, original: type[nn.Module]) -> Any:
        own = original.forward
        assert isinstance(own, FunctionType), "it was one when it was proven"
        meanings: dict[str, Any] = {}
        for name, found in self.exchanges:  # by one name, a module's, several functions may be called
            meanings[name] = found.instead_of(meanings.get(name, own.__globals__[name]))
        return giving_way(own, meanings)


def match(module: nn.Module) -> tuple[tuple[str, Any], ...] | None:
    """The global names of functions that a module's forward calls, and which of ``FUNCTIONS`` they look like."""
    forward = type(module).forward
    return _called(forward) or None if isinstance(forward, FunctionType) and not is_pytorchs(module) else None


@cache
def _called(forward: FunctionType) -> tuple[tuple[str, Any], ...]:
    return tuple([(name, known) for known in FUNCTIONS for name in dict.fromkeys(known.find(forward))])


def prove(module: nn.Module, called: tuple[tuple[str, Any], ...], kinds: Collection[str]) -> Served | Refused | None:
    """What a module's code calls instead, or why it stays; None where no kind is meant."""
    meant = [(name, known) for name, known in called if known.KIND in kinds]
    if not meant:
        return None
    if (reason := why_changed(module)) is not None:
        return Refused(meant[0][1].KIND, reason)
    names, exchanges, refused = type(module).forward.__globals__, [], {}
    for name, known in meant:
        found = known.prove(name, names[name])
        if isinstance(found, str):
            refused[known.KIND] = Refused(known.KIND, f"{type(module).__name__} {found}")
        else:
            exchanges.append((name, found))
    # where it calls several, which of them is a setting's affair
    proven = tuple([(name, found) for name, found in exchanges if found.kind not in refused])
    return Calls(proven) if proven else next(iter(refused.values()))
