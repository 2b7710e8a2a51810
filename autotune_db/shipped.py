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

from autotune_db.entry import ORIGINS, Entry, Origin
from autotune_db.key import Key
from kpt_dsl.errors import KptError, StoreError
from kpt_dsl.space import Config

FORMAT = "kpt configs 1"
FOLDER = Path(__file__).with_name("devices")

_SHARED = ("device", "kernel", "source", "backend", "compiler")
_OWN = ("dtypes", "layouts", "flags", "shape")
_GROUP_FIELDS = {*_SHARED, "environment", "entries"}
_ENTRY_FIELDS = {*_OWN, "config", "origin", "microseconds", "first_microseconds", "date"}


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
    def origin(self) -> str:
        return self.entry.origin


def dump(entries: Iterable[Entry]) -> str:
    """The text of a file. The same entries give the same text, whatever their order."""
    lines = sorted((_shared(e), _own(e)) for e in entries)
    groups = []
    for shared, members in itertools.groupby(lines, key=lambda pair: pair[0]):
        body = ",\n".join(f"   {own}" for _, own in members)
        groups.append(f'  {shared[:-1]},\n  "entries": [\n{body}\n  ]}}')
    return f'{{"format": {json.dumps(FORMAT)}, "kernels": [\n' + ",\n".join(groups) + "\n]}\n"


def parse(text: str, origin: str) -> list[Entry]:
    """The entries of a file's text; ``origin`` names the file in errors. Raises StoreError for what is not such a file."""
    try:
        data = json.loads(text)
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
        text = path.read_text(encoding="utf-8")
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
        found["microseconds"] = round(entry.microseconds, 2)
    if entry.first_microseconds is not None:
        found["first_microseconds"] = round(entry.first_microseconds, 2)
    return json.dumps(found | {"date": entry.date})


def _list_of(group: Any, place: str) -> list[Any]:
    if not isinstance(group, dict) or not isinstance(group.get("entries"), list):
        raise StoreError(f"{place}: a kernel is an object with {', '.join(sorted(_GROUP_FIELDS))}")
    if unknown := set(group) - _GROUP_FIELDS:
        raise StoreError(f"{place}: unknown field {sorted(unknown)[0]!r}; known are {', '.join(sorted(_GROUP_FIELDS))}")
    return cast("list[Any]", group["entries"])


def _entry(group: Mapping[str, Any], own: Any, place: str) -> Entry:
    if not isinstance(own, dict):
        raise StoreError(f"{place}: an entry is an object, not {own!r}")
    if unknown := set(own) - _ENTRY_FIELDS:
        raise StoreError(f"{place}: unknown field {sorted(unknown)[0]!r}; known are {', '.join(sorted(_ENTRY_FIELDS))}")
    try:
        key = Key.from_dict({**{n: group.get(n) for n in _SHARED}, **{n: own.get(n) for n in _OWN}})
        config = Config(own["config"])
        if own["origin"] not in ORIGINS:
            raise StoreError(f"origin {own['origin']!r} is not one of {', '.join(ORIGINS)}")
        times = [own.get("microseconds"), own.get("first_microseconds")]
        if not all(t is None or (isinstance(t, int | float) and t > 0) for t in times):
            raise StoreError(f"microseconds must be positive numbers, not {times}")
        known = tuple((str(k), str(v)) for k, v in group.get("environment", {}).items())
        return Entry(key, config, cast(Origin, own["origin"]), times[0], times[1], known, str(own.get("date", "")))
    except (KptError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise StoreError(f"{place}: {error if isinstance(error, KptError) else repr(error)}") from None
