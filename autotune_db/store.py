"""The config database as the tuner writes it: SQLite in WAL mode, or PostgreSQL by URL, through SQLAlchemy.

Every method is one transaction; many processes may write at once. Rows are deleted only where a person asks for it. All that
can go wrong with a database is raised as StoreError, which says what to do and no password; a row that is damaged is left out
and told of. Dispatch does not come here: see ``snapshot``.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from autotune_db import schema, snapshot
from autotune_db.engine import WAIT_SECONDS, Database
from autotune_db.entry import IMPORTED, Entry, Extents, Origin
from autotune_db.key import Key
from autotune_db.location import location, without_secrets
from autotune_db.trial import OUTCOMES, Trial
from kpt_dsl.errors import StoreError
from kpt_dsl.space import Config

_SECONDS_A_ROW = 0.02
"""What an entry that is imported adds to a server's time: a journey there and back."""

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


@dataclass(frozen=True)
class Damage:
    """A row that cannot be read: its table (``winners``, ``trials``), its number and why."""

    table: str
    number: int
    why: str


class Store:
    """A database, opened for writing (and made, if it is not there) unless ``read_only``.

    ``place``: a path, or an SQLAlchemy URL; by default ``location()``. ``damaged``: the rows that ``entries`` and ``trials``
    came upon and left out; ``lost`` says why there may be more, "" where all rows were seen.
    Raises StoreError: locked, corrupt, of another program, of a newer kpt, not writable, disk full, no answer.
    """

    def __init__(self, place: str | None = None, *, read_only: bool = False) -> None:
        self.place = place or location()
        self.damaged: list[Damage] = []
        self.lost = ""
        with self._explained():
            self._database = Database(self.place, read_only)
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
        self,
        run: Run,
        config: Config,
        microseconds: float | None,
        first_microseconds: float | None = None,
        extents: Extents = (),
    ) -> None:
        """What a run found best, at these extents. Earlier winners of the key stay, and are no longer looked up."""
        with self._transaction() as connection:
            connection.execute(
                sa.insert(schema.winners).values(
                    key_id=run.key_id,
                    run_id=run.id,
                    config=config.to_json(),
                    origin=run.origin,
                    microseconds=microseconds,
                    first_microseconds=first_microseconds,
                    extents=_plain(extents),
                )
            )

    def add_imported(self, entries: Sequence[Entry]) -> None:
        """Winners that were found elsewhere, all or none. They stand beside one's own, which are looked up first."""
        if not entries:
            return
        own = {}
        for entry in entries:
            own[entry.key.digest] = {
                "digest": entry.key.digest,
                "kernel": entry.key.kernel,
                "device": entry.key.device,
                "body": json.dumps(entry.key.to_dict()),
            }
        with self._transaction(WAIT_SECONDS + len(entries) * _SECONDS_A_ROW) as connection:
            connection.execute(_INSERT_KEY, list(own.values()))
            known = sa.select(schema.keys.c.digest, schema.keys.c.id)
            number = {digest: n for digest, n in connection.execute(known) if digest in own}
            runs = [
                {
                    "key_id": number[entry.key.digest],
                    "origin": IMPORTED + entry.origin,
                    "environment": json.dumps(dict(entry.environment)),
                    "date": entry.date or _now(),
                }
                for entry in entries
            ]
            made = sa.insert(schema.runs).returning(schema.runs.c.id, sort_by_parameter_order=True)
            winners = [
                {
                    "key_id": run["key_id"],
                    "run_id": run_id,
                    "config": entry.config.to_json(),
                    "origin": run["origin"],
                    "microseconds": entry.microseconds,
                    "first_microseconds": entry.first_microseconds,
                    "extents": _plain(entry.extents),
                }
                for entry, run, run_id in zip(entries, runs, connection.execute(made, runs).scalars(), strict=True)
            ]
            connection.execute(sa.insert(schema.winners), winners)

    def remove(self, entries: Iterable[Entry]) -> int:
        """Forget the winners of these entries' keys that are known in the same way, earlier ones too; how many rows went.

        Their trials stay.
        """
        w, k = schema.winners, schema.keys
        with self._transaction() as connection:
            return sum(
                connection.execute(
                    sa.delete(w).where(
                        w.c.origin == entry.known,
                        w.c.key_id.in_(sa.select(k.c.id).where(k.c.digest == entry.key.digest)),
                    )
                ).rowcount
                for entry in entries
            )

    def remove_damaged(self) -> int:
        """Delete the rows that ``entries`` and ``trials`` came upon and could not read; how many."""
        with self._transaction() as connection:
            for row in self.damaged:
                table = schema.winners if row.table == "winners" else schema.trials
                connection.execute(sa.delete(table).where(table.c.id == row.number))
        removed, self.damaged = len(self.damaged), []
        return removed

    # ------------------------------------------------------------------ reading
    def entries(self) -> list[Entry]:
        """The standing winner of every key, for each way of knowing it, in the order they were found."""
        w, k, r = schema.winners, schema.keys, schema.runs
        with self._reading() as connection:
            has_extents = schema.has_extents(connection)
        columns = (
            w.c.id,
            k.c.digest,
            k.c.body,
            w.c.config,
            w.c.origin,
            w.c.microseconds,
            w.c.first_microseconds,
            r.c.environment,
            r.c.date,
            w.c.extents if has_extents else sa.null(),
        )
        query = sa.select(*columns).outerjoin(k, k.c.id == w.c.key_id).outerjoin(r, r.c.id == w.c.run_id)
        standing: dict[tuple[str, str], Entry] = {}
        for number, *fields in self._salvaged(query, w.c.id):
            try:
                entry = snapshot.parsed(*fields)
            except StoreError as error:
                self.damaged.append(Damage("winners", number, str(error)))
                continue
            standing[entry.key.digest, entry.known] = entry
        return list(standing.values())

    def trials(self, key: Key | None = None) -> list[StoredTrial]:
        """Every trial ever made, of one key or of all, oldest first."""
        t, r, k = schema.trials, schema.runs, schema.keys
        query = (
            sa.select(t, r.c.origin, r.c.environment, k.c.digest, k.c.body)
            .outerjoin(r, r.c.id == t.c.run_id)
            .outerjoin(k, k.c.id == r.c.key_id)
        )
        if key is not None:
            query = query.where(k.c.digest == key.digest)
        found = []
        for row in self._salvaged(query, t.c.id):
            try:
                found.append(_trial(row))
            except StoreError as error:
                self.damaged.append(Damage("trials", row.id, str(error)))
        return found

    def damage(self) -> str:
        """What SQLite's own check finds wrong with the file; "" for nothing, and for a database that is not a file."""
        if self._database.is_server:
            return ""
        with self._reading() as connection:
            found = connection.execute(sa.text("PRAGMA quick_check(1)")).scalar()
        return "" if found == "ok" else str(found)

    # ------------------------------------------------------------------ the database itself
    @property
    def _engine(self) -> sa.Engine:
        return self._database.engine

    def _salvaged(self, query: "sa.Select[Any]", number: "sa.Column[int]") -> list[Any]:
        """The rows by their number; of a damaged file those that can be read. Raises StoreError where none can."""

        def scan(order: str) -> Iterator[Any]:
            with self._database.patience(WAIT_SECONDS), self._engine.connect() as connection:
                yield from connection.execute(query.order_by(number.desc() if order else number))

        rows, lost = snapshot.salvaged(scan, SQLAlchemyError)
        if lost and (not rows or self._database.is_server):
            raise self._trouble(lost)
        self.lost = lost or self.lost
        return rows

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._explained(), self._database.patience(WAIT_SECONDS), self._engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def _transaction(self, seconds: float = WAIT_SECONDS) -> Iterator[sa.Connection]:
        with self._explained(), self._database.patience(seconds), self._engine.begin() as connection:
            yield connection

    def _check(self, read_only: bool) -> None:
        """Makes the tables of an empty database; refuses one that is not ours or is newer, and leaves it as it is."""
        if read_only:
            with self._database.patience(WAIT_SECONDS), self._engine.connect() as connection:
                self._is_ours(connection)
            return
        with self._transaction() as connection:
            if self._database.is_server:
                connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_MAKING})"))
            if not self._is_ours(connection):
                schema.metadata.create_all(connection)
                connection.execute(sa.insert(schema.schema).values(version=schema.VERSION))
            elif not schema.has_extents(connection):
                schema.add_extents(connection)
        if not self._database.is_server:
            self._use_wal()

    def _use_wal(self) -> None:
        """Readers and writers then do not wait for each other. The mark stays in the file, so it is set only in our own.

        Needs the file to itself for a moment; where others are at work too, one of them does it, now or next time.
        """
        with contextlib.suppress(sqlite3.Error), contextlib.closing(self._engine.raw_connection()) as raw:
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
        if tables and not self._database.is_server:  # a server's database may well hold other tables too
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
        except (SQLAlchemyError, sqlite3.Error, OSError, ValueError) as error:
            raise self._trouble(str(getattr(error, "orig", None) or error) or type(error).__name__) from None

    def _trouble(self, reason: str) -> StoreError:
        database = getattr(self, "_database", None)  # None while it is being opened
        first = (database and database.gave_up) or without_secrets(reason.strip().partition("\n")[0], self.place)
        return StoreError(f"{self.shown}: {first}; {_remedy(first)}")

    @property
    def shown(self) -> str:
        """The place without a password."""
        return without_secrets(self.place, self.place)


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


def _plain(extents: Extents) -> str | None:
    return json.dumps(dict(extents)) if extents else None


def _new_id(connection: sa.Connection, row: "sa.Insert") -> int:
    inserted = connection.execute(row).inserted_primary_key
    assert inserted is not None
    return int(inserted[0])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _trial(row: Any) -> StoredTrial:
    """A trial of a row as it is stored. Raises StoreError for one that is damaged."""
    body, times = (row.digest, row.body, row.config), (row.microseconds, row.reference_microseconds)
    found = snapshot.parsed(*body, row.origin, *times, row.environment, row.date)
    if row.outcome not in OUTCOMES or not isinstance(row.detail, str):
        raise StoreError(f"outcome {str(row.outcome)[:80]!r} is not one of {', '.join(OUTCOMES)}")
    trial = Trial(found.config, row.outcome, *times, row.detail)
    return StoredTrial(found.key, trial, row.origin, dict(found.environment), row.date)


_NOT_THERE = ("readonly", "read-only", "permission", "unable to open", "exists", "no such", "not a ")
"""What is said of a place that is no file, or not ours to write."""


def _remedy(reason: str) -> str:
    lowered = reason.lower()
    if "malformed" in lowered or "not a database" in lowered:
        return "move the file away (it is not touched), or name another place with KPT_DB or --db"
    if "locked" in lowered:
        return "another process holds it: wait for it to end, or name another database with KPT_DB or --db"
    if "full" in lowered or "no space" in lowered:
        return "free some space, or name another place with KPT_DB or --db; what was stored before is unharmed"
    if any(word in lowered for word in _NOT_THERE):
        return "it cannot be written or opened there: name another place with KPT_DB or --db"
    return "name another database with KPT_DB or --db, or see `kpt-tune doctor`"
