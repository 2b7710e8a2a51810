"""The source text of a kernel or helper function: its syntax tree, places in it, errors that point at them.

Knows nothing of the IR beyond ``Loc``.
"""

import ast
import inspect
import linecache
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from kpt_dsl.errors import KernelError
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
        stored = {n.id for n in ast.walk(self.tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        return frozenset(stored | {n.arg for n in ast.walk(self.tree.args) if isinstance(n, ast.arg)})


def read(fn: Callable[..., Any]) -> Source:
    """The source of a Python function. Raises KernelError where there is none (an interactive prompt, exec)."""
    file = inspect.getsourcefile(fn) or "<unknown>"
    linecache.checkcache(file)
    try:
        lines, first = inspect.getsourcelines(fn)
    except (OSError, TypeError) as error:
        raise KernelError(
            f"the source of {fn.__qualname__} cannot be read ({error}); kernels must be written in a file or a notebook cell"
        ) from None
    raw = "".join(lines)
    text = textwrap.dedent(raw)
    indent = len(lines[0]) - len(lines[0].lstrip())
    tree = ast.parse(text).body[0]
    if not isinstance(tree, ast.FunctionDef):
        raise KernelError(f"{file}:{first}: a kernel is a plain function written with def, not {type(tree).__name__}")
    return Source(fn, file, first, indent, text, tree)


def fail(loc: Loc, message: str, remedy: str = "") -> NoReturn:
    """Raise KernelError with file, line, the line's text, a caret under the culprit, and what to write instead."""
    number = str(loc.line)
    caret = " " * loc.column + "^" * max(1, loc.end_column - loc.column)
    shown = [
        f"{Path(loc.file).name}:{number}: {message}",
        f"  {number} | {loc.text}",
        f"  {' ' * len(number)} | {caret}",
    ]
    if remedy:
        shown.append(f"  {remedy}")
    raise KernelError("\n".join(shown))
