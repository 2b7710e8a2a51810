"""What dispatch knows of the user's database: its winners, read once, read-only, with the standard library alone.

Never writes, never imports SQLAlchemy, and never raises because of the file: ``read`` gives what it could read and a reason
for what it could not.
"""

import contextlib
import json
import os
import sqlite3
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from autotune_db.entry import ORIGINS, Entry
from autotune_db.key import Key
from autotune_db.winners import Winners
from kpt_dsl.errors import KptError
from kpt_dsl.space import Config

VERSION = 1
"""Of the tables, in ``kpt_schema``; a file with another is left alone."""

WAIT_SECONDS = 0.5
"""How long a locked file is waited for, once a process."""

_WINNERS = """
SELECT k.digest, k.kernel, k.device, k.body, w.config, w.origin, w.microseconds, w.first_microseconds
FROM kpt_winners w JOIN kpt_keys k ON k.id = w.key_id ORDER BY w.id
"""


@dataclass(frozen=True)
class Row:
    """A winner as stored; it is parsed when it is asked for."""

    digest: str
    kernel: str
    device: str
    key_json: str
    config_json: str
    origin: str
    microseconds: float | None
    first_microseconds: float | None

    @cached_property
    def entry(self) -> Entry | None:
        """None where the row is not what this version understands."""
        if self.origin not in ORIGINS:
            return None
        try:
            key = Key.from_dict(json.loads(self.key_json))
            config = Config.from_json(self.config_json)
        except (KptError, ValueError, TypeError):
            return None
        return Entry(key, config, self.origin, self.microseconds, self.first_microseconds)


def read(path: Path) -> tuple[Winners, str | None]:
    """The winners in a file, and why they could not be read (None: they could, or there is no file yet)."""
    try:
        if not path.exists():
            return Winners(), None
        with contextlib.closing(_open(path)) as connection:
            found = connection.execute("SELECT version FROM kpt_schema").fetchone()
            if not found or found[0] != VERSION:
                return Winners(), f"it has schema {found[0] if found else 'none'}, this kpt reads schema {VERSION}"
            return Winners(Row(*fields) for fields in connection.execute(_WINNERS)), None
    except (sqlite3.Error, OSError, ValueError) as error:
        return Winners(), str(error) or type(error).__name__


def _open(path: Path) -> sqlite3.Connection:
    """Read-only. A WAL database in a folder that cannot be written has no place for its index: it is then read as it lies."""
    log = Path(f"{path}-wal")
    as_it_lies = not os.access(path.parent, os.W_OK) and not (log.exists() and log.stat().st_size)
    uri = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if as_it_lies else ''}"
    return sqlite3.connect(uri, uri=True, timeout=WAIT_SECONDS)
