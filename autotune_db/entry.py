"""An entry of the database: which config won for a key, how that is known, and where it was found out.

Plain data; knows no file format beyond dictionaries. What comes from a file is believed only as far as it was looked at.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast, get_args

from autotune_db.key import Key, is_word
from kpt_dsl.errors import ConfigError, StoreError
from kpt_dsl.space import Config

Origin = Literal["measured", "predicted"]
"""``measured``: timed on the device. ``predicted``: ranked by a model, without the device."""

ORIGINS: tuple[Origin, ...] = get_args(Origin)

IMPORTED = "imported "
"""Before the origin of what was found out elsewhere, as it is stored: one's own stands beside it, and goes first."""

Extents = tuple[tuple[str, int], ...]
"""Of every dim of a key, in its order; () where they are not known."""

_LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Entry:
    """``microseconds`` of the winner and ``first_microseconds`` of the first config come from one interleaved round.

    Both are estimates of a model for a predicted entry, and may be absent. ``environment`` names device, driver and package
    versions; ``date`` is ISO 8601, UTC. ``imported``: it came in a file, from another machine as a rule. ``extents``: what it
    was found out at, which an entry of an earlier kpt does not know.
    """

    key: Key
    config: Config
    origin: Origin
    microseconds: float | None = None
    first_microseconds: float | None = None
    environment: tuple[tuple[str, str], ...] = ()
    date: str = ""
    imported: bool = False
    extents: Extents = ()

    @property
    def known(self) -> str:
        """How it is known, as it is stored and shown: ``measured``, ``imported measured``."""
        return IMPORTED * self.imported + self.origin

    @classmethod
    def of(
        cls,
        key: Any,
        config: Any,
        known: Any,
        microseconds: Any = None,
        first_microseconds: Any = None,
        environment: Any = None,
        date: Any = "",
        extents: Any = None,
    ) -> "Entry":
        """An entry of plain data from outside: ``key`` as ``Key.to_dict`` gives it, ``known`` as above, ``extents`` by dim.

        Raises StoreError that names the first value which cannot be one of an entry.
        """
        origin = known.removeprefix(IMPORTED) if isinstance(known, str) else known
        if origin not in ORIGINS:
            raise StoreError(f"origin {str(known)[:80]!r} is not one of {', '.join(ORIGINS)}")
        for time in (microseconds, first_microseconds):
            if time is not None and not _is_time(time):
                raise StoreError(f"microseconds must be positive numbers, not {str(time)[:80]}")
        if not _is_date(date):
            raise StoreError(f"date {str(date)[:80]!r} is not one as 2026-01-02T03:04:05+00:00")
        about = {} if environment is None else environment
        if not isinstance(about, dict) or not all(is_word(part) for pair in about.items() for part in pair):
            raise StoreError(f"environment {str(about)[:80]} does not map names to strings of printable characters")
        whole = Key.from_dict(key)
        return cls(
            whole, _config(config), cast(Origin, origin), microseconds, first_microseconds,
            tuple(about.items()), date, origin != known, _extents(extents, whole),
        )  # fmt: skip


def _config(values: Any) -> Config:
    if not isinstance(values, Mapping):
        raise StoreError(f"config {str(values)[:80]} is not an object")
    try:
        config = Config(values)
    except ConfigError as error:
        raise StoreError(str(error)[:200]) from None
    for name, value in config.items():
        if not is_word(name) or not (is_word(value) if isinstance(value, str) else abs(value) <= _LARGEST):
            raise StoreError(f"config: {name[:80]!r} is {str(value)[:80]!r}, which no knob can be")
    return config


def _extents(values: Any, key: Key) -> Extents:
    if values is None:
        return ()
    spans = dict(key.shape)
    if not isinstance(values, dict) or values.keys() != spans.keys():
        raise StoreError(f"extents {str(values)[:80]} are not those of its dims: {', '.join(spans)[:80] or 'none'}")
    for dim, (low, high) in spans.items():
        extent = values[dim]
        if not isinstance(extent, int) or isinstance(extent, bool) or not low <= extent <= high:
            raise StoreError(f"extents: {dim} is {str(extent)[:80]!r}, which is no whole number in {spans[dim]}")
    return tuple((dim, values[dim]) for dim in spans)


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _is_date(value: Any) -> bool:
    try:
        return value == "" or (isinstance(value, str) and is_word(value) and bool(datetime.fromisoformat(value)))
    except ValueError:
        return False
