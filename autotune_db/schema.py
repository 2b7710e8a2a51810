"""The tables of the config database, the same on SQLite and PostgreSQL.

Rows are only ever added. A run is one tuning of one key; its trials are kept whatever becomes of the space that they came
from; its winner is a row of its own, and the latest winner of a key and origin stands. ``snapshot`` reads these tables too.
Their names begin with kpt_, so that they can lie beside Optuna's in one database.

VERSION is another wherever an earlier kpt would misread what a later one writes. A column that it neither reads nor misses is
added to its tables instead, by whoever first opens them for writing; until then it is read as NULL.
"""

from sqlalchemy import BigInteger, Column, Connection, Float, ForeignKey, Integer, MetaData, Table, Text, text

from autotune_db.snapshot import COLUMNS, VERSION

__all__ = ["VERSION", "add_extents", "has_extents", "keys", "metadata", "runs", "schema", "trials", "winners"]

metadata = MetaData()

_Number = BigInteger().with_variant(Integer(), "sqlite")  # SQLite numbers rows by itself in INTEGER columns only


def _number() -> "Column[int]":
    return Column("id", _Number, primary_key=True, autoincrement=True)


def _one_of(table: str) -> "Column[int]":
    return Column(f"{table[:-1]}_id", _Number, ForeignKey(f"kpt_{table}.id"), nullable=False, index=True)


schema = Table("kpt_schema", metadata, Column("version", Integer, nullable=False))

keys = Table(
    "kpt_keys",
    metadata,
    _number(),
    Column("digest", Text, nullable=False, unique=True),
    Column("kernel", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("body", Text, nullable=False),  # Key.to_dict as JSON
)

runs = Table(
    "kpt_runs",
    metadata,
    _number(),
    _one_of("keys"),
    Column("origin", Text, nullable=False),  # entry.Origin
    Column("environment", Text, nullable=False),  # device, driver and package versions as JSON
    Column("date", Text, nullable=False),  # ISO 8601, UTC
)

trials = Table(
    "kpt_trials",
    metadata,
    _number(),
    _one_of("runs"),
    Column("config", Text, nullable=False),
    Column("outcome", Text, nullable=False),  # trial.Outcome
    Column("microseconds", Float(53)),
    Column("reference_microseconds", Float(53)),  # of the first config, interleaved with it
    Column("detail", Text, nullable=False),
    Column("date", Text, nullable=False),
)

winners = Table(
    "kpt_winners",
    metadata,
    _number(),
    _one_of("keys"),
    _one_of("runs"),
    Column("config", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("microseconds", Float(53)),
    Column("first_microseconds", Float(53)),
    Column("extents", Text),  # dim -> extent as JSON, of what was timed; a table of an earlier kpt lacks the column
)

# SQLAlchemy's own inspection of a server waits for whoever has locked the table.
_COLUMNS = {
    "sqlite": COLUMNS,
    "postgresql": "SELECT column_name FROM information_schema.columns "
    f"WHERE table_schema = current_schema() AND table_name = '{winners.name}'",
}


def has_extents(connection: Connection) -> bool:
    """Whether the winners have that column: those of an earlier kpt do not."""
    return winners.c.extents.name in connection.execute(text(_COLUMNS[connection.dialect.name])).scalars().all()


def add_extents(connection: Connection) -> None:
    """Gives them the column, NULL in every row."""
    connection.execute(text(f"ALTER TABLE {winners.name} ADD COLUMN {winners.c.extents.name} TEXT"))
