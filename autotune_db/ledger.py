"""The trials of one tuning as they come in: kept in memory, written to the database at once, shown to whoever watches.

A database that fails does not end a tuning: what could not be written is kept and tried again with the winner.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from autotune_db.entry import Extents, Origin
from autotune_db.key import Key
from autotune_db.store import Run, Store
from autotune_db.trial import Trial
from kpt_dsl.errors import StoreError
from kpt_dsl.space import Config


@dataclass(frozen=True)
class Progress:
    """A moment of a tuning: how many trials have ended, and the best of them. ``stage``: search, verify, final."""

    stage: str
    trials: int
    best: Trial | None


Watch = Callable[[Progress], None]


class Ledger:
    """Trials of one key. ``trouble`` says why the database lacks something of it; "" when it lacks nothing."""

    def __init__(
        self, store: Store | None, key: Key, origin: Origin, environment: Mapping[str, str], watch: Watch | None = None
    ) -> None:
        self.trials: list[Trial] = []
        self.trouble = ""
        self.key = key
        self._store, self._origin, self._environment = store, origin, environment
        self._watch = watch
        self._run: Run | None = None
        self._unwritten: list[Trial] = []
        self._stage = "search"

    def add(self, trial: Trial) -> None:
        """A trial that has ended."""
        self.trials.append(trial)
        self._unwritten.append(trial)
        if not self.trouble:
            self._write()
        self._show()

    def enter(self, stage: str) -> None:
        """The tuning goes on to its next stage."""
        self._stage = stage
        self._show()

    def win(
        self, config: Config, microseconds: float | None, first_microseconds: float | None, extents: Extents
    ) -> None:
        """The end: the config that won, and the extents of all trials."""
        self._write()
        if self._store and self._run and not self.trouble:
            try:
                self._store.add_winner(self._run, config, microseconds, first_microseconds, extents)
            except StoreError as error:
                self.trouble = str(error)

    def dangerous(self) -> set[Config]:
        """Configs that crashed or hung a process before, in this very environment: to try them again costs as much again."""
        if self._store is None:
            return set()
        try:
            earlier = self._store.trials(self.key)
        except StoreError as error:
            self.trouble = str(error)
            return set()
        alike = [t.trial for t in earlier if t.environment == dict(self._environment)]
        return {trial.config for trial in alike if trial.outcome in ("crash", "timeout")}

    @property
    def best(self) -> Trial | None:
        """The cheapest trial that ran, or was predicted."""
        ran = [t for t in self.trials if t.outcome in ("timed", "predicted")]
        return min(ran, key=lambda t: t.cost, default=None)

    def _write(self) -> None:
        if self._store is None:
            return
        try:
            if self._run is None:
                self._run = self._store.start_run(self.key, self._origin, self._environment)
            while self._unwritten:
                self._store.add_trial(self._run, self._unwritten[0])
                self._unwritten.pop(0)
            self.trouble = ""
        except StoreError as error:
            self.trouble = str(error)

    def _show(self) -> None:
        if self._watch:
            self._watch(Progress(self._stage, len(self.trials), self.best))
