"""The text of a function, and the function that it is after it was rewritten."""

import ast
import dis
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any


@dataclass(frozen=True, slots=True)
class Text:
    """A function that is what its source says, and the syntax tree of that, to be rewritten in place."""

    function: FunctionType
    tree: ast.FunctionDef

    def made(self, names: Mapping[str, Callable[..., Any]]) -> FunctionType:
        """The function of this text as it is now, in which these names mean what they are given."""
        scope: dict[str, Any] = {}
        exec(_compiled(self.tree, self.function, names), self.function.__globals__, scope)
        made: FunctionType = scope["make"](**names)
        for name in ("__defaults__", "__kwdefaults__", "__annotations__", "__doc__", "__qualname__", "__module__"):
            setattr(made, name, getattr(self.function, name))
        return made


def text_of(function: Any) -> Text | None:
    """None where the text is not at hand or not all that runs: a wrapped function, one with names of a scope around it."""
    while _is_laid_around_subclasses(function):
        function = function.__wrapped__
    if type(function) is not FunctionType or hasattr(function, "__wrapped__") or function.__code__.co_freevars:
        return None
    try:
        source = inspect.getsource(function)
        inside = source[0].isspace()  # of a class; not dedented, since that would change strings of several lines
        (tree,) = ast.parse(f"class _:\n{source}").body[0].body if inside else ast.parse(source).body  # type: ignore[attr-defined]
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    if not isinstance(tree, ast.FunctionDef) or any(_is_mangled(node) for node in ast.walk(tree)):
        return None
    ast.increment_lineno(tree, function.__code__.co_firstlineno - 1 - inside)
    tree.decorator_list = []
    tree.returns = None
    arguments = tree.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
        if argument is not None:
            argument.annotation = None
    arguments.defaults = [ast.copy_location(ast.Constant(None), d) for d in arguments.defaults]
    arguments.kw_defaults = [d and ast.copy_location(ast.Constant(None), d) for d in arguments.kw_defaults]
    again = next(c for c in _compiled(tree, function, {}).co_consts[0].co_consts if inspect.iscode(c))
    return Text(function, tree) if _alike(again, function.__code__) else None


def blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The blocks of statements inside a statement, but for those of functions and classes."""
    if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        for name in ("body", "orelse", "finalbody"):
            yield getattr(statement, name, [])
        for handler in getattr(statement, "handlers", []):
            yield handler.body


def is_simple(statement: ast.stmt) -> bool:
    """Whether a statement evaluates its expressions once, and has no block."""
    return isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr, ast.Return))


_AT_TIMES = (ast.IfExp, ast.BoolOp, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
"""Expressions in which a call is not made once, whatever comes."""


def calls_made(statement: ast.stmt) -> Iterator[ast.Call]:
    """Those that a simple statement makes once, whatever comes."""
    waiting: list[ast.AST] = [statement] if is_simple(statement) else []
    while waiting:
        node = waiting.pop()
        if not isinstance(node, _AT_TIMES):
            if isinstance(node, ast.Call):
                yield node
            waiting += ast.iter_child_nodes(node)


class Put(ast.NodeTransformer):
    """Puts another expression in the place of a call."""

    def __init__(self, call: ast.Call, by: ast.expr) -> None:
        self.call, self.by = call, by

    def visit_Call(self, node: ast.Call) -> ast.AST:
        return ast.copy_location(self.by, node) if node is self.call else self.generic_visit(node)


def _is_laid_around_subclasses(function: Any) -> bool:
    """A wrapper that a class lays around the forward of each class made of it, as Transformers' checkpointing is: it will be
    around the one that is made here as well."""
    wraps = type(function) is FunctionType and hasattr(function, "__wrapped__")
    return wraps and ".__init_subclass__.<locals>." in function.__code__.co_qualname


def _is_mangled(node: ast.AST) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return (name.startswith("__") and not name.endswith("__")) or isinstance(node, ast.NamedExpr)


def _compiled(tree: ast.FunctionDef, function: FunctionType, names: Mapping[str, Any]) -> Any:
    """The code of a module with a function ``make`` in it, which is given what names mean and gives the function."""
    outer = ast.parse(f"def make({', '.join(names)}):\n    return {tree.name}")
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
