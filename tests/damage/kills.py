"""A process that writes is killed at random moments: what it was told is stored is there, and an import whole or not at all."""

import json
import os
import random
import signal
import sqlite3
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from autotune_db import snapshot
from autotune_db.entry import Entry
from autotune_db.store import Store
from autotune_db.trial import Trial
from kpt_dsl.space import Config
from tests.autotune_db import instances
from tests.autotune_db.entries import add, entry

BATCH = 30
"""Entries of an import."""

FRESH = 50
"""After so many kills there is a new database, so that some come while tables are made."""

LONGEST_SECONDS = 0.5


@dataclass
class Figures:
    """``stored``: entries that a writer was told are stored; ``faults`` has a line for each that is not there."""

    kills: int = 0
    stored: int = 0
    imports: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def try_all(count: int, seed: int) -> Figures:
    """Kill so many writers."""
    chance, figures, started = random.Random(seed), Figures(), time.monotonic()
    pattern = entry(instances.softmax())
    with tempfile.TemporaryDirectory(prefix="kpt-kills-") as name:
        for kill in range(count):
            path = Path(name) / f"{kill // FRESH}.sqlite"
            told = _killed(path, pattern, kill, chance.random() * LONGEST_SECONDS)
            figures.kills += 1
            figures.faults += [f"kill {kill}: {fault}" for fault in _missing(path, pattern, told, figures)]
    figures.seconds = time.monotonic() - started
    return figures


def _key(pattern: Entry, kind: str, kill: int, number: int) -> Entry:
    return replace(pattern, key=replace(pattern.key, source=f"{kind}-{kill}-{number}"))


def _killed(path: Path, pattern: Entry, kill: int, seconds: float) -> list[tuple[str, int, int]]:
    """What a writer, killed after so many seconds, had been told is stored: kind, kill and number of each entry."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _write(path, pattern, kill, writing)
    os.close(writing)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reading) as file:
        lines = [line.split() for line in file.read().splitlines(keepends=True) if line.endswith("\n")]
    return [(kind, kill, int(number)) for kind, number in lines]


def _write(path: Path, pattern: Entry, kill: int, told: int) -> None:
    try:
        with Store(str(path)) as store:
            for number in range(10_000):
                one = _key(pattern, "own", kill, number)
                add(store, one)
                os.write(told, f"own {number}\n".encode())
                store.add_trial(store.start_run(one.key, "measured", {}), Trial(Config(a=number), "timed", 1.0))
                store.add_imported([_key(pattern, f"import{number}", kill, n) for n in range(BATCH)])
                os.write(told, f"import{number} {BATCH}\n".encode())
    finally:
        os._exit(1)


def _missing(path: Path, pattern: Entry, told: list[tuple[str, int, int]], figures: Figures) -> list[str]:
    winners, trouble = snapshot.read(path)
    faults = [f"not read: {trouble}"] if trouble and told else []
    for kind, kill, number in told:
        wanted = range(number) if kind != "own" else (number,)
        known = "measured" if kind == "own" else "imported measured"
        figures.stored += len(wanted)
        lost = [n for n in wanted if not winners.get(_key(pattern, kind, kill, n).key.digest, known)]
        faults += [f"{len(lost)} entries of {kind} {number} are lost"] if lost else []
        figures.imports += kind != "own"
    if told:
        connection = sqlite3.connect(path)
        (sound,) = connection.execute("PRAGMA integrity_check").fetchone()
        faults += [f"damaged: {sound}"] if sound != "ok" else []
        sizes = Counter(json.loads(body)["source"].rpartition("-")[0] for (body,) in connection.execute(_IMPORTED))
        faults += [f"{size} of {BATCH} entries of {batch}" for batch, size in sizes.items() if size != BATCH]
        connection.close()
    return faults


_IMPORTED = "SELECT k.body FROM kpt_winners w JOIN kpt_keys k ON k.id = w.key_id WHERE w.origin = 'imported measured'"
