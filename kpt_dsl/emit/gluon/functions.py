"""A function of a generated Gluon module: what it needs from outside is read off its text, and passed under the same name."""

import ast
import builtins
import textwrap
from dataclasses import dataclass
from functools import cached_property

from kpt_dsl.emit.text import Writer
from kpt_dsl.emit.triton.axes import Scope


@dataclass
class Function:
    """A function of the module. ``own``: its first parameters; the others are what it reads and nobody else defines."""

    name: str
    own: tuple[str, ...]
    body: Writer
    shared: frozenset[str]
    """Names that the whole module knows."""

    @cached_property
    def parameters(self) -> list[str]:
        """Names of all parameters, without annotations; the body is read once, when they are first asked for."""
        own = [p.partition(":")[0] for p in self.own]
        found: dict[str, None] = {}
        _read(ast.parse(textwrap.dedent(self.body.text())).body, {*own, *self.shared, *dir(builtins)}, found)
        return [*own, *found]

    def write(self, out: Writer) -> None:
        """Write the function."""
        annotated = [*self.own, *self.parameters[len(self.own) :]]
        out.line("\n\n@gluon.jit")
        out.call(f"def {self.name}(", annotated, tail="):", packed=True)
        out.paste(self.body)

    def arguments(self, *own: str) -> list[str]:
        """What a call passes: values for its first parameters, and the rest under the names that they have outside."""
        return [*own, *self.parameters[len(self.own) :]]


def _read(body: list[ast.stmt], made: set[str], found: dict[str, None]) -> None:
    """Add the names that statements read before anything gives them a value, in order of appearance."""
    for stmt in body:
        inner = stmt.body if isinstance(stmt, ast.For | ast.If) else []
        outside = [node for node in ast.iter_child_nodes(stmt) if node not in inner]
        names = [n for node in outside for n in ast.walk(node) if isinstance(n, ast.Name)]
        names.sort(key=lambda n: (n.lineno, n.col_offset))
        updated = {stmt.target.id} if isinstance(stmt, ast.AugAssign) and isinstance(stmt.target, ast.Name) else set()
        found |= dict.fromkeys(
            n.id for n in names if n.id not in made and (isinstance(n.ctx, ast.Load) or n.id in updated)
        )
        made |= {n.id for n in names if isinstance(n.ctx, ast.Store)}
        _read(inner, made, found)


def define(scope: Scope, out: Writer) -> None:
    """Write what a scope defines."""
    for name, text in scope.definitions.items():
        out.line(f"{name} = {text}")
