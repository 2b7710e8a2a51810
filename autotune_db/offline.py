"""Tuning for a chip that is not here: compile candidates for it, reject what spills or does not fit, rank the rest by a model.

Only a short list of the space is compiled. What comes out is stored as predicted: tuning on the chip starts from that list, and
a measurement always goes before it.
"""

from collections.abc import Iterable
from contextlib import nullcontext

from autotune_db import environment, jobs, lookup, model
from autotune_db.budget import Budget
from autotune_db.crew import Reply
from autotune_db.jobs import COMPILE_SECONDS
from autotune_db.key import key_of
from autotune_db.ledger import Ledger, Watch
from autotune_db.result import Result
from autotune_db.shortlist import shortlist
from autotune_db.store import Store
from autotune_db.trial import Trial
from autotune_db.workshop import Workshop
from kpt_dsl import classes
from kpt_dsl.errors import CompileError
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config, Space
from kpt_dsl.targets import Target

COMPILED = 48
"""Configs that are compiled at most."""

PATIENCE = 0.25
"""Of the budget, how much a single config may be expected to take."""

_POLL_SECONDS = 0.2


def predict(
    instance: Instance,
    target: Target,
    store: Store | None,
    *,
    budget: Budget,
    warm: Iterable[Config] = (),
    seed: int = 0,
    workshop: Workshop | None = None,
    watch: Watch | None = None,
) -> Result:
    """The config of an instance that a model takes for the best on a target. Raises CompileError where nothing compiles."""
    key = key_of(instance, target.name, target.backend, environment.compiler(target.backend))
    ledger = Ledger(store, key, "predicted", environment.describe(target), watch)
    options = classes.options(instance, target)
    first = options.first
    without = ledger.dangerous() - {first}
    patience = min(PATIENCE * budget.seconds, COMPILE_SECONDS)
    waiting = shortlist(options, [*options.firsts, *warm], without, min(COMPILED, budget.trials), patience, seed)
    interrupted = False
    with nullcontext(workshop) if workshop else Workshop() as shop:
        compilers = shop.compilers
        try:
            while waiting or compilers.unfinished:
                over = budget.over(len(ledger.trials)) and ledger.best
                if over:
                    for trial in jobs.given_up(compilers.abandon()):
                        ledger.add(trial)
                    break
                while waiting and compilers.unfinished < 2 * compilers.size:
                    config = waiting.pop(0)
                    compilers.submit(config, jobs.compile_one, instance, target.name, config, seconds=COMPILE_SECONDS)
                for reply in compilers.collect(_POLL_SECONDS):
                    ledger.add(_judged(options, reply))
        except KeyboardInterrupt:
            interrupted = True
        finally:
            shop.clear()
    times = {t.config: t.microseconds for t in ledger.trials if t.outcome == "predicted" and t.microseconds}
    if interrupted and not times:
        raise KeyboardInterrupt
    if not times:
        trouble = next((f"{t.outcome}: {t.detail}" for t in ledger.trials), "nothing was compiled")
        raise CompileError(f"no config of {key.title} can run on {target.name}; the first said: {trouble}")
    winner = min(times, key=lambda c: (times[c], c != first))
    ledger.win(winner, times[winner], times.get(first), instance.extents.dims)
    lookup.forget()
    return Result(
        key=key,
        origin="predicted",
        config=winner,
        first=first,
        microseconds=times[winner],
        first_microseconds=times.get(first),
        trials=tuple(ledger.trials),
        seconds=budget.spent(),
        interrupted=interrupted,
        unsaved=ledger.trouble,
    )


def _judged(options: Space, reply: Reply) -> Trial:
    config = reply.job
    assert isinstance(config, Config)
    if reply.failure:
        return jobs.failed(config, reply)
    if reason := model.misfit(options, reply.value):
        return Trial(config, "rejected", detail=reason)
    microseconds = model.seconds(options, config, reply.value) * 1e6
    return Trial(config, "predicted", microseconds, detail=model.held(options, config, reply.value))
