"""Damaged databases: dispatch answers as if there were none, at once, and the command says in a line what is wrong."""

import contextlib
import io
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from autotune_db import location, lookup
from autotune_db.store import Store
from autotune_db.trial import Trial
from kpt_dsl import targets
from kpt_dsl.space import Config
from tests.autotune_db import instances
from tests.autotune_db.entries import add, entry
from tests.damage.ways import BYTES, ONCE, ROWS, Way

MOST_SECONDS = 20.0
"""For any one thing that is asked of a damaged database; on an idle machine it takes a hundredth."""

COMMANDS = (("list",), ("list", "--json"), ("export",), ("doctor",), ("show", "0"), ("remove", "--damaged"))


@dataclass
class Figures:
    """What came of it; ``faults`` has a line for each thing that went wrong."""

    databases: int = 0
    asked: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def try_all(count: int, seed: int, commands: bool = True) -> Figures:
    """Damage so many databases and ask dispatch and every command about each."""
    chance = random.Random(seed)
    figures, started = Figures(), time.monotonic()
    target, instance = targets.get("nvidia-h200"), instances.softmax()
    with tempfile.TemporaryDirectory(prefix="kpt-damage-") as name, _place():
        whole = _sound(Path(name) / "whole.sqlite")
        lookup.choose(instance, target)  # what is slow the first time is not the database's doing
        for number, (title, way) in enumerate(_ways(count, chance)):
            folder = Path(name) / str(number)
            path = folder / "c.sqlite"
            folder.mkdir()
            shutil.copy(whole, path)
            rows = way(path, chance)
            os.environ[location.VARIABLE] = str(path)
            lookup.forget()
            figures.databases += 1
            _ask(figures, f"{title}: dispatch", lambda: str(lookup.choose(instance, target)))
            if rows:
                _ask(figures, f"{title}: {rows} rows", partial(_count, rows))
            for words in COMMANDS if commands else ():
                _ask(figures, f"{title}: kpt-tune {' '.join(words)}", partial(_command, words))
            shutil.rmtree(folder, ignore_errors=True)  # of links themselves: what they lead to is the machine's own
    figures.seconds = time.monotonic() - started
    return figures


def _ways(count: int, chance: random.Random) -> Iterator[tuple[str, Way]]:
    """Each way that is the same each time once, if there is room; the rest is chance."""
    once = list(ONCE.items())
    by_chance = max(count - len(once), count // 4)
    yield from chance.sample(once, count - by_chance)
    yield from (list(BYTES.items())[n % len(BYTES)] for n in range(by_chance))


def _sound(path: Path) -> Path:
    with Store(str(path)) as store:
        for width in range(ROWS):
            one = entry(instances.softmax(N=8 + width))
            add(store, one)
            run = store.start_run(one.key, "measured", {"driver": "1"})
            store.add_trial(run, Trial(Config(block_M=width), "timed", 1.5, 2.5))
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return path


def _count(rows: int) -> str:
    with Store(read_only=True) as store:
        found = len(store.entries())
    assert found >= rows, f"{found} of {rows} entries are left"
    return ""


def _command(words: tuple[str, ...]) -> str:
    from kpt.cli import main

    shown, before = io.StringIO(), sys.argv
    sys.argv = ["kpt-tune", *words]
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            main()
    except SystemExit:
        pass
    finally:
        sys.argv = before
    return shown.getvalue()


def _ask(figures: Figures, title: str, question: Callable[[], str]) -> None:
    figures.asked += 1
    try:
        with _alarm():
            answer = question()
        if "Traceback" in answer:
            figures.faults.append(f"{title}: a traceback")
    except Exception as error:
        figures.faults.append(f"{title}: {type(error).__name__}: {str(error)[:200]}")


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    """Ends what waits: opening a pipe, say. What a test runner has set goes on afterwards."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"no answer in {MOST_SECONDS:g} s")

    handler, timer = signal.signal(signal.SIGALRM, ring), signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)


@contextlib.contextmanager
def _place() -> Iterator[None]:
    before = os.environ.get(location.VARIABLE)
    try:
        yield
    finally:
        os.environ.pop(location.VARIABLE)
        if before is not None:
            os.environ[location.VARIABLE] = before
        lookup.forget()
