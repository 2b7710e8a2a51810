"""What dispatch knows of the user's database: its winners, read once, read-only, with the standard library alone.

Never writes, never imports SQLAlchemy, never waits for what stands in the file's place, and never raises because of it:
``read`` gives what it could read and a reason for what it could not. A row that is damaged costs that row.
"""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from autotune_db.entry import Entry
from autotune_db.winners import Winners
from kpt_dsl import files
from kpt_dsl.errors import StoreError

VERSION = 1
"""Of the tables, in ``kpt_schema``; a file with another is left alone."""

WAIT_SECONDS = 0.5
"""How long a locked file is waited for, once a process."""

_KEYS = "SELECT id, digest, kernel, device, body FROM kpt_keys ORDER BY id"
_WINNERS = "SELECT id, key_id, config, origin, microseconds, first_microseconds, {} FROM kpt_winners ORDER BY id"

COLUMNS = "SELECT name FROM pragma_table_info('kpt_winners')"
"""Those of an earlier kpt are without extents."""


@dataclass(frozen=True)
class Row:
    """A winner as stored; it is parsed when it is asked for. Nothing is known of any field's type until then."""

    digest: Any
    kernel: Any
    device: Any
    key_json: Any
    config_json: Any
    known: Any
    microseconds: Any
    first_microseconds: Any
    extents_json: Any

    @property
    def plain_key(self) -> Any:
        """The key as plain data, of which nothing is known yet; None where it is not even that."""
        try:
            return files.from_json(self.key_json)
        except (ValueError, TypeError):
            return None

    @cached_property
    def entry(self) -> Entry | None:
        """None where the row is not what this version understands, or its key is another than it is found by."""
        try:
            times = self.microseconds, self.first_microseconds
            return parsed(self.digest, self.key_json, self.config_json, self.known, *times, extents=self.extents_json)
        except StoreError:
            return None


def parsed(
    digest: Any,
    body: Any,
    config: Any,
    known: Any,
    microseconds: Any,
    first: Any,
    environment: Any = "{}",
    date: Any = "",
    extents: Any = None,
) -> Entry:
    """The entry of a row as it is stored. Raises StoreError for one that is damaged."""
    try:
        plain = [files.from_json(text) for text in (body, config, environment, "null" if extents is None else extents)]
    except (ValueError, TypeError) as error:
        raise StoreError(f"not JSON: {str(error)[:80]}") from None
    entry = Entry.of(plain[0], plain[1], known, microseconds, first, plain[2], date, plain[3])
    if entry.key.digest != digest:
        raise StoreError(f"its key is not that of its id {str(digest)[:8]!r}")
    return entry


def read(path: Path) -> tuple[Winners, str | None]:
    """The winners in a file, and why they could not be read, or not all (None: they could, or there is no file yet)."""
    try:
        if not files.is_there(path):
            return Winners(), None
        with contextlib.closing(_open(path)) as connection:
            found = connection.execute("SELECT version FROM kpt_schema").fetchone()
            if not found or found[0] != VERSION:
                theirs = str(found[0])[:80] if found else "none"
                return Winners(), f"it has schema {theirs}, this kpt reads schema {VERSION}"
            keys, lost = salvaged(lambda order: connection.execute(_KEYS + order), sqlite3.Error)
            query = _WINNERS.format("extents" if ("extents",) in connection.execute(COLUMNS).fetchall() else "NULL")
            winners, also_lost = salvaged(lambda order: connection.execute(query + order), sqlite3.Error)
    except (sqlite3.Error, OSError, ValueError, RuntimeError) as error:
        return Winners(), getattr(error, "strerror", None) or str(error) or type(error).__name__
    of_key = {number: row for number, *row in keys}
    rows = (Row(*of_key[of], *rest) for _, of, *rest in winners if of in of_key)
    return Winners(rows), lost or also_lost


def salvaged(scan: Callable[[str], Iterable[Sequence[Any]]], *errors: type[Exception]) -> tuple[list[Any], str | None]:
    """The rows of a table by their number, which comes first in each, and why some are missing.

    ``scan`` takes what stands after ORDER BY: a page that cannot be read is come upon from both ends.
    """
    found: dict[int, Sequence[Any]] = {}
    trouble = None
    for order in ("", " DESC"):
        try:
            for row in scan(order):
                if isinstance(row[0], int):
                    found[row[0]] = row
        except errors as error:
            trouble = trouble or str(getattr(error, "orig", None) or error)
        else:
            break
    return [found[number] for number in sorted(found)], trouble


def uri(path: Path) -> str:
    """For SQLite, to read a file. Raises OSError where it, or a file that belongs to it, is none: opening a pipe waits.

    A WAL database in a folder that cannot be written has no place for its index: it is then read as it lies.
    """
    log, *others = (Path(f"{path}{end}") for end in ("-wal", "-shm", "-journal"))
    for other in others:
        files.is_there(other)
    logged = files.is_there(log) and log.stat().st_size
    as_it_lies = not os.access(path.parent, os.W_OK) and not logged
    return f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if as_it_lies else ''}"


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(uri(path), uri=True, timeout=WAIT_SECONDS)
    connection.text_factory = lossy
    return connection


def lossy(text: bytes) -> str:
    """Text of a row, also of one that is damaged: it must not cost the rows after it."""
    return text.decode(errors="replace")
