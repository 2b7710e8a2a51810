"""Writing generated source: indentation, and the kernel author's line as a comment beside each statement.

Shared by all emitters; knows no backend and no IR but ``Loc``.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from kpt_dsl.ir import Loc

WIDTH = 120
"""Longest line, in columns, that a comment may make."""

COMMENT_COLUMN = 60
"""Comments line up here where the statement leaves room."""


class Writer:
    """Collects lines at the current indentation.

    A line given with a ``loc`` carries the author's text as a comment: beside it where that fits, above it otherwise, and
    once only for a run of lines that came from the same place.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._depth = 0
        self._last: Loc | None = None

    def line(self, text: str = "", loc: Loc | None = None) -> None:
        """Append one line (or several, separated by newlines; the comment goes to the first)."""
        first, *rest = text.split("\n")
        margin = "    " * self._depth
        comment = self._comment(loc)
        beside = f"{margin + first:<{COMMENT_COLUMN - 2}}  # {comment}"
        if not comment:
            self._lines.append((margin + first).rstrip())
        elif len(beside) <= WIDTH:
            self._lines.append(beside)
        else:
            self._lines += [f"{margin}# {comment}", margin + first]
        self._lines += [(margin + more).rstrip() for more in rest]

    def _comment(self, loc: Loc | None) -> str:
        if loc is None or not loc.text.strip():
            return ""
        if self._last is not None and (loc.file, loc.line) == (self._last.file, self._last.line):
            return ""
        self._last = loc
        return " ".join(loc.text.split())

    @contextmanager
    def block(self, header: str, loc: Loc | None = None) -> Iterator[None]:
        """Lines written inside are indented under ``header``."""
        self.line(header, loc)
        with self.indented():
            yield

    @contextmanager
    def indented(self) -> Iterator[None]:
        """Lines written inside stand one level deeper."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def text(self) -> str:
        """All that was written, ending in one newline."""
        return "\n".join(self._lines).rstrip("\n") + "\n"
