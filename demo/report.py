"""The report: one HTML page that needs nothing beside itself. Knows records and text, not how they were found."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer


@dataclass(frozen=True)
class Table:
    """Column heads and rows of text. Columns named in ``numbers`` are set right-aligned."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[str] = frozenset()

    def html(self) -> str:
        def row(cells: Sequence[str], tag: str) -> str:
            kinds = [' class="number"' if head in self.numbers else "" for head in self.heads]
            return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

        body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in self.rows)
        return f'<div class="wide"><table><tr>{row(self.heads, "th")}</tr>{body}</table></div>'


@dataclass(frozen=True)
class Code:
    """Python source under a title; all but the first of a row start folded."""

    title: str
    text: str
    opened: bool = False

    def html(self) -> str:
        lines = len(self.text.splitlines())
        source = highlight(self.text, PythonLexer(), HtmlFormatter(nowrap=True))
        summary = f"<summary>{escape(self.title)} <small>{lines} lines</small></summary>"
        return f"<details{' open' if self.opened else ''}>{summary}<pre>{source}</pre></details>"


@dataclass(frozen=True)
class Plot:
    """SVG text, and what it shows."""

    svg: str
    caption: str

    def html(self) -> str:
        return f"<figure>{self.svg}<figcaption>{escape(self.caption)}</figcaption></figure>"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str

    def html(self) -> str:
        return f"<p>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    parts: tuple[Table | Code | Plot | Text, ...]

    def html(self) -> str:
        return f"<section><h2>{escape(self.title)}</h2>{''.join(part.html() for part in self.parts)}</section>"


STYLE = """
:root { --ink: #1c2025; --quiet: #667080; --line: #dfe3e8; --paper: #fff; --tint: #f6f7f9; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.5rem 5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; }
header p, small, figcaption { color: var(--quiet); } header p { margin: .2rem 0 0; }
p { max-width: 46rem; } figure { margin: 1rem 0; } figcaption { font-size: .85rem; max-width: 46rem; }
svg { max-width: 100%; height: auto; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; margin: 1rem 0; }
th, td { text-align: left; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--quiet); font-weight: 600; } .number { text-align: right; font-variant-numeric: tabular-nums; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .6rem 0; }
summary { padding: .5rem .8rem; cursor: pointer; }
pre { margin: 0; padding: .8rem; background: var(--tint); overflow-x: auto; font: .78rem/1.5 ui-monospace, monospace; }
"""


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    colours = HtmlFormatter(style="friendly").get_style_defs("pre")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{colours}{STYLE}</style></head><body>'
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>"
        f"{''.join(section.html() for section in sections)}</body></html>\n"
    )
