"""A forward whose sums and the norms of them are one call each, made of its own text.

``y = a + b``, with nothing behind it but other names for y and ``if``s that ask whether something was given, and then
``self.norm(y)``; or ``self.norm(a + b)``. All else stays as it is written: control flow, caches, keywords that are handed on.
Tracing by torch.fx would decide ``is None`` once for all calls, and cannot hand ``**kwargs`` on. Knows neither norms nor ops.
"""

import ast
import dis
import inspect
import textwrap
from collections.abc import Callable, Collection, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from types import FunctionType
from typing import Any

JOINED = "_kpt_sum_and_norm"
"""What the text calls: of a module and two parts, gives their sum and the module of it."""

NORMED = "_kpt_norm_"
"""What names begin with that hold the norm of a sum until the text asks for it."""


@dataclass(frozen=True, slots=True)
class Site:
    """A sum and the norm of it: ``norm``, the attribute of self; the statements from the one to the other, as they are and
    rewritten; and names that are asked for between, each with a value (None or True) by which no branch is entered."""

    norm: str
    own: tuple[ast.stmt, ...]
    rewritten: tuple[ast.stmt, ...]
    asked: tuple[tuple[str, bool | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A function and its sites in the order of its text; ``make`` takes what the rewritten text calls, and gives the function
    rewritten."""

    function: FunctionType
    sites: tuple[Site, ...]
    make: Callable[[Callable[..., Any]], FunctionType]


def rewritten(function: Any, norms: Collection[str]) -> Rewritten | None:
    """A forward with its sums that these attributes of self are norms of. None where there is none, or its text is not at hand
    or not all that it is."""
    while _is_laid_around_subclasses(function):
        function = function.__wrapped__
    tree = _text(function)
    if tree is None:
        return None
    sites: list[Site] = []
    _block(tree.body, norms, sites)
    if not sites:
        return None
    code = _compiled(tree, function)

    def make(joined: Callable[..., Any]) -> FunctionType:
        scope: dict[str, Any] = {}
        exec(code, function.__globals__, scope)
        made: FunctionType = scope["make"](joined)
        for name in ("__defaults__", "__kwdefaults__", "__annotations__", "__doc__", "__qualname__", "__module__"):
            setattr(made, name, getattr(function, name))
        return made

    return Rewritten(function, tuple(sites), make)


def _is_laid_around_subclasses(function: Any) -> bool:
    """A wrapper that a class lays around the forward of each class made of it, as Transformers' checkpointing is: it will be
    around the one that is made here as well."""
    wraps = type(function) is FunctionType and hasattr(function, "__wrapped__")
    return wraps and ".__init_subclass__.<locals>." in function.__code__.co_qualname


def _text(function: Any) -> ast.FunctionDef | None:
    """The syntax tree of a function that is what its source says: not wrapped, without names of a scope around it."""
    if type(function) is not FunctionType or hasattr(function, "__wrapped__") or function.__code__.co_freevars:
        return None
    try:
        source = textwrap.dedent(inspect.getsource(function))
        (tree,) = ast.parse(source).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    if not isinstance(tree, ast.FunctionDef) or any(_is_mangled(node) for node in ast.walk(tree)):
        return None
    ast.increment_lineno(tree, function.__code__.co_firstlineno - 1)
    tree.decorator_list = []
    tree.returns = None
    arguments = tree.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
        if argument is not None:
            argument.annotation = None
    arguments.defaults = [ast.copy_location(ast.Constant(None), d) for d in arguments.defaults]
    arguments.kw_defaults = [d and ast.copy_location(ast.Constant(None), d) for d in arguments.kw_defaults]
    again = next(c for c in _compiled(tree, function).co_consts[0].co_consts if inspect.iscode(c))
    return tree if _alike(again, function.__code__) else None


def _is_mangled(node: ast.AST) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return (name.startswith("__") and not name.endswith("__")) or isinstance(node, ast.NamedExpr)


def _compiled(tree: ast.FunctionDef, function: FunctionType) -> Any:
    """The code of a module with a function ``make`` in it, which is given what the text calls and gives the function."""
    outer = ast.parse(f"def make({JOINED}):\n    return {tree.name}")
    outer.body[0].body.insert(0, tree)  # type: ignore[attr-defined]
    ast.fix_missing_locations(outer)
    return compile(outer, function.__code__.co_filename, "exec", dont_inherit=True)


def _alike(a: Any, b: Any) -> bool:
    """Two codes, or constants of codes, do the same."""
    if not inspect.iscode(a) or not inspect.iscode(b):
        return type(a) is type(b) and bool(a == b)
    same = a.co_varnames == b.co_varnames and list(_steps(a)) == list(_steps(b))
    return same and len(a.co_consts) == len(b.co_consts) and all(map(_alike, a.co_consts, b.co_consts))


def _steps(code: Any) -> Iterator[tuple[str, Any]]:
    """What a code does, without distances, and without what is otherwise where a file imports the name that a method is of."""
    for step in dis.get_instructions(code):
        if step.opname not in ("PUSH_NULL", "EXTENDED_ARG"):
            told = step.opcode not in dis.hasjrel and step.opcode not in dis.hasjabs and not inspect.iscode(step.argval)
            yield ("LOAD_ATTR" if step.opname == "LOAD_METHOD" else step.opname), step.argval if told else None


def _block(block: list[ast.stmt], norms: Collection[str], sites: list[Site]) -> None:
    """Rewrite a block of statements, and those inside, in place."""
    for i, statement in enumerate(block):
        for inner in _blocks(statement):
            _block(inner, norms, sites)
        for call in list(_calls(statement, norms)):
            if isinstance(call.args[0], ast.BinOp):
                own = deepcopy(statement)
                _Put(call, ast.Subscript(_joined(call, call.args[0]), ast.Constant(1), ast.Load())).visit(statement)
                sites.append(Site(_name(call), (own,), (deepcopy(statement),)))
        if _sum_of(statement) is not None:
            _follow(block, i, norms, sites)


def _follow(block: list[ast.stmt], i: int, norms: Collection[str], sites: list[Site]) -> None:
    """Join the sum of a block's statement i with the norm of it, if that comes."""
    start: Any = block[i]
    names: set[str] = {start.targets[0].id}
    branches: dict[str, Any] = {}
    for j in range(i + 1, len(block)):
        statement: Any = block[j]
        call = next((c for c in _calls(statement, norms) if getattr(c.args[0], "id", None) in names), None)
        if call is not None:
            own = deepcopy(block[i : j + 1])
            _join(start, statement, call, list(branches.values()), f"{NORMED}{len(sites)}")
            asked = [(name, None if isinstance(test.ops[0], ast.IsNot) else True) for name, test in branches.items()]
            sites.append(Site(_name(call), tuple(own), tuple(deepcopy(block[i : j + 1])), tuple(asked)))
            return
        match statement:
            case ast.Assign(targets=[ast.Name(id=target)], value=ast.Name(id=source)):
                if target in branches:
                    return
                names = names | {target} if source in names else names - {target}
            case ast.If(
                test=ast.Compare(left=ast.Name(id=name), ops=[ast.Is() | ast.IsNot()], comparators=[ast.Constant(None)]),
                orelse=[],
            ) if name not in names and name not in branches:
                branches[name] = statement.test
            case _:
                return


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
    _Put(call, given).visit(end)


def _joined(call: ast.Call, parts: ast.BinOp) -> ast.Call:
    return ast.Call(ast.Name(JOINED, ast.Load()), [deepcopy(call.func), parts.left, parts.right], [])


class _Put(ast.NodeTransformer):
    """Puts another expression in the place of a call."""

    def __init__(self, call: ast.Call, by: ast.expr) -> None:
        self.call, self.by = call, by

    def visit_Call(self, node: ast.Call) -> ast.AST:
        return ast.copy_location(self.by, node) if node is self.call else self.generic_visit(node)


def _blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        for name in ("body", "orelse", "finalbody"):
            yield getattr(statement, name, [])
        for handler in getattr(statement, "handlers", []):
            yield handler.body


def _sum_of(statement: ast.stmt) -> ast.BinOp | None:
    match statement:
        case ast.Assign(targets=[ast.Name()], value=ast.BinOp(op=ast.Add()) as parts):
            return parts
    return None


_AT_TIMES = (ast.IfExp, ast.BoolOp, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
"""Expressions in which a call is not made once, whatever comes."""


def _calls(statement: ast.stmt, norms: Collection[str]) -> Iterator[ast.Call]:
    """Calls ``self.norm(…)`` of a name or a sum, which a simple statement makes once, whatever comes."""
    if not isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Expr | ast.Return):
        return
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop()
        match node:
            case _ if isinstance(node, _AT_TIMES):
                continue
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="self"), attr=attr),
                args=[ast.Name() | ast.BinOp(op=ast.Add())],
                keywords=[],
            ) if attr in norms:
                yield node
        waiting += ast.iter_child_nodes(node)


def _name(call: ast.Call) -> str:
    assert isinstance(call.func, ast.Attribute)
    return call.func.attr
