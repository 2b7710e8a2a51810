"""The table of what is replaced: a JSON file, a line a model."""

import json
from pathlib import Path

from tests.replacement.judge import Row

FILE = Path(__file__).with_name("table.json")


def read() -> dict[str, Row]:
    """Rows by the names of models."""
    rows: dict[str, Row] = json.loads(FILE.read_text())
    return rows


def write(rows: dict[str, Row]) -> None:
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(rows.items()))
    FILE.write_text(f"{{\n{lines}\n}}\n")
