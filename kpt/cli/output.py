"""What commands print: tables for people, JSON for scripts."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from autotune_db.entry import Entry
from autotune_db.result import Result

PIPE_WIDTH = 250
"""Of a table that no terminal shows, in characters: whole lines for what reads them."""


def as_json(data: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(data, indent=1))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[str] = ()) -> None:
    """A table on standard output; columns named in ``numbers`` are set to the right. Wide cells wrap, none is cut."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        shown.add_row(*("" if cell is None else str(cell) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False, markup=False)
    with console.capture() as drawn:
        console.print(shown)
    for line in drawn.get().splitlines():
        print(line.rstrip())


def microseconds(value: float | None) -> str:
    """For people: three digits or so."""
    return "" if value is None else f"{value:.4g}"


def extents(entry: Entry) -> str:
    """For people, of the extents that a key leaves open those that its entry was found out at, if they are known."""
    spans = dict(entry.key.shape)
    return " ".join(f"{dim}={extent}" for dim, extent in entry.extents if spans[dim].low < spans[dim].high)


def entry_dict(entry: Entry) -> dict[str, Any]:
    """An entry as JSON data."""
    return {
        "id": entry.key.digest,
        "key": entry.key.to_dict(),
        "config": dict(entry.config),
        "origin": entry.origin,
        "imported": entry.imported,
        "microseconds": entry.microseconds,
        "first_microseconds": entry.first_microseconds,
        "extents": dict(entry.extents) or None,
        "environment": dict(entry.environment),
        "date": entry.date,
    }


def result_dict(result: Result) -> dict[str, Any]:
    """A tuning as JSON data."""
    outcomes = [trial.outcome for trial in result.trials]
    return {
        "id": result.key.digest,
        "key": result.key.to_dict(),
        "provenance": result.origin,
        "config": dict(result.config),
        "microseconds": result.microseconds,
        "first_config": dict(result.first),
        "first_microseconds": result.first_microseconds,
        "speedup": result.speedup,
        "trials": {outcome: outcomes.count(outcome) for outcome in dict.fromkeys(outcomes)},
        "held": result.held,
        "seconds": round(result.seconds, 2),
        "interrupted": result.interrupted,
        "unsaved": result.unsaved or None,
    }
