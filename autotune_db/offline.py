"""Tuning for a chip that is not here: compile candidates for it, reject what spills or does not fit, rank the rest by a model.

The space is ranked by its roofline before anything compiles; only the best of it is. What comes out is stored as predicted:
tuning on the chip starts from that short list, and a measurement always goes before it.
"""

import random
from collections.abc import Iterable
from contextlib import nullcontext

from autotune_db import environment, jobs, lookup, model
from autotune_db.budget import Budget
from autotune_db.crew import Reply
from autotune_db.jobs import COMPILE_SECONDS
from autotune_db.key import key_of
from autotune_db.ledger import Ledger, Watch
from autotune_db.result import Result
from autotune_db.store import Store
from autotune_db.trial import Trial
from autotune_db.workshop import Workshop
from kpt_dsl import classes
from kpt_dsl.errors import CompileError
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config, Space
from kpt_dsl.targets import Target

RANKED = 4096
"""Legal configs that are ranked by the roofline; larger spaces are sampled."""

COMPILED = 48
"""Of those, how many are compiled at most."""

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
    waiting = _shortlist(options, [*options.firsts, *warm], without, min(COMPILED, budget.trials), seed)
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


def _shortlist(options: Space, known: list[Config], without: set[Config], most: int, seed: int) -> list[Config]:
    """Known configs, then the best of the space by its roofline, each once; never those ``without``."""
    legal = [c for c in dict.fromkeys(known) if options.why_illegal(c) is None]
    ranked = sorted(_sample(options, seed), key=options.seconds)
    return [config for config in dict.fromkeys([*legal, *ranked]) if config not in without][:most]


def _sample(options: Space, seed: int) -> list[Config]:
    """Every legal config of a small space, as many at random of a large one."""
    if options.size <= RANKED:
        return list(options)
    chance = random.Random(seed)
    knobs = options.knobs
    found: dict[Config, None] = {}
    for _ in range(8 * RANKED):
        config = options.canonical({name: chance.choice(values) for name, values in knobs.items()})
        if options.why_illegal(config) is None:
            found[config] = None
        if len(found) >= RANKED:
            break
    return list(found)


def _judged(options: Space, reply: Reply) -> Trial:
    config = reply.job
    assert isinstance(config, Config)
    if reply.failure:
        return jobs.failed(config, reply)
    if reason := model.misfit(options, reply.value):
        return Trial(config, "rejected", detail=reason)
    return Trial(config, "predicted", model.seconds(options, config, reply.value) * 1e6)
