"""Writing: nothing is lost, many may write, and what is wrong is said in one line."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from autotune_db import engine, schema, snapshot, store
from autotune_db.location import location
from autotune_db.store import Store
from autotune_db.trial import Trial
from kpt_dsl.build import cache
from kpt_dsl.errors import StoreError
from kpt_dsl.space import Config
from tests.autotune_db.entries import add, entry, key, of_an_earlier_kpt
from tests.autotune_db.instances import linear, softmax

ONE, TWO = Config(block_M=1, num_warps=1), Config(block_M=2, num_warps=1)


def test_an_entry_comes_back_as_it_was(database: Path) -> None:
    with Store() as opened:
        add(opened, entry(linear(bias=False)))
        assert opened.entries() == [entry(linear(bias=False))]
    with Store(str(database), read_only=True) as opened:
        assert opened.entries() == [entry(linear(bias=False))]


def test_the_file_is_in_wal_mode(database: Path) -> None:
    Store().close()
    assert sqlite3.connect(database).execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_every_trial_is_kept_with_its_environment(database: Path) -> None:
    trials = [Trial(ONE, "timed", 3.0, 4.0), Trial(TWO, "compile error", detail="no"), Trial(ONE, "timed", 3.5, 4.0)]
    with Store() as opened:
        first = opened.start_run(key(), "measured", {"driver": "1"})
        for trial in trials[:2]:
            opened.add_trial(first, trial)
        opened.add_trial(opened.start_run(key(), "measured", {"driver": "2"}), trials[2])
        opened.add_trial(opened.start_run(key(linear()), "measured", {}), trials[0])
        found = opened.trials(key())
        assert [t.trial for t in found] == trials
        assert [t.environment for t in found] == [{"driver": "1"}] * 2 + [{"driver": "2"}]
        assert all(t.date for t in found)
        assert len(opened.trials()) == 4


def test_the_latest_winner_of_an_origin_stands_and_the_others_stay(database: Path) -> None:
    with Store() as opened:
        for config in (ONE, TWO):
            add(opened, entry(config=config))
        add(opened, entry(config=ONE, origin="predicted"))
        assert [(e.config, e.origin) for e in opened.entries()] == [(TWO, "measured"), (ONE, "predicted")]
    assert sqlite3.connect(database).execute("SELECT count(*) FROM kpt_winners").fetchone() == (3,)


def test_a_database_of_an_earlier_kpt_is_read_as_it_is_and_written(database: Path) -> None:
    known, before = entry(softmax(N=8)), replace(entry(), extents=())
    with Store() as opened:
        add(opened, entry())
    of_an_earlier_kpt(database)
    columns = "SELECT group_concat(name) FROM pragma_table_info('kpt_winners')"
    (made,) = sqlite3.connect(database).execute(columns).fetchone()
    with Store(read_only=True) as opened:
        assert opened.entries() == [before]
    assert sqlite3.connect(database).execute(columns).fetchone() == (made,)
    for _ in range(2):
        Store().close()
    with Store() as opened:
        add(opened, known)
        opened.add_imported([known])
        assert opened.entries() == [before, known, replace(known, imported=True)]
    assert sqlite3.connect(database).execute(columns).fetchone() == (f"{made},extents",)
    winners, trouble = snapshot.read(database)
    assert trouble is None
    found = [winners.get(one.key.digest, "measured") for one in (before, known)]
    assert [one and one.extents for one in found] == [(), known.extents]


def test_an_earlier_kpt_goes_on_writing_beside_this_one(database: Path) -> None:
    """It names the columns that it knows, and knows the schema: two programs of one user share a file."""
    columns = "key_id, run_id, config, origin, microseconds, first_microseconds"
    with Store() as opened:
        add(opened, entry())
        with sqlite3.connect(database) as earlier:
            assert earlier.execute("SELECT version FROM kpt_schema").fetchone() == (1,)
            earlier.execute(f"INSERT INTO kpt_winners ({columns}) SELECT {columns} FROM kpt_winners")
        assert opened.entries() == [replace(entry(), extents=())]


def test_extents_that_no_call_of_the_key_has_are_damage(database: Path) -> None:
    with Store() as opened:
        add(opened, entry())
        with sqlite3.connect(database) as connection:
            connection.execute("UPDATE kpt_winners SET extents = ?", ('{"M": 4097, "N": 1024}',))
        assert opened.entries() == []
        (damage,) = opened.damaged
    assert damage.why == "extents: M is '4097', which is no whole number in 2049..4096"
    winners, _ = snapshot.read(database)
    assert winners.get(key().digest, "measured") is None


WRITER = """
    import sys
    from autotune_db.store import Store
    from autotune_db.trial import Trial
    from kpt_dsl.space import Config
    from tests.autotune_db.entries import key
    from tests.autotune_db.instances import softmax
    number = int(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    with Store() as store:
        run = store.start_run(key(), "measured", {})          # the same new key in every process
        own = store.start_run(key(softmax(N=1 + number)), "measured", {})
        for i in range(20):
            store.add_trial(run, Trial(Config(block_M=number, i=i), "timed", 1.0))
        store.add_winner(own, Config(block_M=number), 1.0)
"""


def child(code: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_many_processes_write_at_once(database: Path) -> None:
    writers = [child(WRITER, str(number)) for number in range(4)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:  # all at the same time, so that they also race to make the tables
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0, 0]
    with Store() as opened:
        assert len(opened.trials(key())) == 80
        assert len({t.trial.config for t in opened.trials(key())}) == 80
        assert len(opened.entries()) == 4


def test_a_writer_that_is_killed_leaves_what_was_written_before(database: Path) -> None:
    victim = child("""
        import signal, os
        import sqlalchemy as sa
        from autotune_db import schema
        from autotune_db.store import Store
        from tests.autotune_db.entries import add, entry
        store = Store()
        add(store, entry())
        with store._engine.begin() as connection:
            for _ in range(5000):
                connection.execute(sa.insert(schema.schema).values(version=99))
            print("within", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert victim.stdout is not None
    assert victim.stdout.readline() == "within\n"
    assert victim.wait(30) == -signal.SIGKILL
    with Store() as opened:
        assert opened.entries() == [entry()]
        add(opened, entry(softmax(N=77)))
        assert len(opened.entries()) == 2
        assert opened.damage() == ""


def test_clearing_the_cache_of_compilations_leaves_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are under the user's cache folder unless they are moved."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("KPT_DB")
    monkeypatch.delenv("KPT_CACHE_DIR")
    with Store() as opened:
        add(opened, entry())
    assert Path(location()).is_relative_to(tmp_path)
    compiled = cache.Entry("source", "0" * 16)
    compiled.put({"source.py": "pass"})
    cache.prune(0)
    assert not compiled.path.exists()
    with Store() as opened:
        assert opened.entries() == [entry()]


# ------------------------------------------------------------------ what can be wrong
def test_a_corrupt_file_is_refused_and_not_touched(database: Path) -> None:
    database.parent.mkdir()
    database.write_bytes(b"This is no database." * 100)
    with pytest.raises(StoreError, match="not a database; move the file away"):
        Store()
    assert database.read_bytes() == b"This is no database." * 100


def test_a_damaged_page_is_found(database: Path) -> None:
    with Store() as opened:
        for width in range(60):
            add(opened, entry(softmax(N=1 + width)))
    sqlite3.connect(database).execute("PRAGMA wal_checkpoint(TRUNCATE)")
    page = 4096
    content = bytearray(database.read_bytes())
    content[5 * page : 15 * page] = os.urandom(10 * page)
    database.write_bytes(content)
    with pytest.raises(StoreError), Store(read_only=True) as opened:  # noqa: PT012
        opened.entries()
        raise StoreError(opened.damage() or "not found")


def test_a_database_of_another_program_is_refused(database: Path) -> None:
    database.parent.mkdir()
    with sqlite3.connect(database) as other:
        other.execute("CREATE TABLE bookmarks (url TEXT)")
    with pytest.raises(StoreError, match="another program"):
        Store()
    assert sqlite3.connect(database).execute("SELECT name FROM sqlite_master").fetchall() == [("bookmarks",)]


def test_a_newer_database_is_refused(database: Path) -> None:
    Store().close()
    with sqlite3.connect(database) as newer:
        newer.execute("UPDATE kpt_schema SET version = 2")
    with pytest.raises(StoreError, match=r"schema 2, this kpt knows 1.*upgrade kpt"):
        Store()


def test_a_locked_database_is_waited_for_and_then_reported(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "WAIT_SECONDS", 0.1)
    Store().close()
    holder = sqlite3.connect(database, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked; another process holds it"):
        add(Store(), entry())
    holder.execute("ROLLBACK")
    with Store() as opened:
        add(opened, entry())


def test_a_full_disk_is_reported_and_loses_nothing(database: Path) -> None:
    with Store() as opened:
        add(opened, entry())

        # SQLite says the same of a file that may not grow as of a disk that is full.
        pages = sqlite3.connect(database).execute("PRAGMA page_count").fetchone()[0]

        @store.sa.event.listens_for(opened._engine, "connect")
        def limit(connection: sqlite3.Connection, _: object) -> None:
            connection.execute(f"PRAGMA max_page_count = {pages}")

        with pytest.raises(StoreError, match="full; free some space"):  # noqa: PT012
            for width in range(1000):
                add(opened, entry(softmax(N=2000 + width)))
    with Store() as opened:
        assert opened.entries()[0] == entry()
        assert opened.damage() == ""
        add(opened, entry(config=TWO))


def test_a_place_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"File exists.*cannot be written or opened there"):
        Store(str(tmp_path / "file" / "configs.sqlite"))


def test_a_database_that_is_not_there_is_not_made_by_reading(database: Path) -> None:
    with pytest.raises(StoreError, match="there is no database"):
        Store(read_only=True)
    assert not database.parent.exists()


def test_reading_does_not_write(database: Path) -> None:
    Store().close()
    with Store(read_only=True) as opened, pytest.raises(StoreError, match="readonly"):
        add(opened, entry())


def test_an_sqlite_url_is_as_good_as_a_path(database: Path) -> None:
    with Store(f"sqlite:///{database}") as opened:
        add(opened, entry())
    with Store(str(database)) as opened:
        assert opened.entries() == [entry()]


@pytest.mark.parametrize("url", ["postgresql+psycopg://me:secret@127.0.0.1:1/kpt", "nonsense://place"])
def test_a_server_that_is_not_there_is_reported_without_its_password(url: str) -> None:
    with pytest.raises(StoreError) as raised:
        Store(url)
    assert "secret" not in str(raised.value)


def test_the_tables_say_nothing_that_postgresql_does_not_know() -> None:
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateTable

    made = [str(CreateTable(t).compile(dialect=postgresql.dialect())) for t in schema.metadata.sorted_tables]
    assert len(made) == 5
    assert sum("BIGSERIAL" in text or "GENERATED" in text for text in made) == 4


# ------------------------------------------------------------------ what was found elsewhere
def test_what_was_imported_stands_beside_what_was_measured_here(database: Path) -> None:
    with Store() as opened:
        add(opened, entry(config=ONE))
        opened.add_imported([entry(config=TWO), entry(softmax(N=8), origin="predicted")])
        assert [(e.config, e.known) for e in opened.entries()] == [
            (ONE, "measured"),
            (TWO, "imported measured"),
            (entry().config, "imported predicted"),
        ]


def test_an_import_is_whole_or_not_at_all(database: Path) -> None:
    """The last of many entries cannot be stored: the database refuses it."""
    with Store() as opened:
        add(opened, entry())
        with sqlite3.connect(database) as connection:
            connection.execute(
                "CREATE TRIGGER full BEFORE INSERT ON kpt_winners WHEN NEW.microseconds = 99 "
                "BEGIN SELECT RAISE(ABORT, 'full'); END"
            )
        many = [entry(softmax(N=8 + n)) for n in range(50)]
        with pytest.raises(StoreError, match="full"):
            opened.add_imported([*many, replace(entry(softmax(N=7)), microseconds=99.0)])
        assert opened.entries() == [entry()]
        assert sqlite3.connect(database).execute("SELECT count(*) FROM kpt_keys").fetchone() == (1,)


def test_ten_thousand_entries_are_imported_in_seconds(database: Path) -> None:
    one = entry()
    many = [replace(one, key=replace(one.key, source=f"{n:016x}")) for n in range(10_000)]
    started = time.process_time()
    with Store() as opened:
        opened.add_imported(many)
        assert len(opened.entries()) == 10_000
    assert time.process_time() - started < 10
    winners, trouble = snapshot.read(database)
    assert (len(winners), trouble) == (10_000, None)


def test_winners_are_removed_and_trials_stay(database: Path) -> None:
    with Store() as opened:
        for config in (ONE, TWO):
            add(opened, entry(config=config))
        opened.add_imported([entry()])
        run = opened.start_run(key(), "measured", {})
        opened.add_trial(run, Trial(ONE, "timed", 1.0))
        assert opened.remove([entry(config=TWO)]) == 2
        assert [e.known for e in opened.entries()] == ["imported measured"]
        assert len(opened.trials()) == 1


# ------------------------------------------------------------------ servers that do not answer
@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_server_that_says_nothing_is_given_up(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg")
    monkeypatch.setattr(engine, "CONNECT_SECONDS", 2)  # libpq takes no less
    started = time.monotonic()
    with pytest.raises(StoreError) as raised:
        Store(f"postgresql+psycopg://me:secret@127.0.0.1:{silent}/kpt")
    assert time.monotonic() - started < 20
    assert "timeout" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_only_sqlite_and_postgresql_are_written() -> None:
    with pytest.raises(StoreError, match="an SQLite file or a PostgreSQL server, not 'mysql'"):
        Store("mysql://me:secret@127.0.0.1/kpt")
