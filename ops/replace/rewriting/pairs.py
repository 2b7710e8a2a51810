"""Linear layers and the activations of what they give, in a text: one call makes both.

``act(self.linear(x))`` in any expression; or ``y = self.linear(x)``, and ``act(y)`` in the statement behind, where nobody else
reads y. ``act`` is a child or a global name, with constants beside its input.
"""

import ast
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

from kpt.ops.replace.rewriting.text import Put, Text, blocks, calls_made, is_simple

ACTIVATED = "_kpt_linear_act_"
"""What names begin with that the text calls: of a linear layer, an activation, an input, and what the activation is given
besides, gives the activation of what the layer makes of the input. The number of the pair follows."""

GIVEN = "_kpt_given"
"""How a place calls the input of its linear layer."""


class Pair(NamedTuple):
    """``linear``: the attribute of self. ``activation``: how the text calls it, names with dots between; ``beside``: what it
    is given besides, as it is written."""

    linear: str
    activation: str
    beside: str = ""

    @property
    def attribute(self) -> str:
        """What of self the activation is; "" where it is a global name."""
        return self.activation.removeprefix("self.") if self.activation.startswith("self.") else ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a text has a pair: its calls as they are and rewritten, of ``GIVEN``."""

    pair: Pair
    own: ast.expr
    rewritten: ast.expr


def join_pairs(text: Text, number: Callable[[Pair], int | None]) -> list[Place]:
    """Rewrite a text in place: its pairs that have a number, in the order of the text."""
    return list(_Joining(text, number).block(text.tree.body))


class _Joining:
    """What is asked of a text while its pairs are joined."""

    def __init__(self, text: Text, number: Callable[[Pair], int | None]) -> None:
        self.code, self.number = text.function.__code__, number
        nodes = list(ast.walk(text.tree))
        self.names = [n.id for n in nodes if isinstance(n, ast.Name)]
        self.bound = {name for n in nodes for name in _bound_by(n)}

    def block(self, block: list[ast.stmt]) -> Iterator[Place]:
        for statement, following in zip(block, [*block[1:], None], strict=False):
            for inner in [] if isinstance(statement, ast.Try) else blocks(statement):  # whose handlers may read what is joined
                yield from self.block(inner)
            if is_simple(statement):
                yield from self.nested(statement)
                yield from self.followed(statement, following)

    def nested(self, statement: ast.stmt) -> Iterator[Place]:
        """Activations whose argument is a linear layer's call."""
        for call in [n for n in ast.walk(statement) if isinstance(n, ast.Call) and n.args]:
            if (found := self.found(call, call.args[0])) is not None:
                place, joined = found
                Put(call, joined).visit(statement)
                yield place

    def followed(self, start: Any, end: ast.stmt | None) -> Iterator[Place]:
        """A name that is a linear layer's output in one statement and an activation's argument in the next, and no more."""
        match start, end:
            case ast.Assign(targets=[ast.Name(id=name)]), ast.stmt() if self.is_last(name, end):
                calls = [c for c in calls_made(end) if c.args and isinstance(c.args[0], ast.Name) and c.args[0].id == name]
                for call in calls:  # one at most
                    if (found := self.found(call, start.value)) is not None:
                        place, start.value = found
                        Put(call, call.args[0]).visit(end)
                        yield place

    def is_last(self, name: str, end: ast.stmt) -> bool:
        """Whether a statement reads a local name once, and nobody does behind it."""
        read = [n.id for n in ast.walk(end) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
        if read.count(name) != 1 or name not in self.code.co_varnames or name in self.code.co_cellvars:
            return False
        match end:
            case ast.Return():
                return True
            case ast.Assign(targets=[ast.Name(id=target)]) if target == name:
                return True
        return self.names.count(name) == 2

    def found(self, call: ast.Call, layer: ast.expr) -> tuple[Place, ast.Call] | None:
        """The pair of an activation's and a linear layer's call, and what takes their place; None where it is none that has a
        number."""
        match layer:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=linear), args=[x], keywords=[]):
                beside = [*call.args[1:], *[keyword.value for keyword in call.keywords]]
                all_named = all(keyword.arg is not None for keyword in call.keywords)
                if not all_named or not all(isinstance(b, ast.Constant) for b in beside) or not self.is_known(call.func):
                    return None
            case _:
                return None
        pair = Pair(linear, ast.unparse(call.func), ast.unparse(ast.Call(ast.Name(""), call.args[1:], call.keywords))[1:-1])
        if (number := self.number(pair)) is None:
            return None

        def joined(x: ast.expr) -> ast.Call:
            parts = [layer.func, call.func, x, *call.args[1:]]
            return ast.Call(ast.Name(f"{ACTIVATED}{number}", ast.Load()), parts, call.keywords)

        given = ast.Name(GIVEN, ast.Load())
        own = ast.Call(call.func, [ast.Call(layer.func, [given], []), *call.args[1:]], call.keywords)
        return Place(pair, deepcopy(own), deepcopy(joined(given))), joined(x)

    def is_known(self, activation: ast.expr) -> bool:
        """Whether names with dots between are those of a child, or looked up beside the function."""
        match activation:
            case ast.Attribute(value=ast.Name(id="self")):
                return True
        while isinstance(activation, ast.Attribute):
            activation = activation.value
        return isinstance(activation, ast.Name) and activation.id not in self.bound


def _bound_by(node: ast.AST) -> Iterator[str]:
    """Names that a node gives a meaning in a function."""
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()) | ast.arg(arg=name):
            yield name
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.ExceptHandler(name=str(name)):
            yield name
        case ast.alias(name=path, asname=name):
            yield (name or path).partition(".")[0]
        case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
            yield name
