"""Writing generated source: indentation, and the kernel author's line as a comment beside each statement.

Shared by all emitters; knows no backend and no IR but ``Loc``.
"""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

from kpt_dsl.ir import Loc

WIDTH = 120
"""Longest line, in columns, that a comment may make."""

MARGIN = "    "

COMMENT_COLUMN = 60
"""Comments line up here where the statement leaves room."""


def in_docstring(text: str) -> str:
    """Text from outside (a file's name, a config) as it may stand in a docstring: one line, which nothing in it ends."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text.replace("\\", "\\\\"))
    return shown.replace('"', '\\"')


class Writer:
    """Collects lines at the current indentation, ``depth`` levels deep.

    A line given with a ``loc`` carries the author's text as a comment: beside it where that fits, above it otherwise, and
    once only for a run of lines that came from the same place.
    """

    def __init__(self, depth: int = 0) -> None:
        self.depth = depth
        self._lines: list[tuple[int, str]] = []
        self._last: Loc | None = None

    def line(self, text: str = "", loc: Loc | None = None) -> None:
        """Append one line (or several, separated by newlines; the comment goes to the first)."""
        first, *rest = text.split("\n")
        margin = len(MARGIN) * self.depth
        comment = self._comment(loc)
        beside = f"{first:<{max(COMMENT_COLUMN - margin - 2, 0)}}  # {comment}"
        if not comment:
            self._add(first)
        elif margin + len(beside) <= WIDTH:
            self._add(beside)
        else:
            self._add(f"# {comment}")
            self._add(first)
        for more in rest:
            self._add(more)

    def _add(self, line: str) -> None:
        self._lines.append((self.depth, line))

    def call(
        self, head: str, arguments: list[str], loc: Loc | None = None, tail: str = ")", packed: bool = False
    ) -> None:
        """Append a call that begins with ``head``, bracket included: on one line, or where that is too long one argument a
        line (``packed``: as many as fit)."""
        one = f"{head}{', '.join(arguments)}{tail}"
        if len(MARGIN * self.depth + one) <= WIDTH:
            self.line(one, loc)
            return
        room = WIDTH - len(MARGIN) * (self.depth + 1)
        inside = textwrap.wrap(", ".join(arguments) + ",", room) if packed else [f"{a}," for a in arguments]
        self.line("\n".join([head, *(MARGIN + line for line in inside), tail]), loc)

    def _comment(self, loc: Loc | None) -> str:
        if loc is None or not loc.text.strip():
            return ""
        if self._last is not None and (loc.file, loc.line) == (self._last.file, self._last.line):
            return ""
        self._last = loc
        return " ".join(loc.text.split())

    def paste(self, other: "Writer") -> None:
        """Append all lines of another writer, which keeps its own depth."""
        self._lines += other._lines

    @contextmanager
    def block(self, header: str, loc: Loc | None = None) -> Iterator[None]:
        """Lines written inside are indented under ``header``; where there are none, a header of Python's gets its ``pass``."""
        self.line(header, loc)
        above = len(self._lines)
        with self.indented():
            yield
            if header.endswith(":") and len(self._lines) == above:
                self.line("pass")

    @contextmanager
    def indented(self) -> Iterator[None]:
        """Lines written inside stand one level deeper."""
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def text(self) -> str:
        """All that was written, ending in one newline."""
        return "\n".join((MARGIN * depth + line).rstrip() for depth, line in self._lines).rstrip("\n") + "\n"
