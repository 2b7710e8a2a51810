"""Sums and the norms of them, in a text: one call makes both.

``y = a + b``, with nothing behind it but other names for y and ``if``s that ask whether something was given, and then
``self.norm(y)``; or ``self.norm(a + b)``.
"""

import ast
from collections.abc import Collection, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from kpt.ops.replace.rewriting.text import Put, blocks, calls_made

JOINED = "_kpt_sum_and_norm"
"""What the text calls: of a module and two parts, gives their sum and the module of it."""

NORMED = "_kpt_norm_"
"""What names begin with that hold the norm of a sum until the text asks for it."""


@dataclass(frozen=True, slots=True)
class Sum:
    """A sum and the norm of it: ``norm``, the attribute of self; the statements from the one to the other, as they are and
    rewritten; and names that are asked for between, each with a value (None or True) by which no branch is entered."""

    norm: str
    own: tuple[ast.stmt, ...]
    rewritten: tuple[ast.stmt, ...]
    asked: tuple[tuple[str, bool | None], ...] = ()


def join_sums(block: list[ast.stmt], norms: Collection[str]) -> list[Sum]:
    """Rewrite a block of statements, and those inside, in place: its sums that these attributes of self are norms of, in the
    order of the text."""
    sums: list[Sum] = []
    _block(block, norms, sums)
    return sums


def _block(block: list[ast.stmt], norms: Collection[str], sums: list[Sum]) -> None:
    for i, statement in enumerate(block):
        for inner in blocks(statement):
            _block(inner, norms, sums)
        for call in list(_calls(statement, norms)):
            if isinstance(call.args[0], ast.BinOp):
                own = deepcopy(statement)
                Put(call, ast.Subscript(_joined(call, call.args[0]), ast.Constant(1), ast.Load())).visit(statement)
                sums.append(Sum(_name(call), (own,), (deepcopy(statement),)))
        if _sum_of(statement) is not None:
            _follow(block, i, norms, sums)


def _follow(block: list[ast.stmt], i: int, norms: Collection[str], sums: list[Sum]) -> None:
    """Join the sum of a block's statement i with the norm of it, if that comes."""
    start: Any = block[i]
    names: set[str] = {start.targets[0].id}
    assigned = set(names)
    branches: dict[str, Any] = {}
    for j in range(i + 1, len(block)):
        statement: Any = block[j]
        call = next((c for c in _calls(statement, norms) if getattr(c.args[0], "id", None) in names), None)
        if call is not None:
            if _is_handed_on(statement, call, names):
                return
            own = deepcopy(block[i : j + 1])
            _join(start, statement, call, list(branches.values()), f"{NORMED}{len(sums)}")
            asked = [(name, None if isinstance(test.ops[0], ast.IsNot) else True) for name, test in branches.items()]
            sums.append(Sum(_name(call), tuple(own), tuple(deepcopy(block[i : j + 1])), tuple(asked)))
            return
        match statement:
            case ast.Assign(targets=[ast.Name(id=target)], value=ast.Name(id=source)):
                if target in branches:
                    return
                names = names | {target} if source in names else names - {target}
                assigned.add(target)
            case ast.If(
                test=ast.Compare(left=ast.Name(id=name), ops=[ast.Is() | ast.IsNot()], comparators=[ast.Constant(None)]),
                orelse=[],
            ) if name not in assigned and name not in branches:  # they are asked before the sum
                branches[name] = statement.test
            case _:
                return


def _is_handed_on(statement: ast.stmt, norm: ast.Call, names: Collection[str]) -> bool:
    """Whether something else that a statement calls before a norm is given what has one of these names, and may modify it."""
    for node in _in_order(statement):
        if node is norm:
            break
        if isinstance(node, ast.Call):
            inside = list(ast.walk(node))
            if norm not in inside and any(isinstance(n, ast.Name) and n.id in names for n in inside):
                return True
    return False


def _in_order(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes in the order of the text."""
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _in_order(child)


def _join(start: ast.Assign, end: ast.stmt, call: ast.Call, branches: Sequence[ast.expr], normed: str) -> None:
    """Have the statement of a sum make its norm as well, unless a branch will be entered, and the call be what that made."""
    target, parts = start.targets[0], start.value
    assert isinstance(parts, ast.BinOp)
    start.targets = [ast.Tuple([target, ast.Name(normed, ast.Store())], ast.Store())]
    start.value = _joined(call, parts)
    given: ast.expr = ast.Name(normed, ast.Load())
    if branches:
        no_norm = ast.Tuple([parts, ast.Constant(None)], ast.Load())
        first, *others = deepcopy(list(branches))
        start.value = ast.IfExp(ast.BoolOp(ast.Or(), [first, *others]) if others else first, no_norm, start.value)
        given = ast.IfExp(ast.Compare(given, [ast.Is()], [ast.Constant(None)]), deepcopy(call), given)
    Put(call, given).visit(end)


def _joined(call: ast.Call, parts: ast.BinOp) -> ast.Call:
    return ast.Call(ast.Name(JOINED, ast.Load()), [deepcopy(call.func), parts.left, parts.right], [])


def _sum_of(statement: ast.stmt) -> ast.BinOp | None:
    match statement:
        case ast.Assign(targets=[ast.Name()], value=ast.BinOp(op=ast.Add()) as parts):
            return parts
    return None


def _calls(statement: ast.stmt, norms: Collection[str]) -> Iterator[ast.Call]:
    """Calls ``self.norm(…)`` of a name or a sum, which a simple statement makes once, whatever comes."""
    for call in calls_made(statement):
        match call:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="self"), attr=attr),
                args=[ast.Name() | ast.BinOp(op=ast.Add())],
                keywords=[],
            ) if attr in norms:
                yield call


def _name(call: ast.Call) -> str:
    assert isinstance(call.func, ast.Attribute)
    return call.func.attr
