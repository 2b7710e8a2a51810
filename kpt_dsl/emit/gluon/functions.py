"""A function of a generated Gluon module: what it needs from outside is read off its text, and passed under the same name."""

import builtins
import symtable
from dataclasses import dataclass
from functools import cached_property

from kpt_dsl.emit.text import Writer
from kpt_dsl.emit.triton.axes import Scope

BUILTINS = frozenset(dir(builtins))


@dataclass
class Function:
    """A function of the module. ``own``: its first parameters, with all that it reads and then gives another value; the others
    are what it only reads and nobody else defines."""

    name: str
    own: tuple[str, ...]
    body: Writer
    shared: frozenset[str]
    """Names that the whole module knows."""

    @cached_property
    def parameters(self) -> list[str]:
        """Names of all parameters; the body is read once, when they are first asked for, and as Python's compiler does."""
        text = f"def function({', '.join(self.own)}):\n{self.body.text()}"
        tables = symtable.symtable(text, self.name, "exec").get_children()  # one may be of annotations (PEP 649)
        function = next(t for t in tables if t.get_name() == "function")
        assert isinstance(function, symtable.Function)
        known = self.shared | BUILTINS
        return [*self.own, *(name for name in function.get_globals() if name not in known)]

    def write(self, out: Writer) -> None:
        """Write the function."""
        out.line("\n\n@gluon.jit")
        out.call(f"def {self.name}(", self.parameters, tail="):", packed=True)
        out.paste(self.body)

    def arguments(self, *own: str) -> list[str]:
        """What a call passes: values for its first parameters, and the rest under the names that they have outside."""
        return [*own, *self.parameters[len(self.own) :]]


def define(scope: Scope, out: Writer) -> None:
    """Write what a scope defines."""
    for name, text in scope.definitions.items():
        out.line(f"{name} = {text}")
