"""The source text of a kernel or helper function: its syntax tree, places in it, errors that point at them, its hash.

Knows nothing of the IR beyond ``Loc``.
"""

import ast
import hashlib
import inspect
import linecache
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NoReturn

from kpt_dsl.errors import KernelError
from kpt_dsl.ir import Loc


@dataclass(frozen=True)
class Source:
    """A function's text: where it stands, its tree (columns and lines relative to ``text``) and how to resolve its names."""

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

    def resolve(self, name: str) -> Any:
        """The Python value of a name that is not local to the function; raises KeyError."""
        closure = inspect.getclosurevars(self.fn)
        for scope in (closure.nonlocals, closure.globals, closure.builtins):
            if name in scope:
                return scope[name]
        return self.fn.__globals__[name]


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
    raise KernelError(loc.explain(message, remedy))


def fingerprint(source: Source, inline: Callable[[Any], Source | None]) -> str:
    """A hash of everything that a function's text means: its tree without layout or comments, the helpers it inlines
    (``inline`` gives a helper's source) and the values of the constants that it names."""
    parts: list[str] = []
    seen: set[Callable[..., Any]] = set()

    def add(one: Source) -> None:
        if one.fn in seen:
            return
        seen.add(one.fn)
        body = one.tree.body[1:] if ast.get_docstring(one.tree) else one.tree.body
        parts.extend([ast.dump(one.tree.args), *(ast.dump(d) for d in one.tree.decorator_list), *map(ast.dump, body)])
        names = {ast.unparse(n) for n in ast.walk(one.tree) if isinstance(n, ast.Name | ast.Attribute)}
        for name in sorted(names):
            root, *path = name.split(".")
            try:
                value = one.resolve(root)
                for attribute in path:
                    value = getattr(value, attribute)
            except (KeyError, AttributeError):
                continue
            helper = inline(value)
            if helper is not None:
                add(helper)
            elif not isinstance(value, ModuleType) and not callable(value):
                parts.append(f"{name}={value!r}")

    add(source)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
