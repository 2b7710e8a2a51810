"""Entries as files that a person reviews in a diff: ``devices/TARGET.json``, and what ``kpt-tune export`` writes.

One line an entry, sorted; what the entries of one kernel share stands once above them. Unknown fields are refused, so that a
typo in a file edited by hand is found when it is read.
"""

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from autotune_db.entry import ORIGINS, Entry
from kpt_dsl import files
from kpt_dsl.errors import StoreError

FORMAT = "kpt configs 1"
FOLDER = Path(__file__).with_name("devices")

_SHARED = ("device", "kernel", "source", "backend", "compiler")
_OWN = ("dtypes", "layouts", "flags", "shape")
_GROUP_FIELDS = {*_SHARED, "environment", "entries"}
_ENTRY_FIELDS = {*_OWN, "config", "origin", "microseconds", "first_microseconds", "date", "extents"}


@dataclass(frozen=True)
class Shipped:
    """An entry of a file, as ``Winners`` holds it."""

    entry: Entry

    @property
    def digest(self) -> str:
        return self.entry.key.digest

    @property
    def kernel(self) -> str:
        return self.entry.key.kernel

    @property
    def device(self) -> str:
        return self.entry.key.device

    @property
    def known(self) -> str:
        return self.entry.known

    @property
    def plain_key(self) -> dict[str, Any]:
        return self.entry.key.to_dict()


def dump(entries: Iterable[Entry]) -> str:
    """The text of a file. The same entries give the same text, whatever their order."""
    standing: dict[tuple[str, str], Entry] = {}
    # One's own goes in place of what was imported for the same key.
    for one in sorted(entries, key=lambda e: not e.imported):
        standing[one.key.digest, one.origin] = one
    lines = sorted((_shared(e), _own(e)) for e in standing.values())
    groups = []
    for shared, members in itertools.groupby(lines, key=lambda pair: pair[0]):
        body = ",\n".join(f"   {own}" for _, own in members)
        groups.append(f'  {shared[:-1]},\n  "entries": [\n{body}\n  ]}}')
    return f'{{"format": {json.dumps(FORMAT)}, "kernels": [\n' + ",\n".join(groups) + "\n]}\n"


def parse(text: str, origin: str) -> list[Entry]:
    """The entries of a file's text; ``origin`` names the file in errors. Raises StoreError for what is not such a file."""
    try:
        data = files.from_json(text)
    except ValueError as error:
        raise StoreError(f"{origin} is not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("kernels"), list):
        raise StoreError(f"{origin} is not a file of kpt configs, or of a newer kpt: its format must be {FORMAT!r}")
    return [
        _entry(group, own, f"{origin}: kernel {g + 1}, entry {i + 1}")
        for g, group in enumerate(data["kernels"])
        for i, own in enumerate(_list_of(group, f"{origin}: kernel {g + 1}"))
    ]


def load(target: str) -> list[Entry]:
    """What is shipped for a target; nothing where there is no file. Raises StoreError for a file that is damaged."""
    path = FOLDER / f"{target}.json"
    try:
        text = files.read(path)
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from None
    return parse(text, str(path))


def _shared(entry: Entry) -> str:
    key = entry.key.to_dict()
    return json.dumps({name: key[name] for name in _SHARED} | {"environment": dict(sorted(entry.environment))})


def _own(entry: Entry) -> str:
    key = entry.key.to_dict()
    found = {name: key[name] for name in _OWN} | {"config": dict(entry.config), "origin": entry.origin}
    if entry.microseconds is not None:
        found["microseconds"] = _rounded(entry.microseconds)
    if entry.first_microseconds is not None:
        found["first_microseconds"] = _rounded(entry.first_microseconds)
    if entry.extents:
        found["extents"] = dict(entry.extents)
    return json.dumps(found | {"date": entry.date})


def _rounded(microseconds: float) -> float:
    return round(microseconds, 2) or microseconds


def _list_of(group: Any, place: str) -> list[Any]:
    if not isinstance(group, dict) or not isinstance(group.get("entries"), list):
        raise StoreError(f"{place}: a kernel is an object with {', '.join(sorted(_GROUP_FIELDS))}")
    if unknown := set(group) - _GROUP_FIELDS:
        raise StoreError(f"{place}: unknown field {sorted(unknown)[0]!r}; known are {', '.join(sorted(_GROUP_FIELDS))}")
    return cast("list[Any]", group["entries"])


def _entry(group: Mapping[str, Any], own: Any, place: str) -> Entry:
    if not isinstance(own, dict):
        raise StoreError(f"{place}: an entry is an object, not {str(own)[:80]}")
    if unknown := set(own) - _ENTRY_FIELDS:
        raise StoreError(f"{place}: unknown field {sorted(unknown)[0]!r}; known are {', '.join(sorted(_ENTRY_FIELDS))}")
    if own.get("origin") not in ORIGINS:  # none is imported before it is
        raise StoreError(f"{place}: origin {str(own.get('origin'))[:80]!r} is not one of {', '.join(ORIGINS)}")
    key = {**{n: group.get(n) for n in _SHARED}, **{n: own.get(n) for n in _OWN}}
    times = own.get("microseconds"), own.get("first_microseconds")
    about = group.get("environment"), own.get("date", ""), own.get("extents")
    try:
        return Entry.of(key, own.get("config"), own["origin"], *times, *about)
    except StoreError as error:
        raise StoreError(f"{place}: {error}") from None
