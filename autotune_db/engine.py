"""Connections of the config database, through SQLAlchemy: a file of SQLite, or a PostgreSQL server that is not waited for.

A file is opened only where it is a regular one. A server that accepts and says nothing, or stops in the middle, is given up
after a time; the time is this side's, since a server that has stopped cannot keep it.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from autotune_db import snapshot
from autotune_db.location import VARIABLE, path_of
from kpt_dsl import files
from kpt_dsl.errors import StoreError

WAIT_SECONDS = 30.0
"""How long a writer waits for another, and anyone for a server's answer."""

CONNECT_SECONDS = 10


class Database:
    """An SQLAlchemy engine, with what SQLAlchemy lacks: an end to waiting."""

    def __init__(self, place: str, read_only: bool) -> None:
        path = path_of(place)
        self.is_server = path is None
        self.gave_up = ""
        self.engine = _of_file(path, read_only) if path else _of_server(place)
        self._open: list[Any] = []
        if path is None:

            @sa.event.listens_for(self.engine, "do_connect")
            def _connect(dialect: sa.Dialect, _: object, words: Any, names: Any) -> Any:
                connection = dialect.connect(*words, **names)
                self._open = [c for c in self._open if not c.closed]
                self._open.append(connection)
                return connection

    @contextlib.contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """Within the block, what a server has not answered by then fails as a connection does that was lost.

        ``gave_up`` then says so.
        """
        if not self.is_server:  # SQLite keeps time itself
            yield
            return
        self.gave_up = ""
        timer = threading.Timer(seconds, self._hang_up, [seconds])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _hang_up(self, seconds: float) -> None:
        self.gave_up = f"no answer in {seconds:g} s"
        for connection in self._open:
            # The suppressed are a driver's own, for a connection that is closed meanwhile.
            with contextlib.suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)


def _of_server(place: str) -> sa.Engine:
    url = sa.make_url(place)
    if url.get_backend_name() != "postgresql":
        raise StoreError(
            f"the config database is an SQLite file or a PostgreSQL server, not {url.get_backend_name()!r}: "
            f"name another with {VARIABLE} or --db"
        )
    given = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_SECONDS}
    # A connection that broke while nobody used it, in an hour of tuning, is noticed and made anew.
    return sa.create_engine(url, pool_pre_ping=True, connect_args=given)


def _of_file(path: Path, read_only: bool) -> sa.Engine:
    there = files.is_there(path)
    if read_only and not there:
        raise FileNotFoundError(f"there is no database at {path}")
    if read_only:
        uri = snapshot.uri(path)
    else:
        files.make_folders(path.parent)
        snapshot.uri(path)  # nothing that waits stands in the place of its journals
        uri = f"{path.as_uri()}?mode=rwc"
    # One connection a transaction: nothing stays open that a fork or a thread could share.
    engine = sa.create_engine(
        f"sqlite:///{uri}&uri=true", poolclass=sa.NullPool, connect_args={"timeout": WAIT_SECONDS}
    )

    @sa.event.listens_for(engine, "connect")
    def _connected(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the driver begins no transactions of its own
        connection.text_factory = snapshot.lossy
        connection.execute("PRAGMA foreign_keys = ON")

    @sa.event.listens_for(engine, "begin")
    def _begun(connection: sa.Connection) -> None:
        # A writer takes its place in the queue at once: a lock taken later cannot be waited for.
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine
