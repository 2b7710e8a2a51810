"""What is installed: what packages add to kpt, by entry points, read once a process, for that opens a file of every package;
and whether one is there and new enough."""

from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any

from kpt_dsl.errors import MissingPackageError


def entry_points(*, group: str, name: str = "") -> tuple[metadata.EntryPoint, ...]:
    """Those of a group; with ``name``, of that name."""
    return tuple(entry for entry in _installed().get(group, ()) if name in ("", entry.name))


@cache
def _installed() -> Mapping[str, tuple[metadata.EntryPoint, ...]]:
    every: Any = metadata.entry_points()  # of one type in Python 3.11, of another later
    return {group: tuple(every.select(group=group)) for group in every.groups}


def check_release(package: str, oldest: tuple[int, int], wanted: str) -> None:
    """Raises MissingPackageError, which says what is ``wanted``, where a package is missing or older than that."""
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise MissingPackageError(f"{wanted}; it is not installed") from error
    if tuple([int(part) for part in found.split(".")[:2]]) < oldest:
        raise MissingPackageError(f"{wanted}; {found} is installed")
