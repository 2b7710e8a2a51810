"""Where the config of an instance comes from when the caller gives none.

``kpt_dsl`` knows no config database. A package that has one offers a *provider* through an entry point of the group
``kpt.configs``; without one, or where it has no answer, the first config by rule is used.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, lru_cache

from kpt_dsl import classes
from kpt_dsl.extensions import entry_points
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config
from kpt_dsl.targets import Target

RULE = "rule"
"""Provenance of a config that nobody measured: the space's first."""

Provider = Callable[[Instance, Target], tuple[Config, str] | None]
"""Gives a config of an instance on a target and its provenance ("measured", "shipped", …), or None where it knows nothing. Must
not raise."""


_numbers = itertools.count(1)
_latest = 0
_within: ContextVar[int] = ContextVar("kpt_configs_scope", default=0)


def generation() -> tuple[int, int]:
    """Changes whenever ``choose`` may answer otherwise than before: who remembers its answers, remembers them by this."""
    return _latest, _within.get()


def changed() -> None:
    """For providers: answers of this process may be others from now on."""
    global _latest
    _latest = next(_numbers)


@contextmanager
def scope() -> Iterator[None]:
    """For providers: answers may be others within the block, in this thread or task."""
    token = _within.set(next(_numbers))
    try:
        yield
    finally:
        _within.reset(token)


@cache
def providers() -> tuple[Provider, ...]:
    """The providers of installed packages, found once."""
    return tuple(entry.load() for entry in entry_points(group="kpt.configs"))


def choose(instance: Instance, target: Target) -> tuple[Config, str]:
    """The config for an instance on a target, and where it comes from. Raises TargetError where no config is legal."""
    for provider in providers():
        answer = provider(instance, target)
        if answer is not None:
            return answer
    return _by_rule(instance, target), RULE


@lru_cache(maxsize=4096)
def _by_rule(instance: Instance, target: Target) -> Config:
    return classes.options(instance, target).first
