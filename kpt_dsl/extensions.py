"""What installed packages add to kpt: their entry points, read once a process, for that opens a file of every package."""

from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any


def entry_points(*, group: str, name: str = "") -> tuple[metadata.EntryPoint, ...]:
    """Those of a group; with ``name``, of that name."""
    return tuple(entry for entry in _installed().get(group, ()) if name in ("", entry.name))


@cache
def _installed() -> Mapping[str, tuple[metadata.EntryPoint, ...]]:
    every: Any = metadata.entry_points()  # of one type in Python 3.11, of another later
    return {group: tuple(every.select(group=group)) for group in every.groups}
