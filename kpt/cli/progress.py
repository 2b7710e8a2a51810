"""The progress bar of a tuning: time spent, trials, and the best so far. Drawn on standard error."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from autotune_db import ledger
from autotune_db.ledger import Watch


class Bar:
    """A line an instance. Where it is not shown it costs nothing."""

    def __init__(self, shown: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.fields[news]}", markup=False),
            console=Console(stderr=True),
            disable=not shown,
        )

    def of(self, title: str, seconds: float) -> Watch:
        """A new line; the watch that it gives keeps it up to date."""
        task = self._progress.add_task(title, total=seconds, news="compiling")

        def watch(now: ledger.Progress) -> None:
            self._progress.update(task, completed=self._elapsed(task), news=_news(now))

        return watch

    def _elapsed(self, task: TaskID) -> float:
        return next(t.elapsed or 0.0 for t in self._progress.tasks if t.id == task)

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()


class Count:
    """One line for so many things that are all alike: how many are done. Called with how many of how many."""

    def __init__(self, title: str, shown: bool) -> None:
        columns = TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn()
        self._progress = Progress(*columns, console=Console(stderr=True), disable=not shown)
        self._task = self._progress.add_task(title, total=None)

    def __call__(self, done: int, of: int) -> None:
        self._progress.update(self._task, completed=done, total=of)

    def __enter__(self) -> "Count":
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()


def _news(now: ledger.Progress) -> str:
    trials = f"{now.trials} trials"
    if now.best is None or now.best.microseconds is None:
        return f"{trials}, {now.stage}"
    return f"{trials}, {now.stage}, best {now.best.microseconds:.4g} µs: {now.best.config}"
