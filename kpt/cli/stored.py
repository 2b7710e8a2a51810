"""``kpt-tune list`` and ``show``: what the config database holds."""

import os
import sys
from typing import Annotated

import typer

from autotune_db.entry import Entry
from autotune_db.location import location, path_of
from autotune_db.store import Store
from kpt.cli import options, output
from kpt_dsl.errors import InputError

ID_LENGTH = 8

Only = Annotated[str | None, typer.Option("--kernel", help="Only kernels whose name contains this.", metavar="TEXT")]
OnlyDevice = Annotated[
    str | None, typer.Option("--device", help="Only devices whose name contains this.", metavar="TEXT")
]


def list_entries(
    kernel: Only = None, device: OnlyDevice = None, db: options.Database = None, json: options.Json = False
) -> None:
    """List the winners in the database.

    Examples:

        kpt-tune list --kernel flash_attention --device H200

        kpt-tune list --json
    """
    found = select(entries(db), kernel, device)
    if json:
        output.as_json([output.entry_dict(entry) for entry in found])
        return
    if not found:
        print("no entries; `kpt-tune run` makes some")
        return
    output.table(
        ("id", "key", "device", "config", "µs", "at", "speed-up", "known", "date"),
        [_row(entry) for entry in found],
        numbers=("µs", "speed-up"),
    )


def show(
    id: Annotated[str, typer.Argument(help="The id in `kpt-tune list`, or its beginning.", metavar="ID")],  # noqa: A002
    db: options.Database = None,
    json: options.Json = False,
) -> None:
    """Show a key in full, its winner, and every trial that was ever made for it.

    Example:

        kpt-tune show 3f2a91c0
    """
    matching = of_id(entries(db), id)
    key = matching[0].key
    with Store(db, read_only=True) as store:
        trials = store.trials(key)
    if json:
        output.as_json(
            {
                "entries": [output.entry_dict(entry) for entry in matching],
                "trials": [
                    {
                        "config": dict(t.trial.config),
                        "outcome": t.trial.outcome,
                        "microseconds": t.trial.microseconds,
                        "reference_microseconds": t.trial.reference_microseconds,
                        "detail": t.trial.detail,
                        "environment": t.environment,
                        "date": t.date,
                    }
                    for t in trials
                ],
            }
        )
        return
    output.table(("", ""), [(name, _flat(value)) for name, value in key.to_dict().items()])
    for entry in matching:
        output.table(
            ("", ""),
            [
                ("winner", entry.config),
                ("known", entry.known),
                ("at", output.extents(entry)),
                *entry.environment,
                ("date", entry.date),
            ],
        )
    output.table(
        ("config", "outcome", "µs", "first µs", "detail", "date"),
        [
            (
                t.trial.config,
                t.trial.outcome,
                output.microseconds(t.trial.microseconds),
                output.microseconds(t.trial.reference_microseconds),
                t.trial.detail,
                t.date,
            )
            for t in trials
        ],
        numbers=("µs", "first µs"),
    )


def entries(db: str | None) -> list[Entry]:
    """Every winner; none where there is no database yet. Raises StoreError for one that cannot be read.

    What of it cannot be read is told on standard error.
    """
    if not is_made(db):
        return []
    with Store(db, read_only=True) as store:
        found = store.entries()
    if missing := unreadable(store):
        print(f"kpt-tune: {store.shown}: {missing} left out; see `kpt-tune doctor`", file=sys.stderr)
    return found


def is_made(db: str | None) -> bool:
    """Whether there is a database, or whatever stands in its place: a server is taken to be there."""
    path = path_of(db or location())
    return path is None or os.path.lexists(path)


def of_id(found: list[Entry], id: str) -> list[Entry]:  # noqa: A002
    """The entries of the one key whose id begins so. Raises InputError where there is none, or more."""
    matching = [entry for entry in found if entry.key.digest.startswith(id.lower())]
    keys = {entry.key.digest for entry in matching}
    if len(keys) != 1:
        what = "no entry has" if not keys else f"{len(keys)} keys have"
        raise InputError(f"{what} an id that begins with {id!r}; `kpt-tune list` shows the ids")
    return matching


def unreadable(store: Store) -> str:
    """What a store came upon and could not read, in words; "" for nothing."""
    rows = f"{len(store.damaged)} damaged rows" if store.damaged else ""
    return ", ".join(filter(None, (rows, f"what lies on damaged pages ({store.lost})" if store.lost else "")))


def select(found: list[Entry], kernel: str | None, device: str | None) -> list[Entry]:
    """The entries whose kernel's and device's names contain these words."""
    return [
        entry
        for entry in found
        if (kernel or "").lower() in entry.key.kernel.lower() and (device or "").lower() in entry.key.device.lower()
    ]


def _row(entry: Entry) -> tuple[object, ...]:
    speedup = (
        "" if not (entry.microseconds and entry.first_microseconds) else entry.first_microseconds / entry.microseconds
    )
    return (
        entry.key.digest[:ID_LENGTH],
        entry.key.title,
        entry.key.device,
        entry.config,
        output.microseconds(entry.microseconds),
        output.extents(entry),
        f"{speedup:.2f}" if speedup else "",
        entry.known,
        entry.date[:10],
    )


def _flat(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={part}" for name, part in value.items())
    return str(value)
