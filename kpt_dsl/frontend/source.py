"""The source text of a kernel or helper function: its syntax tree, places in it, errors that point at them.

Knows nothing of the IR beyond ``Loc``.
"""

import ast
import inspect
import linecache
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FunctionType
from typing import Any, NoReturn

from kpt_dsl.errors import KernelError, KptError
from kpt_dsl.ir import Loc


@dataclass(frozen=True)
class Source:
    """A function's text: where it stands, its tree (columns and lines relative to ``text``) and which names are its own."""

    fn: Callable[..., Any]
    file: str
    first_line: int
    indent: int
    text: str
    tree: ast.FunctionDef

    def loc(self, node: ast.AST) -> Loc:
        """The place of a syntax node in the file."""
        line = getattr(node, "lineno", 1)
        column = getattr(node, "col_offset", 0)
        same_line = getattr(node, "end_lineno", line) == line
        lines = self.text.splitlines()
        text = lines[line - 1] if line <= len(lines) else ""
        end = getattr(node, "end_col_offset", column + 1) if same_line else len(text)
        return Loc(self.file, self.first_line + line - 1, column, end, text)

    @cached_property
    def own(self) -> frozenset[str]:
        """The names that are the function's own, everywhere in it, as in Python: its parameters and what it assigns."""
        return self.assigned | {n.arg for n in ast.walk(self.tree.args) if isinstance(n, ast.arg)}

    @cached_property
    def assigned(self) -> frozenset[str]:
        """The names that are assigned in it."""
        return frozenset(n.id for n in ast.walk(self.tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))


def read(fn: Any, decorator: str) -> Source:
    """The source of a Python function. Raises KernelError for anything else, and where there is none (a prompt, exec)."""
    if fn is None:
        raise KernelError(f"{decorator} is written with parentheses or given nothing; it stands alone above a function")
    if not isinstance(fn, FunctionType) or hasattr(fn, "__wrapped__"):
        kind = "the class" if isinstance(fn, type) else f"a {type(fn).__name__},"
        what = "what another decorator made of" if isinstance(fn, FunctionType) else kind
        name = getattr(fn, "__qualname__", repr(fn))
        raise KernelError(f"{place(fn)}{decorator} was given {what} {name}; it stands directly above a function's def")
    file = inspect.getsourcefile(fn) or fn.__code__.co_filename
    linecache.checkcache(file)
    try:
        lines, first = inspect.getsourcelines(fn)
    except (OSError, TypeError) as error:
        raise KernelError(
            f"the source of {fn.__qualname__} cannot be read ({error}); kernels must be written in a file or a notebook cell"
        ) from None
    indent = len(lines[0]) - len(lines[0].lstrip())
    text = "".join(line if line[:indent].strip() else line[indent:] or "\n" for line in lines)
    try:
        tree = ast.parse(text).body[0]
    except SyntaxError:  # a lambda somewhere in a statement
        tree = None
    if not isinstance(tree, ast.FunctionDef):
        kind = "an async function" if isinstance(tree, ast.AsyncFunctionDef) else "a lambda"
        raise KernelError(f"{place(fn)}{decorator} takes a plain function written with def, not {kind}")
    if tree.name != fn.__name__:
        raise KernelError(
            f"{place(fn)}here stands {tree.name}, not {fn.__name__}: the file has changed since it was imported"
        )
    return Source(fn, file, first, indent, text, tree)


def place(fn: Any) -> str:
    """Where a function's text stands, to begin a message with; "" of what has none."""
    code = getattr(inspect.unwrap(fn) if callable(fn) else fn, "__code__", None)
    return "" if code is None else f"{Path(code.co_filename).name}:{code.co_firstlineno}: "


def fail(loc: Loc, message: str, remedy: str = "", error: type[KptError] = KernelError) -> NoReturn:
    """Raise an error with file, line, the line's text, a caret under the culprit, and what to write instead."""
    raise error(loc.explain(message, remedy))
