"""Tuning a key on the device that is here: search, verify, and a final round against the first config.

Candidates compile in parallel processes and are timed in one; what a candidate breaks costs that candidate only. Ctrl-C ends
the search, and what it found goes through the rest. The winner is never worse than the first config in the final round.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext

from autotune_db import bench, environment, jobs, lookup
from autotune_db.bench import START_SECONDS, Bench, Seat
from autotune_db.budget import Budget
from autotune_db.crew import Crew, Reply
from autotune_db.jobs import COMPILE_SECONDS
from autotune_db.key import key_of
from autotune_db.ledger import Ledger, Watch
from autotune_db.result import Result
from autotune_db.search import Search
from autotune_db.store import Store
from autotune_db.trial import Trial
from autotune_db.workshop import Workshop
from kpt_dsl import classes
from kpt_dsl.errors import CompileError, InputError, MissingPackageError
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config
from kpt_dsl.targets import Target

TIME_SECONDS = 30.0
"""For timing one candidate; a hang is noticed after so long."""

VERIFY_SECONDS = 120.0
FINAL_SECONDS = 3.0
"""Of launches in the final round, all finalists together."""

FINALISTS = 4
MARGIN = 0.005
"""By how much a winner must beat the first config: less is noise, and a tie goes to the rule."""

_POLL_SECONDS = 0.02


def tune(
    instance: Instance,
    target: Target,
    store: Store | None,
    *,
    budget: Budget,
    warm: Iterable[Config] = (),
    seed: int = 0,
    device: int = 0,
    workshop: Workshop | None = None,
    watch: Watch | None = None,
) -> Result:
    """Find the best config of an instance on device number ``device``, which is of this target.

    ``warm``: configs to try early. ``workshop``: that of several calls; by default each has its own. Raises InputError for a
    instance without elements, CompileError where nothing runs.
    """
    if empty := [dim for dim, extent in instance.extents.dims if extent == 0]:
        raise InputError(f"{instance}: {', '.join(empty)} is 0, so there is nothing to time")
    environment.look_for_devices()
    key = key_of(instance, environment.device_name(target), target.backend, environment.compiler(target.backend))
    ledger = Ledger(store, key, "measured", environment.describe(target), watch)
    first, *others = classes.options(instance, target).firsts
    with nullcontext(workshop) if workshop else Workshop() as shop:
        search = Search(classes.options(instance, target), seed, [first, *others, *warm], ledger.dangerous() - {first})
        seat = Seat(Bench, instance, target.name, device, seed)
        hunt = _Hunt(seat, first, search, ledger, shop)
        interrupted = False
        try:
            try:
                hunt.run(budget)
            except KeyboardInterrupt:
                interrupted = True
            hunt.finish()
            if interrupted and ledger.best is None:  # nothing to keep, and no fault of any config
                raise KeyboardInterrupt
            winner, times = _final(shop.timer, seat, first, ledger)
        finally:
            shop.clear()
    microseconds, first_microseconds = times.get(winner), times.get(first)
    ledger.win(winner, microseconds, first_microseconds, instance.extents.dims)
    lookup.forget()
    return Result(
        key=key,
        origin="measured",
        config=winner,
        first=first,
        microseconds=microseconds,
        first_microseconds=first_microseconds,
        trials=tuple(ledger.trials),
        seconds=budget.spent(),
        interrupted=interrupted,
        unsaved=ledger.trouble,
    )


class _Hunt:
    """The search under way: configs that compile, that wait for the first one's time, and that are being timed."""

    def __init__(self, seat: Seat, first: Config, search: Search, ledger: Ledger, shop: Workshop) -> None:
        self._seat, self._first = seat, first
        self._search, self._ledger = search, ledger
        self._compilers, self._timer = shop.compilers, shop.timer
        self._reference: Config | None = None
        self._held: list[Config] | None = []
        self._under_way = 0

    def run(self, budget: Budget) -> None:
        """Until the budget is spent or nothing is left to try."""
        exhausted = False
        # Its arrays are made while the first configs compile.
        self._timer.submit(self._seat, bench.take, self._seat, seconds=START_SECONDS)
        while True:
            while not exhausted and self._under_way < 2 * self._compilers.size:
                if budget.over(len(self._ledger.trials) + self._under_way):
                    break
                config = self._search.ask()
                exhausted = config is None
                if config is not None:
                    self._compilers.submit(
                        config, jobs.compile_one, self._seat.instance, self._seat.target, config, seconds=COMPILE_SECONDS
                    )
                    self._under_way += 1
            # Even a budget that is too short for anything else times the first config.
            if not self._under_way or (budget.spent() >= budget.seconds and self._held is None):
                return
            for reply in self._compilers.collect(_POLL_SECONDS):
                self._compiled(reply)
            for reply in self._timer.collect(_POLL_SECONDS):
                self._timed(reply)

    def finish(self) -> None:
        """What is being timed is timed to its end; what is not is dropped."""
        for trial in jobs.given_up(self._compilers.abandon()):
            self._ledger.add(trial)
        self._timer.drop_waiting()
        while self._timer.unfinished:
            for reply in self._timer.collect(_POLL_SECONDS):
                self._timed(reply)

    def _compiled(self, reply: Reply) -> None:
        config = reply.job
        assert isinstance(config, Config)
        if reply.failure:
            self._ended(jobs.failed(config, reply))
        elif reply.value.spills and config != self._first:
            self._ended(Trial(config, "rejected", detail=f"{reply.value.spills} spills"))
        elif config != self._first and self._held is not None:
            self._held.append(config)
        else:
            self._time(config)

    def _time(self, config: Config) -> None:
        reference = self._first if config == self._first else self._reference
        self._timer.submit(config, bench.at, self._seat, Bench.time, config, reference, seconds=TIME_SECONDS)

    def _timed(self, reply: Reply) -> None:
        config = reply.job
        if config == self._seat:
            if reply.kind == "MissingPackageError":
                raise MissingPackageError(reply.detail)
            if reply.failure:
                raise CompileError(f"the process that times configs cannot start: {reply.detail}")
            return
        assert isinstance(config, Config)
        if reply.failure:
            self._ended(jobs.failed(config, reply))
        else:
            if config == self._first:
                self._reference = config
            taken, reference = reply.value
            self._ended(Trial(config, "timed", taken, reference))

    def _ended(self, trial: Trial) -> None:
        self._under_way -= 1
        self._ledger.add(trial)
        self._search.tell(trial.config, trial.cost if trial.outcome == "timed" else None)
        if trial.config == self._first:
            held, self._held = self._held or [], None
            for config in held:
                self._time(config)


def _final(timer: Crew, seat: Seat, first: Config, ledger: Ledger) -> tuple[Config, dict[Config, float]]:
    """The winner and the times of the final round, among the cheapest configs that compute the right thing."""
    ledger.enter("verify")
    timed = sorted((t for t in ledger.trials if t.outcome == "timed"), key=lambda t: t.cost)
    right: list[Config] = []
    # The first config is verified before all others: it is what they must beat.
    for config in sorted((t.config for t in timed), key=lambda c: c != first):
        if len(right) > FINALISTS:
            break
        reply = _ask(timer, seat, Bench.wrong, config, seconds=VERIFY_SECONDS)
        if reply.failure:
            ledger.add(jobs.failed(config, reply))
        elif reply.value:
            ledger.add(Trial(config, "wrong result", detail=reply.value))
        else:
            right.append(config)
    ledger.enter("final")
    while right:
        reply = _ask(timer, seat, Bench.compare, right, FINAL_SECONDS, seconds=TIME_SECONDS + 10 * FINAL_SECONDS)
        if not reply.failure:
            times = dict(zip(right, reply.value, strict=True))
            winner = min(right, key=lambda c: times[c] * (1 - MARGIN if c == first else 1))
            return winner, times
        right.pop()  # the last one is the most expendable
    raise CompileError(f"no config of {ledger.key.title} runs correctly; the first said: {_first_trouble(ledger)}")


def _ask(timer: Crew, seat: Seat, method: Callable[..., object], *arguments: object, seconds: float) -> Reply:
    timer.submit("final", bench.at, seat, method, *arguments, seconds=seconds)
    while not (replies := timer.collect(seconds)):
        pass
    return replies[0]


def _first_trouble(ledger: Ledger) -> str:
    return next((f"{t.outcome}: {t.detail}" for t in ledger.trials if t.detail), "nothing was timed")
