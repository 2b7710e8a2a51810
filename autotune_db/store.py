"""The config database as the tuner writes it: SQLite in WAL mode, or PostgreSQL by URL, through SQLAlchemy.

Every method is one transaction; many processes may write at once. Nothing here updates or deletes a row. All that can go
wrong with a database is raised as StoreError, which says what to do. Dispatch does not come here: see ``snapshot``.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from autotune_db import schema
from autotune_db.entry import Entry, Origin
from autotune_db.key import Key
from autotune_db.location import is_url, location
from autotune_db.trial import Trial
from kpt_dsl.errors import StoreError
from kpt_dsl.space import Config

WAIT_SECONDS = 30.0
"""How long a writer waits for another."""

_MAKING = 0x6B7074
"""Number of the lock that is held in PostgreSQL while tables are made."""


@dataclass(frozen=True)
class Run:
    """A tuning of one key under way: what its trials and its winner are recorded under."""

    id: int
    key_id: int
    origin: Origin


@dataclass(frozen=True)
class StoredTrial:
    """A trial with where and when it was made."""

    key: Key
    trial: Trial
    origin: str
    environment: dict[str, str]
    date: str


class Store:
    """A database, opened for writing (and made, if it is not there) unless ``read_only``.

    ``place``: a path, or an SQLAlchemy URL; by default ``location()``.
    Raises StoreError: locked, corrupt, of another program, of a newer kpt, not writable, disk full.
    """

    def __init__(self, place: str | None = None, *, read_only: bool = False) -> None:
        self.place = place or location()
        with self._explained():
            self._engine = _engine(self.place, read_only)
        try:
            with self._explained():
                self._check(read_only)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets go of the file or the connections."""
        self._engine.dispose()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ writing
    def start_run(self, key: Key, origin: Origin, environment: Mapping[str, str], date: str = "") -> Run:
        """A new run for a key, which is added if it is new. ``date`` is now unless given."""
        with self._transaction() as connection:
            key_id = _key_id(connection, key)
            row = sa.insert(schema.runs).values(
                key_id=key_id, origin=origin, environment=json.dumps(dict(environment)), date=date or _now()
            )
            return Run(_new_id(connection, row), key_id, origin)

    def add_trial(self, run: Run, trial: Trial) -> None:
        """A trial, as soon as it is known: what was found survives whatever stops the tuner."""
        with self._transaction() as connection:
            connection.execute(
                sa.insert(schema.trials).values(
                    run_id=run.id,
                    config=trial.config.to_json(),
                    outcome=trial.outcome,
                    microseconds=trial.microseconds,
                    reference_microseconds=trial.reference_microseconds,
                    detail=trial.detail,
                    date=_now(),
                )
            )

    def add_winner(
        self, run: Run, config: Config, microseconds: float | None, first_microseconds: float | None = None
    ) -> None:
        """What a run found best. Earlier winners of the key stay, and are no longer looked up."""
        with self._transaction() as connection:
            connection.execute(
                sa.insert(schema.winners).values(
                    key_id=run.key_id,
                    run_id=run.id,
                    config=config.to_json(),
                    origin=run.origin,
                    microseconds=microseconds,
                    first_microseconds=first_microseconds,
                )
            )

    def add_entry(self, entry: Entry) -> None:
        """A winner that was found elsewhere (``kpt-tune import``)."""
        run = self.start_run(entry.key, entry.origin, dict(entry.environment), entry.date)
        self.add_winner(run, entry.config, entry.microseconds, entry.first_microseconds)

    # ------------------------------------------------------------------ reading
    def entries(self) -> list[Entry]:
        """The standing winner of every key and origin, in the order they were found."""
        w, k, r = schema.winners, schema.keys, schema.runs
        columns = (
            k.c.body,
            w.c.config,
            w.c.origin,
            w.c.microseconds,
            w.c.first_microseconds,
            r.c.environment,
            r.c.date,
        )
        query = sa.select(*columns).join(k, k.c.id == w.c.key_id).join(r, r.c.id == w.c.run_id).order_by(w.c.id)
        standing: dict[tuple[str, str], Entry] = {}
        for body, config, origin, us, first_us, environment, date in self._rows(query):
            key = Key.from_dict(json.loads(body))
            known = tuple(json.loads(environment).items())
            standing[key.digest, origin] = Entry(key, Config.from_json(config), origin, us, first_us, known, date)
        return list(standing.values())

    def trials(self, key: Key | None = None) -> list[StoredTrial]:
        """Every trial ever made, of one key or of all, oldest first."""
        t, r, k = schema.trials, schema.runs, schema.keys
        query = (
            sa.select(k.c.body, r.c.origin, r.c.environment, t)
            .join(r, r.c.id == t.c.run_id)
            .join(k, k.c.id == r.c.key_id)
            .order_by(t.c.id)
        )
        if key is not None:
            query = query.where(k.c.digest == key.digest)
        return [
            StoredTrial(
                Key.from_dict(json.loads(row.body)),
                Trial(
                    Config.from_json(row.config), row.outcome, row.microseconds, row.reference_microseconds, row.detail
                ),
                row.origin,
                json.loads(row.environment),
                row.date,
            )
            for row in self._rows(query)
        ]

    def damage(self) -> str:
        """What SQLite's own check finds wrong with the file; "" for nothing, and for a database that is not a file."""
        if self._engine.dialect.name != "sqlite":
            return ""
        (found,) = self._rows(sa.text("PRAGMA quick_check(1)"))[0]
        return "" if found == "ok" else str(found)

    # ------------------------------------------------------------------ the database itself
    def _rows(self, query: "sa.Select[*tuple[Any, ...]] | sa.TextClause") -> list[Any]:
        with self._explained(), self._engine.connect() as connection:
            return list(connection.execute(query))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with self._explained(), self._engine.begin() as connection:
            yield connection

    def _check(self, read_only: bool) -> None:
        """Makes the tables of an empty database; refuses one that is not ours or is newer, and leaves it as it is."""
        if read_only:
            with self._engine.connect() as connection:
                self._is_ours(connection)
            return
        with self._engine.begin() as connection:
            if self._engine.dialect.name == "postgresql":
                connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_MAKING})"))
            if not self._is_ours(connection):
                schema.metadata.create_all(connection)
                connection.execute(sa.insert(schema.schema).values(version=schema.VERSION))
        if self._engine.dialect.name == "sqlite":
            self._use_wal()

    def _use_wal(self) -> None:
        """Readers and writers then do not wait for each other. The mark stays in the file, so it is set only in our own.

        Needs the file to itself for a moment; where others are at work too, one of them does it, now or next time.
        """
        with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(self._engine.raw_connection()) as raw:
            raw.cursor().execute("PRAGMA journal_mode = WAL")

    def _is_ours(self, connection: sa.Connection) -> bool:
        """Whether our tables are there; False where they may be made. Raises StoreError for those of others or a newer kpt."""
        tables = set(sa.inspect(connection).get_table_names())
        if schema.schema.name in tables:
            found = connection.execute(sa.select(schema.schema.c.version)).scalar()
            if found != schema.VERSION:
                raise StoreError(
                    f"{self.shown} was written by another version of kpt (schema {found}, this kpt knows {schema.VERSION}); "
                    "upgrade kpt, or name another database with KPT_DB or --db"
                )
            return True
        if tables and self._engine.dialect.name == "sqlite":  # a server's database may well hold other tables too
            raise StoreError(
                f"{self.shown} is a database of another program (tables {', '.join(sorted(tables)[:5])}); "
                "name another place with KPT_DB or --db"
            )
        return False

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except ModuleNotFoundError as error:
            raise StoreError(f"{self.shown} needs the package {error.name!r}: pip install {error.name}") from None
        except (SQLAlchemyError, OSError) as error:
            raise StoreError(f"{self.shown}: {_reason(error)}; {_remedy(_reason(error))}") from error

    @property
    def shown(self) -> str:
        """The place without a password."""
        return sa.make_url(self.place).render_as_string() if is_url(self.place) else self.place


def _engine(place: str, read_only: bool) -> sa.Engine:
    if is_url(place) and not place.startswith("sqlite"):
        return sa.create_engine(place)
    path = Path(sa.make_url(place).database or "" if is_url(place) else place).expanduser().absolute()
    if read_only and not path.exists():
        raise FileNotFoundError(f"there is no database at {path}")
    if not read_only:
        path.parent.mkdir(parents=True, exist_ok=True)
    uri = f"sqlite:///{path.as_uri()}?mode={'ro' if read_only else 'rwc'}&uri=true"
    # One connection a transaction: nothing stays open that a fork or a thread could share.
    engine = sa.create_engine(uri, poolclass=sa.NullPool, connect_args={"timeout": WAIT_SECONDS})

    @sa.event.listens_for(engine, "connect")
    def _connected(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the driver begins no transactions of its own
        connection.execute("PRAGMA foreign_keys = ON")

    @sa.event.listens_for(engine, "begin")
    def _begun(connection: sa.Connection) -> None:
        # A writer takes its place in the queue at once: a lock taken later cannot be waited for.
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _key_id(connection: sa.Connection, key: Key) -> int:
    known = sa.select(schema.keys.c.id).where(schema.keys.c.digest == key.digest)
    found = connection.execute(known).scalar()
    if found is not None:
        return int(found)
    # Where another process adds it meanwhile, theirs is as good.
    connection.execute(
        _INSERT_KEY,
        {"digest": key.digest, "kernel": key.kernel, "device": key.device, "body": json.dumps(key.to_dict())},
    )
    return int(connection.execute(known).scalar_one())


_INSERT_KEY = sa.text(
    "INSERT INTO kpt_keys (digest, kernel, device, body) VALUES (:digest, :kernel, :device, :body) "
    "ON CONFLICT (digest) DO NOTHING"
)


def _new_id(connection: sa.Connection, row: "sa.Insert") -> int:
    inserted = connection.execute(row).inserted_primary_key
    assert inserted is not None
    return int(inserted[0])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _reason(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]


def _remedy(reason: str) -> str:
    lowered = reason.lower()
    if "locked" in lowered:
        return "another process holds it: wait for it to end, or name another database with KPT_DB or --db"
    if "full" in lowered or "no space" in lowered:
        return "free some space, or name another place with KPT_DB or --db; what was stored before is unharmed"
    if any(
        word in lowered for word in ("readonly", "read-only", "permission", "unable to open", "exists", "directory")
    ):
        return "it cannot be written or opened there: name another place with KPT_DB or --db"
    if "malformed" in lowered or "not a database" in lowered:
        return "move the file away (it is not touched), or name another place with KPT_DB or --db"
    return "name another database with KPT_DB or --db, or see `kpt-tune doctor`"
