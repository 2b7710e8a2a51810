"""The same store on PostgreSQL, which a fleet shares. Runs where a server and psycopg are installed."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune_db import lookup
from autotune_db import store as store_module
from autotune_db.location import VARIABLE, local_file, location
from autotune_db.store import Store
from autotune_db.trial import Trial
from kpt_dsl.errors import StoreError
from kpt_dsl.space import Config
from tests.autotune_db.entries import add, entry, key
from tests.autotune_db.instances import softmax
from tests.autotune_db.test_store import WRITER, child

pytest.importorskip("psycopg")


def _tool(name: str) -> str | None:
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(installed[-1]) if installed else None)


if _tool("initdb") is None:
    pytest.skip("no PostgreSQL server is installed", allow_module_level=True)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server of its own, reached through a socket in its folder."""
    with tempfile.TemporaryDirectory(prefix="kpt-pg-") as name:
        folder = Path(name)
        data, options = folder / "data", {}
        if os.getuid() == 0:  # PostgreSQL does not run as root
            account = pwd.getpwnam("nobody")
            os.chown(folder, account.pw_uid, account.pw_gid)
            options = {"user": "nobody", "cwd": name}

        def run(*words: str) -> None:
            subprocess.run(words, check=True, capture_output=True, timeout=60, **options)  # type: ignore[call-overload]

        run(str(_tool("initdb")), "-D", str(data), "-U", "kpt", "--auth=trust", "--no-sync")
        settings = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        run(str(_tool("pg_ctl")), "-D", str(data), "-o", settings, "-l", str(folder / "log"), "-w", "start")
        try:
            yield f"postgresql+psycopg://kpt@/postgres?host={folder}"
        finally:
            run(str(_tool("pg_ctl")), "-D", str(data), "-m", "immediate", "stop")


@pytest.fixture
def url(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(VARIABLE, server)
    return server


def test_many_processes_write_at_once_also_the_tables(url: str) -> None:
    writers = [child(WRITER, str(number)) for number in range(4)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0, 0]
    with Store() as store:
        assert len({t.trial.config for t in store.trials(key())}) == 80
        assert len(store.entries()) == 4


def test_an_entry_comes_back_as_it_was(url: str) -> None:
    with Store() as store:
        add(store, entry(softmax(N=333)))
        store.add_trial(
            store.start_run(key(softmax(N=333)), "measured", {"a": "b"}), Trial(Config(a=1), "timed", 1.5, 2.5)
        )
        assert entry(softmax(N=333)) in store.entries()
        (kept,) = store.trials(key(softmax(N=333)))
        assert kept.trial == Trial(Config(a=1), "timed", 1.5, 2.5)
        assert store.damage() == ""


def test_tables_of_an_earlier_kpt_are_read_as_they_are_and_written(url: str) -> None:
    one = entry(softmax(N=446))
    with Store() as store:
        add(store, one)
        with store._engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE kpt_winners DROP COLUMN extents")
    with Store(read_only=True) as store:
        assert [e.extents for e in store.entries() if e.key == one.key] == [()]
    with Store() as store:
        add(store, one)
        assert [e.extents for e in store.entries() if e.key == one.key] == [one.extents]
        assert store.remove([one]) == 2


def test_reading_only_does_not_make_tables(url: str) -> None:
    """Another schema of the same server is as an empty database."""
    with pytest.raises(StoreError), Store(url.replace("/postgres?", "/template1?"), read_only=True) as store:
        store.entries()


def test_what_was_imported_stands_beside_what_was_measured(url: str) -> None:
    one = entry(softmax(N=444))
    with Store() as store:
        add(store, one)
        store.add_imported([one, entry(softmax(N=445))])
        found = [e for e in store.entries() if dict(e.key.shape)["N"].low in (444, 445)]
        assert [e.known for e in found] == ["measured", "imported measured", "imported measured"]
        assert store.remove(found) == 3


def test_a_server_that_stops_in_the_middle_is_given_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is halted: the system still takes what is sent to it. A new connection then serves."""
    monkeypatch.setattr(store_module, "WAIT_SECONDS", 2.0)
    started = time.monotonic()
    with Store() as store:
        with pytest.raises(StoreError, match="no answer in 2 s"), store._transaction(2.0) as connection:  # noqa: PT012
            process = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            os.kill(process, signal.SIGSTOP)
            try:
                connection.exec_driver_sql("SELECT 1")
            finally:
                os.kill(process, signal.SIGCONT)
        store.entries()
    assert time.monotonic() - started < 15


def test_a_lock_that_is_never_given_back_is_given_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store() as holder, holder._engine.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE kpt_winners IN ACCESS EXCLUSIVE MODE")
        monkeypatch.setattr(store_module, "WAIT_SECONDS", 2.0)
        with Store() as store, pytest.raises(StoreError, match=r"no answer in 2 s"):
            store.entries()


def test_dispatch_does_not_go_to_the_network(url: str) -> None:
    assert location() == url
    assert local_file().name == "configs.sqlite"
    lookup.forget()
    code = "import sys; from autotune_db import lookup; lookup._user(); print({'psycopg', 'sqlalchemy'} & set(sys.modules))"
    path = os.pathsep.join(p or "." for p in sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
