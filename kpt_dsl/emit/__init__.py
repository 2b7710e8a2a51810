"""From a kernel, a target and a config to source text: one emitter module a backend, found by the backend's name.

An emitter module has two functions. ``facts(kernel, extents, config)`` says what of a call's extents a text has to know, as
something hashable; ``emit(kernel, known, target, config) -> Source`` writes the text from tile IR and these facts, and is given
no extents beside. Ours are in ``OWN``; a package adds its own through an entry point of the group ``kpt.emitters`` named like
the ``backend`` of its targets.
"""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

from kpt_dsl.errors import TargetError
from kpt_dsl.extensions import entry_points

if TYPE_CHECKING:
    from kpt_dsl.instance import Instance
    from kpt_dsl.space import Config
    from kpt_dsl.targets import Target

OWN = {"triton": "kpt_dsl.emit.triton.module", "pallas": "kpt_dsl.emit.pallas.module", "numpy": "kpt_dsl.emit.numpy"}


@dataclass(frozen=True)
class Source:
    """Generated source: ``text`` is a module, ``name`` the function in it to run.

    ``abi`` is the emitter's note to its own runtime: arguments, grid and compile options, in a record of the backend's own.
    Two instances with equal ``text`` and ``abi`` share one binary.
    """

    backend: str
    name: str
    text: str
    abi: Any = field(repr=False, default=None)

    @cached_property
    def digest(self) -> str:
        """A name for this text that is the same in every process: 16 hexadecimal digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def emitter(backend: str) -> Any:
    """The emitter module of a backend. Raises TargetError where there is none."""
    if backend in OWN:
        return import_module(OWN[backend])
    for found in entry_points(group="kpt.emitters", name=backend):
        return found.load()
    raise TargetError(
        f"no emitter for backend {backend!r}: kpt has {', '.join(OWN)}, and no installed package offers "
        f"an entry point kpt.emitters:{backend}"
    )


def emit(instance: "Instance", target: "Target", config: "Config") -> Source:
    """Generate the source of an instance for a target and a config."""
    backend, kernel = emitter(target.backend), instance.lower(config)
    source: Source = backend.emit(kernel, backend.facts(kernel, instance.extents, config), target, config)
    return source
