"""Which config to try next: Optuna's TPE over the knobs of a space, asked and told, in memory.

A config is asked for once only; what is illegal is never asked for. Knows nothing of devices and time.
"""

import random
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution

from kpt_dsl.space import Config, Space

RANDOM_TRIALS = 10
"""Before TPE models anything."""

PATIENCE = 64
"""Repeats and illegal points in a row until TPE is taken to have no more to say."""

LISTED = 50_000
"""Spaces up to this size are listed once, to find what has not been tried."""


class Search:
    """The state of one search.

    ``warm``: configs to try first, in order; the illegal ones among them are passed over. ``without``: configs never to try.
    """

    def __init__(
        self, space: Space, seed: int, warm: Iterable[Config] = (), without: Collection[Config] = frozenset()
    ) -> None:
        self._space = space
        self._names = tuple(space.knobs)
        self._random = random.Random(seed)
        self._seen: dict[Config, float | None] = dict.fromkeys(without)
        self._asked: dict[Config, optuna.trial.Trial] = {}
        self._untried: list[Config] | None = None
        self._warm = [c for c in dict.fromkeys(warm) if space.why_illegal(c) is None]
        self._knobs: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(values) for name, values in space.knobs.items()
        }
        self._study = _study(self._knobs, seed)

    def ask(self) -> Config | None:
        """A legal config that was not asked for before; None where there is none left to find."""
        while self._warm:
            config = self._warm.pop(0)
            if config not in self._seen:
                return self._take(config, self._enqueued(config))
        for _ in range(PATIENCE):
            trial = self._study.ask(self._knobs)
            config = self._space.canonical({name: trial.params[name] for name in self._names})
            if config in self._seen:
                self._finish(trial, self._seen[config])
            elif self._space.why_illegal(config) is not None:
                self._finish(trial, None)
            else:
                return self._take(config, trial)
        rest = self._rest()
        return self._take(rest, self._enqueued(rest)) if rest else None

    def tell(self, config: Config, cost: float | None) -> None:
        """What a config that was asked for costs; None for one that does not run or is wrong."""
        self._seen[config] = cost
        self._finish(self._asked.pop(config), cost)

    def _take(self, config: Config, trial: optuna.trial.Trial) -> Config:
        self._seen[config] = None
        self._asked[config] = trial
        return config

    def _enqueued(self, config: Config) -> optuna.trial.Trial:
        self._study.enqueue_trial(dict(config))
        return self._study.ask(self._knobs)

    def _finish(self, trial: optuna.trial.Trial, cost: float | None) -> None:
        # TPE counts a pruned trial among the bad ones, and a failed one not at all.
        if cost is None:
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            self._study.tell(trial, cost)

    def _rest(self) -> Config | None:
        """A legal config that was not tried, at random, where the space is small enough to be listed."""
        if self._untried is None:
            self._untried = list(self._space) if self._space.size <= LISTED else []
            self._random.shuffle(self._untried)
        while self._untried:
            config = self._untried.pop()
            if config not in self._seen:
                return config
        return None


class _Sampler(optuna.samplers.TPESampler):
    """TPE over knobs that all trials have. To find out which those are, Optuna's compares all trials with each other for each
    one that is asked for, while some are under way: the first 40 configs of a product took 7.4 s, and take 2.6."""

    def __init__(self, knobs: Mapping[str, BaseDistribution], **options: Any) -> None:
        super().__init__(**options)
        self._knobs = {name: knobs[name] for name in sorted(knobs) if not knobs[name].single()}

    def infer_relative_search_space(self, *_: Any) -> dict[str, BaseDistribution]:
        return self._knobs


def _study(knobs: Mapping[str, BaseDistribution], seed: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = _Sampler(knobs, seed=seed, n_startup_trials=RANDOM_TRIALS, multivariate=True, constant_liar=True)
    return optuna.create_study(sampler=sampler)
