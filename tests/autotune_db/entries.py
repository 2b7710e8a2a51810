"""Entries for tests of storing and looking up."""

import sqlite3
from pathlib import Path
from typing import Any

from autotune_db import environment
from autotune_db.entry import Entry, Origin
from autotune_db.key import Key, key_of
from autotune_db.store import Store
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config
from tests.autotune_db import instances

H200 = "NVIDIA H200"


def key(instance: Instance | None = None, device: str = H200, compiler: str | None = None) -> Key:
    return key_of(instance or instances.softmax(), device, "triton", compiler or environment.compiler("triton"))


def entry(
    instance: Instance | None = None, config: Config | None = None, origin: Origin = "measured", **where: Any
) -> Entry:
    """An entry whose config, unless given, is legal for the instance on an H200."""
    instance = instance or instances.softmax()
    return Entry(
        key(instance, **where),
        config or Config(block_M=4, num_warps=4),
        origin,
        12.5,
        20.0,
        (("device", H200), ("driver", "570.0")),
        "2026-01-02T03:04:05+00:00",
        extents=instance.extents.dims,
    )


def add(store: Store, one: Entry) -> None:
    """Store an entry as a tuning of this machine's does."""
    run = store.start_run(one.key, one.origin, dict(one.environment), one.date)
    store.add_winner(run, one.config, one.microseconds, one.first_microseconds, one.extents)


def of_an_earlier_kpt(database: Path) -> None:
    """Makes a file what it was before entries had extents."""
    with sqlite3.connect(database) as connection:
        connection.execute("ALTER TABLE kpt_winners DROP COLUMN extents")


def stored(*found: Entry) -> None:
    """Put entries into the database of the test."""
    with Store() as store:
        for one in found:
            add(store, one)
