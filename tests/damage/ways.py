"""What can become of a config database: a table of ways, each of which damages the file at a path.

A way gives how many of the ``ROWS`` entries must still be readable; 0 where all may be lost.
"""

import os
import random
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path

ROWS = 12
"""Entries of a database before it is damaged, each of a key of its own."""

Way = Callable[[Path, random.Random], int]


def _write(change: Callable[[bytearray, random.Random], bytes | bytearray]) -> Way:
    def way(path: Path, chance: random.Random) -> int:
        path.write_bytes(change(bytearray(path.read_bytes()), chance))
        return 0

    return way


def _flipped(content: bytearray, chance: random.Random) -> bytearray:
    for _ in range(chance.choice((1, 10, 300))):
        content[chance.randrange(len(content))] ^= chance.randrange(1, 256)
    return content


def _header_flipped(content: bytearray, chance: random.Random) -> bytearray:
    content[chance.randrange(100)] ^= chance.randrange(1, 256)
    return content


def _page(fill: Callable[[random.Random], bytes]) -> Callable[[bytearray, random.Random], bytearray]:
    def change(content: bytearray, chance: random.Random) -> bytearray:
        start = 4096 * chance.randrange(len(content) // 4096)
        content[start : start + 4096] = fill(chance)
        return content

    return change


def _swapped(content: bytearray, chance: random.Random) -> bytearray:
    one, other = (4096 * chance.randrange(len(content) // 4096) for _ in range(2))
    content[one : one + 4096], content[other : other + 4096] = content[other : other + 4096], content[one : one + 4096]
    return content


def _instead(put: Callable[[Path], object]) -> Way:
    def way(path: Path, chance: random.Random) -> int:
        path.unlink()
        put(path)
        return 0

    return way


def _socket(path: Path) -> None:
    if len(str(path)) < 100:  # a longer name a socket cannot have
        socket.socket(socket.AF_UNIX).bind(str(path))


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def _beside(end: str, put: Callable[[Path], object]) -> Way:
    def way(path: Path, chance: random.Random) -> int:
        beside = Path(f"{path}{end}")
        beside.unlink(missing_ok=True)
        put(beside)
        return 0

    return way


def _log_cut(path: Path, chance: random.Random) -> int:
    """A database whose last rows are in its log only, and a log that is cut off or altered."""
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA wal_autocheckpoint = 0")
    writer.execute("UPDATE kpt_winners SET microseconds = microseconds + 1")
    writer.commit()
    log = Path(f"{path}-wal")
    content = bytearray(log.read_bytes())
    writer.close()
    content = content[: chance.randrange(len(content))] if chance.random() < 0.5 else _flipped(content, chance)
    log.write_bytes(content)
    return 0


def _sql(*statements: str, rows: int = 0) -> Way:
    def way(path: Path, chance: random.Random) -> int:
        connection = sqlite3.connect(path, isolation_level=None)
        for statement in statements:
            connection.execute(statement)
        connection.close()
        return rows

    return way


def _row(table: str, column: str, value: object) -> Way:
    """One row has a value that no kpt wrote. All others must come through."""

    def way(path: Path, chance: random.Random) -> int:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA ignore_check_constraints = ON")
        number = chance.randrange(1, ROWS + 1)
        text = f"CAST(x'{value.hex()}' AS TEXT)" if isinstance(value, bytes) else "?"
        given = () if isinstance(value, bytes) else (value,)
        connection.execute(f"UPDATE OR REPLACE {table} SET {column} = {text} WHERE id = {number}", given)
        connection.close()
        return ROWS - 1

    return way


DEEP = "[" * 100_000
_OBJECT = '{"a":' * 50_000

_VALUES: tuple[object, ...] = (
    "", "{", "null", "[]", "3", '"x"', "{}", DEEP, _OBJECT, b"\xff\xfe\x80", "NaN", "1e999", "9" * 4000, "x" * 5_000_000,
    '{"block_M": 1.5}', '{"block_M": [1]}', '{"block_M": {"a": 1}}', "\x1b[31m\x00", "imported imported measured", -1,
    float("inf"), 2**62, '{"shape": {"M": "5..2"}}', '["\\ud800"]',
)  # fmt: skip

_COLUMNS = {
    "kpt_keys": ("digest", "kernel", "device", "body"),
    "kpt_winners": ("config", "origin", "microseconds", "first_microseconds", "extents"),
    "kpt_runs": ("origin", "environment", "date"),
    "kpt_trials": ("config", "outcome", "microseconds", "detail", "date"),
}

BYTES: dict[str, Way] = {
    "cut off": _write(lambda content, chance: content[: chance.randrange(len(content))]),
    "cut off in the header": _write(lambda content, chance: content[: chance.randrange(101)]),
    "bytes flipped": _write(_flipped),
    "header flipped": _write(_header_flipped),
    "a page of noise": _write(_page(lambda chance: chance.randbytes(4096))),
    "a page of zeros": _write(_page(lambda chance: bytes(4096))),
    "pages swapped": _write(_swapped),
    "more after the end": _write(lambda content, chance: content + chance.randbytes(5000)),
    "a log that is cut off or altered": _log_cut,
}
"""Ways that differ with chance: to be tried again and again."""

ONCE: dict[str, Way] = {
    "empty": _write(lambda content, chance: b""),
    "noise": _write(lambda content, chance: chance.randbytes(len(content))),
    "a text": _write(lambda content, chance: b"This is no database.\n" * 500),
    "JSON": _write(lambda content, chance: b'{"format": "kpt configs 1", "kernels": []}'),
    "deep JSON": _write(lambda content, chance: DEEP.encode()),
    "a pipe": _instead(os.mkfifo),
    "a folder": _instead(Path.mkdir),
    "a socket": _instead(_socket),
    "a device": _instead(lambda path: path.symlink_to("/dev/zero")),
    "a terminal": _instead(lambda path: path.symlink_to("/dev/tty")),
    "a link to itself": _instead(lambda path: path.symlink_to(path)),
    "a link to nothing": _instead(lambda path: path.symlink_to("/nonexistent/configs.sqlite")),
    "a link to a folder": _instead(lambda path: path.symlink_to(path.parent)),
    "a terabyte of nothing": _instead(_huge),
    "not to be read": lambda path, chance: path.chmod(0) or 0,
    "a folder that is a file": lambda path, chance: _folder_is_a_file(path),
    **{
        f"{kind} for its {end}": _beside(end, put)
        for end in ("-wal", "-shm", "-journal")
        for kind, put in {
            "a pipe": os.mkfifo,
            "a folder": Path.mkdir,
            "noise": lambda path: path.write_bytes(os.urandom(9000)),
            "a device": lambda path: path.symlink_to("/dev/zero"),
        }.items()
    },
    "foreign": _sql(
        *(f"DROP TABLE kpt_{t}" for t in ("trials", "winners", "runs", "keys", "schema")), "CREATE TABLE x (y)"
    ),
    "newer": _sql("UPDATE kpt_schema SET version = 2"),
    "of no version": _sql("DELETE FROM kpt_schema"),
    "a version in words": _sql("UPDATE kpt_schema SET version = 'one'"),
    "a version of bytes": _sql("UPDATE kpt_schema SET version = x'00ff'"),
    "a version without end": _sql(f"UPDATE kpt_schema SET version = '{'9' * 100_000}'"),
    **{f"without {t}": _sql(f"DROP TABLE kpt_{t}") for t in ("trials", "winners", "runs", "keys", "schema")},
    **{
        f"{t} without {c.removeprefix('kpt_')}": _sql(f"ALTER TABLE {t} RENAME COLUMN {c} TO other")
        for t, columns in _COLUMNS.items()
        for c in columns
    },
    "winners that are a view": _sql("DROP TABLE kpt_winners", "CREATE VIEW kpt_winners AS SELECT 1 AS id"),
    "keys numbered in words": _sql(
        "CREATE TABLE other AS SELECT 'k' || id AS id, digest, kernel, device, body FROM kpt_keys",
        "DROP TABLE kpt_keys",
        "ALTER TABLE other RENAME TO kpt_keys",
    ),
    "winners that refer to nothing": _sql(
        "UPDATE kpt_winners SET key_id = 999, run_id = 999 WHERE id = 3", rows=ROWS - 1
    ),
    "winners of other keys": _sql("UPDATE kpt_winners SET key_id = 13 - key_id", rows=0),
    **{
        f"{table}.{column} = {str(value)[:12]!r} ({number})": _row(table, column, value)
        for table, columns in _COLUMNS.items()
        for column in columns
        for number, value in enumerate(_VALUES)
    },
}
"""Ways that are the same each time."""


def _folder_is_a_file(path: Path) -> int:
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    path.parent.write_text("")
    return 0
