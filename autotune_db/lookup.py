"""Which config an instance runs with, and how that is known. What dispatch calls.

The order: explicit argument, overlay, user's database (what was measured here, then what was imported), shipped, predicted,
nearest sibling, first config. A prediction never goes before a measurement. Only reads, and only local files, once a process;
imports neither Optuna nor SQLAlchemy; what is wrong with a file is said once through the logger ``kpt`` and the next source is
asked.
"""

import itertools
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from autotune_db import environment, shipped, snapshot
from autotune_db.entry import IMPORTED, Entry
from autotune_db.key import Key, key_of
from autotune_db.location import VARIABLE, local_file, without_secrets
from autotune_db.overlays import overlaid
from autotune_db.sibling import difference, distance, likeness
from autotune_db.winners import Item, Winners
from kpt_dsl import classes, configs
from kpt_dsl.buckets import exact_dims
from kpt_dsl.errors import ConfigError, StoreError
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config, Space, space
from kpt_dsl.targets import Target

Provenance = Literal["argument", "overlay", "measured", "imported", "shipped", "predicted", "rule"]

_OF_USER: dict[str, Provenance] = {
    "measured": "measured",
    "predicted": "predicted",
    IMPORTED + "measured": "imported",
    IMPORTED + "predicted": "predicted",
}
_SHIPPED: dict[str, Provenance] = {"measured": "shipped", "predicted": "predicted"}
"""How an entry is known -> what that is called in an answer."""

_MOST_ALIKE = 8
"""How many neighbours are looked at for each that is wanted: several often have the same config."""

_log = logging.getLogger("kpt")
_lock = threading.Lock()
_read: dict[Path | str, Winners] = {}
"""The user's file by its path, shipped files by their target's name."""


@dataclass(frozen=True)
class Answer:
    """A config and its provenance. ``sibling`` says in what the entry's key differs from the instance's (empty: in nothing)."""

    config: Config
    provenance: Provenance
    entry: Entry | None = None
    sibling: str = ""

    @property
    def source(self) -> str:
        """The provenance in words: ``measured``, ``shipped (sibling: M=2049..4096)``."""
        return f"{self.provenance} (sibling: {self.sibling})" if self.sibling else self.provenance


def choose(instance: Instance, target: Target, config: Config | None = None) -> Answer:
    """The config for an instance on a target. ``config``, an explicit argument, goes first.

    Raises ConfigError where the explicit or the overlaid config is illegal, never because of a database.
    """
    for given, provenance in ((config, "argument"), (overlaid(instance.kernel), "overlay")):
        if given is not None:
            if why := space(instance, target).why_illegal(given):
                raise ConfigError(
                    f"{instance} on {target.name}: config ({given}) from the {provenance} is illegal: {why}"
                )
            return Answer(given, provenance)  # type: ignore[arg-type]
    return _of_instance(instance, target, environment.device_name(target))


def provider(instance: Instance, target: Target) -> tuple[Config, str]:
    """``choose`` as ``kpt_dsl`` asks for it, through the entry-point group ``kpt.configs``: a config and its source."""
    answer = choose(instance, target)
    return answer.config, answer.source


def use(place: str | Path) -> None:
    """From now on this database, for this process and those that it starts: what ``KPT_DB`` does."""
    os.environ[VARIABLE] = str(place)
    forget()


def forget() -> None:
    """Read the database and the shipped files anew at the next look-up: after tuning in the same process."""
    with _lock:
        _read.clear()
    _of_instance.cache_clear()
    _of_class.cache_clear()
    configs.changed()


def neighbours(instance: Instance, target: Target, most: int) -> list[Config]:
    """Configs of entries near an instance, the nearest first: where a search does well to begin."""
    device = environment.device_name(target)
    wanted = key_of(instance, device, target.backend, environment.compiler(target.backend))
    legal = classes.options(instance, target)
    near = _siblings(wanted, exact_dims(instance.lower({})), legal, _user(), _shipped(target))
    different = dict.fromkeys(answer.config for answer in itertools.islice(near, _MOST_ALIKE * most))
    return list(different)[:most]


@lru_cache(maxsize=8192)
def _of_instance(instance: Instance, target: Target, device: str) -> Answer:
    return _of_class(classes.options(instance, target), device)


@lru_cache(maxsize=8192)
def _of_class(legal: Space, device: str) -> Answer:
    instance, target = legal.sample, legal.target
    wanted = key_of(instance, device, target.backend, environment.compiler(target.backend))
    user, ours = _user(), _shipped(target)
    for winners, provenance, known in (
        (user, "measured", "measured"),
        (user, "imported", IMPORTED + "measured"),
        (ours, "shipped", "measured"),
        (user, "predicted", "predicted"),
        (user, "predicted", IMPORTED + "predicted"),
        (ours, "predicted", "predicted"),
    ):
        for key in _same_device(wanted, winners, target):
            entry = winners.get(key.digest, known)
            if entry and (config := _fitting(entry, legal)):
                return Answer(config, provenance, entry)  # type: ignore[arg-type]
    near = next(_siblings(wanted, exact_dims(instance.lower({})), legal, user, ours), None)
    return near or Answer(legal.first, "rule")


def _same_device(wanted: Key, winners: Winners, target: Target) -> Iterator[Key]:
    """The key itself; for a target that is not present, or a prediction, under the names of its devices also."""
    yield wanted
    if wanted.device != target.name:
        yield replace(wanted, device=target.name)
        return
    for device in sorted(winners.devices(wanted.kernel)):
        if device != target.name and environment.is_of_target(device, target):
            yield replace(wanted, device=device)


def _fitting(entry: Entry, legal: Space) -> Config | None:
    """The config of an entry in the words of a space, None where it is illegal there.

    Where one space has a choice, a schedule, that the other does not have, its name comes or goes; the program is the same.
    """
    config = legal.canonical(entry.config)
    return None if legal.why_illegal(config) else config


def _siblings(wanted: Key, exact: frozenset[str], legal: Space, user: Winners, ours: Winners) -> Iterator[Answer]:
    """Siblings whose config is legal here, the nearest first; of equally near ones the user's own, then what was imported."""
    found: list[tuple[float, bool, Item, Provenance, bool, bool]] = []
    like = likeness(wanted.to_dict(), exact)
    for winners, provenance in ((user, _OF_USER), (ours, _SHIPPED)):
        for theirs, item in winners.relatives(wanted.kernel, like.family, exact):
            if item.known in provenance and environment.is_of_target(item.device, legal.target):
                same = item.device == wanted.device or wanted.device == legal.target.name
                predicted = item.known.endswith("predicted")
                away = distance(like, theirs, predicted, same)
                if away is not None:
                    imported = item.known.startswith(IMPORTED)
                    found.append((away, imported, item, provenance[item.known], predicted, same))
    for _, _, item, known_from, predicted, same in sorted(found, key=lambda one: one[:2]):
        if (entry := item.entry) and (config := _fitting(entry, legal)):
            yield Answer(config, known_from, entry, difference(wanted, entry.key, predicted, same))


# ------------------------------------------------------------------ files, read once
def _user() -> Winners:
    path = local_file()
    if path is None:
        return Winners()
    with _lock:
        if path not in _read:
            winners, trouble = snapshot.read(path)
            if trouble:
                shown = without_secrets(str(path), str(path))  # a URL with a slash too few is a path
                _log.warning("config database %s is left out: %s; see `kpt-tune doctor`", shown, trouble)
            _read[path] = winners
        return _read[path]


def _shipped(target: Target) -> Winners:
    with _lock:
        if target.name not in _read:
            try:
                entries = shipped.load(target.name)
            except StoreError as error:
                _log.warning("shipped configs are left out: %s", error)
                entries = []
            _read[target.name] = Winners(map(shipped.Shipped, entries))
        return _read[target.name]
