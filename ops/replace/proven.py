"""The classes of modules that were proven to compute what an op computes: subclasses of their own, made on demand.

Such a module is the same object; only its class differs, so ``isinstance``, parameters, hooks and state dicts hold. The class
has no name that pickle could import: a module says how to make it instead, of the class that it had and of what serves it.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import new_class
from typing import Any, ClassVar, Protocol, TypeGuard

import torch
from torch import nn

from kpt.ops.dispatch import DISPATCHERS
from kpt.ops.replace.exchange import is_as_now
from kpt.ops.replace.proof import MACHINERY, told
from kpt.ops.replace.rules import CHANGED

PARTS = ("_parameters", "_buffers", "_modules")
"""Where a module has what is no plain attribute, by name, or None in its place."""


class Served(Protocol):
    """What runs in the place of a forward: a frozen record that pickles. ``kind``: as ``replace_modules(only=…)`` has it."""

    @property
    def kind(self) -> str: ...

    @property
    def live(self) -> Collection[str] | None:
        """The attributes of a module that may change, since the function reads them at each call; None: all may."""

    def forward(self, original: type[nn.Module]) -> Callable[..., torch.Tensor]:
        """The function that takes the place of ``original.forward``."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a module that looks like one of a kind is left alone."""

    kind: str
    reason: str


class Proven(nn.Module):
    """A module that was of the class ``original``, and runs what ``served`` says."""

    original: ClassVar[type[nn.Module]]
    served: ClassVar[Served]

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        make, (kind, *others), *state = reduced
        if not is_proven(kind):  # a class that was made of one, by somebody who has to know how it comes back
            return reduced
        return _again, (make, kind.original, kind.served, *others), *state


def is_proven(kind: type) -> TypeGuard[type[Proven]]:
    """Whether this is such a class, and not one that was made of it."""
    return issubclass(kind, Proven) and "served" in vars(kind)


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module has, or had before it was replaced by one of these."""
    kind = type(module)
    return kind.original if is_proven(kind) else kind


def proven_class(original: type[nn.Module], served: Served) -> type[nn.Module]:
    """Modules of the class ``original`` with what serves them; one class, however often it is asked for, while
    the code of theirs looks up the same."""
    for kind in original.__subclasses__():
        if is_proven(kind) and kind.served == served and is_as_now(kind.forward):
            return kind
    body = {
        "original": original,
        "served": served,
        "forward": served.forward(original),
        "__module__": original.__module__,
        "__doc__": f"``{original.__name__}`` through ``kpt.ops.{served.kind}``.",
    }
    if served.live is not None:
        body |= {CHANGED: False, "__setattr__": _noting(original, served.live)}
    # Transformers saves models by the name of their class, and reads their code where its module says.
    name = original.__name__ if hasattr(original, "save_pretrained") else f"Kpt{original.__name__}"
    return new_class(name, (Proven, original), exec_body=lambda space: space.update(body))


def _noting(original: type[nn.Module], live: Collection[str]) -> Callable[[Any, str, Any], None]:
    """How attributes are set where those that are not ``live`` were part of what was shown."""

    def noting(self: Any, name: str, value: Any) -> None:
        own = vars(self)
        if name in own:
            is_other = name not in MACHINERY and told(own[name]) != told(value)
        else:  # children that there were are asked for at the call
            is_other = value is not None and any(own[part].get(name, self) is None for part in PARTS)
        if is_other and name not in live:
            own[CHANGED] = True
        original.__setattr__(self, name, value)

    return noting


def is_changed(module: nn.Module) -> bool:
    """Whether an attribute was set to something else since the module was shown to compute what serves it."""
    changed: bool = getattr(module, CHANGED)  # which torch.compile asks for again, as it would not of the attributes there are
    return changed


def runs_its_own(module: Any) -> bool:
    """The same of a module that is called now, which ``kpt.ops.counters()`` shows among the fallbacks of its op."""
    changed = is_changed(module)
    if changed and not torch.compiler.is_compiling():
        reason = f"{type(module).__name__}: an attribute was set to something else after the module was replaced"
        DISPATCHERS[module.served.kind].count_outside(reason)
    return changed


def _again(make: Callable[..., nn.Module], original: type[nn.Module], served: Served, *others: Any) -> nn.Module:
    return make(proven_class(original, served), *others)
