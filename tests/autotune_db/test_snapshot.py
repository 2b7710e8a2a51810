"""What dispatch reads: nothing that is wrong with the file raises, and each trouble is told."""

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune_db import snapshot
from autotune_db.key import Key
from autotune_db.sibling import likeness
from autotune_db.store import Store
from autotune_db.winners import Winners
from kpt_dsl.space import Config
from tests.autotune_db.entries import add, entry, key, of_an_earlier_kpt, stored
from tests.autotune_db.instances import softmax


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "WAIT_SECONDS", 0.05)


def relatives(winners: Winners, wanted: Key) -> list[Key | None]:
    """The keys of the winners among which one whose N is exact finds siblings."""
    exact = frozenset({"N"})
    found = winners.relatives(wanted.kernel, likeness(wanted.to_dict(), exact).family, exact)
    return [item.entry.key if item.entry else None for _, item in found]


def test_winners_are_read_and_the_latest_stands(database: Path) -> None:
    stored(entry(), entry(softmax(N=8)), entry(config=Config(block_M=1, num_warps=1)), entry(origin="predicted"))
    winners, trouble = snapshot.read(database)
    assert trouble is None
    assert len(winners) == 3
    found = winners.get(key().digest, "measured")
    assert found is not None
    assert found.config == Config(block_M=1, num_warps=1)
    assert found.key == key()
    assert found.microseconds == 12.5
    assert found.extents == (("M", 4096), ("N", 1024))
    assert winners.get(key(device="other").digest, "measured") is None
    assert relatives(winners, key()) == [key(), key()]
    assert relatives(winners, key(softmax(N=8))) == [key(softmax(N=8))]
    assert set(winners.devices(key().kernel)) == {"NVIDIA H200"}


def test_winners_of_an_earlier_kpt_are_read(database: Path) -> None:
    stored(entry())
    of_an_earlier_kpt(database)
    winners, trouble = snapshot.read(database)
    found = winners.get(key().digest, "measured")
    assert trouble is None
    assert found is not None
    assert (found.microseconds, found.extents) == (12.5, ())


def test_winners_of_a_writer_at_work_are_read(database: Path) -> None:
    """In WAL mode neither waits for the other: an open transaction does not show, what is committed does."""
    with Store() as store:
        add(store, entry())
        writer = sqlite3.connect(database, isolation_level=None)
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("DELETE FROM kpt_winners")
        assert len(snapshot.read(database)[0]) == 1
        writer.execute("ROLLBACK")


def test_no_file_is_no_trouble(tmp_path: Path) -> None:
    winners, trouble = snapshot.read(tmp_path / "nothing.sqlite")
    assert (len(winners), trouble) == (0, None)
    assert list(tmp_path.iterdir()) == []


def corrupt(path: Path) -> None:
    path.write_bytes(b"This is no database." * 100)


def foreign(path: Path) -> None:
    path.unlink()
    sqlite3.connect(path).execute("CREATE TABLE bookmarks (url TEXT)")


def newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE kpt_schema SET version = 2")


def without_version(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM kpt_schema")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (corrupt, "not a database"),
        (foreign, "no such table"),
        (newer, "schema 2, this kpt reads schema 1"),
        (without_version, "schema none"),
        (a_folder, ""),  # in words that differ between versions of SQLite
    ],
)
def test_a_file_that_cannot_be_read_is_told_and_left_out(damage, told: str, database: Path) -> None:  # type: ignore[no-untyped-def]
    stored(entry())
    for leftover in ("-wal", "-shm"):
        Path(f"{database}{leftover}").unlink(missing_ok=True)
    damage(database)
    winners, trouble = snapshot.read(database)
    assert len(winners) == 0
    assert trouble is not None
    assert told in trouble


def test_a_locked_file_is_told_and_left_out(database: Path) -> None:
    stored(entry())
    holder = sqlite3.connect(database, isolation_level=None)
    holder.execute("PRAGMA journal_mode = DELETE")  # out of WAL, where a lock keeps readers out
    holder.execute("BEGIN EXCLUSIVE")
    winners, trouble = snapshot.read(database)
    assert len(winners) == 0
    assert trouble is not None
    assert "locked" in trouble


@pytest.mark.parametrize(
    ("column", "value"),
    [("config", "{"), ("config", "[1]"), ("config", '{"block_M": 1.5}'), ("origin", "guessed"), ("config", None)],
)
def test_a_row_that_is_not_understood_is_passed_over(column: str, value: str | None, database: Path) -> None:
    stored(entry(), entry(softmax(N=8)))
    with sqlite3.connect(database) as connection:
        if value is None:
            connection.execute("UPDATE kpt_keys SET body = '{}' WHERE id = 1")
        else:
            connection.execute(f"UPDATE kpt_winners SET {column} = ? WHERE id = 1", (value,))
    winners, trouble = snapshot.read(database)
    assert trouble is None
    assert winners.get(key().digest, "measured") is None
    assert winners.get(key(softmax(N=8)).digest, "measured") is not None
    assert relatives(winners, key(softmax(N=8))) == [key(softmax(N=8))]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def test_a_folder_that_cannot_be_written_is_read(open_folder: Path) -> None:
    """As on a read-only image: WAL has no place for its index there."""
    path = open_folder / "configs.sqlite"
    with Store(str(path)) as store:
        add(store, entry())
    path.chmod(0o444)
    open_folder.chmod(0o555)
    reader, told = os.pipe()
    if os.fork() == 0:
        try:
            if os.getuid() == 0:
                os.setuid(65534)  # permissions do not bind root
            winners, trouble = snapshot.read(path)
            os.write(told, f"{len(winners)} {trouble}".encode())
        finally:
            os._exit(0)
    os.wait()
    open_folder.chmod(0o755)
    assert os.read(reader, 1000).decode() == "1 None"
