"""An entry of the database: which config won for a key, how that is known, and where it was found out.

Plain data; knows no file format beyond dictionaries.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from autotune_db.key import Key
from kpt_dsl.space import Config

Origin = Literal["measured", "predicted"]
"""``measured``: timed on the device. ``predicted``: ranked by a model, without the device."""

ORIGINS: tuple[Origin, ...] = get_args(Origin)


@dataclass(frozen=True)
class Entry:
    """``microseconds`` of the winner and ``first_microseconds`` of the first config come from one interleaved round.

    Both are estimates of a model for a predicted entry, and may be absent. ``environment`` names device, driver and package
    versions; ``date`` is ISO 8601, UTC.
    """

    key: Key
    config: Config
    origin: Origin
    microseconds: float | None = None
    first_microseconds: float | None = None
    environment: tuple[tuple[str, str], ...] = ()
    date: str = ""
