"""Files of entries: reviewable, read back exactly, and refused where anything is wrong."""

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from autotune_db import shipped
from kpt_dsl import targets
from kpt_dsl.errors import StoreError
from kpt_dsl.space import Config
from tests.autotune_db.entries import entry
from tests.autotune_db.instances import linear, softmax

ENTRIES = [
    entry(),
    entry(softmax(N=77), Config(block_M=1, num_warps=8)),
    entry(linear(bias=False), Config(block_M=64, persistent=True)),
    entry(origin="predicted", device="nvidia-h200"),
]

LINEAR = dict(ENTRIES[2].extents)
"""Of the first entry of their file."""


def test_entries_are_read_back() -> None:
    found = shipped.parse(shipped.dump(ENTRIES), "file")
    assert {(e.key.digest, e.origin, e.config) for e in found} == {(e.key.digest, e.origin, e.config) for e in ENTRIES}
    by_key = {(e.key.digest, e.origin): e for e in found}
    for one in ENTRIES:
        again = by_key[one.key.digest, one.origin]
        assert (again.microseconds, again.first_microseconds, again.date) == (12.5, 20.0, one.date)
        assert dict(again.environment) == dict(one.environment)
        assert again.extents == one.extents


def test_a_file_without_extents_is_read_and_written_as_it_is() -> None:
    """As those that an earlier kpt wrote, and those that are shipped."""
    text = shipped.dump(replace(one, extents=()) for one in ENTRIES)
    found = shipped.parse(text, "file")
    assert "extents" not in text
    assert [one.extents for one in found] == [()] * len(ENTRIES)
    assert shipped.dump(found) == text


def test_the_text_depends_on_the_entries_only() -> None:
    assert shipped.dump(ENTRIES) == shipped.dump(ENTRIES[::-1])
    assert shipped.dump(shipped.parse(shipped.dump(ENTRIES), "file")) == shipped.dump(ENTRIES)


def test_a_new_entry_is_one_new_line() -> None:
    before, after = (
        shipped.dump(ENTRIES[:2]).splitlines(),
        shipped.dump([*ENTRIES[:2], entry(softmax(N=99))]).splitlines(),
    )
    assert len(after) == len(before) + 1
    assert all(len(line) < 700 for line in after)


def test_no_entries_are_a_file_too() -> None:
    assert shipped.parse(shipped.dump([]), "file") == []


def change(text: str, where: str, what: Any) -> str:
    data = json.loads(text)
    group = data["kernels"][0]
    (data if where == "file" else group if where == "group" else group["entries"][0]).update(what)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a file of kpt configs"),
        (change(shipped.dump(ENTRIES), "file", {"format": "kpt configs 2"}), "of a newer kpt"),
        (change(shipped.dump(ENTRIES), "group", {"entries": 3}), "kernel 1: a kernel is an object"),
        (change(shipped.dump(ENTRIES), "group", {"sorce": ""}), "unknown field 'sorce'"),
        (change(shipped.dump(ENTRIES), "group", {"source": None}), "kernel 1, entry 1: not a key"),
        (change(shipped.dump(ENTRIES), "entry", {"confg": {}}), "kernel 1, entry 1: unknown field 'confg'"),
        (change(shipped.dump(ENTRIES), "entry", {"config": {"block_M": 1.5}}), "kernel 1, entry 1: knob 'block_M'"),
        (change(shipped.dump(ENTRIES), "entry", {"origin": "guessed"}), "'guessed' is not one of measured, predicted"),
        (change(shipped.dump(ENTRIES), "entry", {"microseconds": -1}), "must be positive"),
        (change(shipped.dump(ENTRIES), "entry", {"shape": {"M": "many"}}), "not a key"),
        ("[" * 100_000, "nested too deep"),
        *(
            (change(shipped.dump(ENTRIES), where, {name: value}), told)
            for where, name, values, told in (
                ("group", "kernel", (3, None, [], "a\x1b[2Jb", "x" * 5000, "\ud800"), "not a key: kernel"),
                ("group", "device", (True, {"a": 1}), "not a key: device"),
                ("group", "environment", ([], 3, {"a": 1}, {"a": "\n"}, {"a": None}), "environment"),
                ("entry", "dtypes", ({"x": "f33"}, {"x": 1}, {"x": []}, [], None), "not a key: dtypes"),
                ("entry", "layouts", ({"x": 1}, {"x": None}, "x"), "not a key: layouts"),
                ("entry", "flags", ({"x": []}, {"x": float("nan")}, {"x": 10**30}, {"x": "\0"}), "not a key: flags"),
                (
                    "entry",
                    "shape",
                    ({"M": -1}, {"M": True}, {"M": 1.5}, {"M": "9..2"}, {"M": "2..9 "}, {"M": "1_0"}, {"M": 2**70}),
                    "not a key: shape",
                ),
                (
                    "entry",
                    "config",
                    ([], None, {"a": None}, {"a": {}}, {"a": 2**70}, {"a": "\x07"}, {"\n": 1}),
                    "config|knob",
                ),
                ("entry", "origin", (None, [], "imported measured"), "origin"),
                ("entry", "microseconds", (0, True, "9", float("inf"), float("nan"), []), "must be positive"),
                ("entry", "first_microseconds", (-1, {}), "must be positive"),
                ("entry", "date", (3, None, "yesterday", []), "date"),
                (
                    "entry",
                    "extents",
                    ([], 3, "M", {}, {"M": 4096}, LINEAR | {"\x1b": 1}, {"M": 4096, "k": 256, "N": 512}),
                    "kernel 1, entry 1: extents .* are not those of its dims: M, K, N",
                ),
                *(
                    ("entry", "extents", (LINEAR | {"M": value},), "extents: M is .*, which is no whole number in 2049")
                    for value in (2048, 4097, -1, 2**70, 4096.0, True, None, "4096", [], float("nan"))
                ),
                ("entry", "extents", (LINEAR | {"N": 511},), "extents: N is '511', which is no whole number in 512"),
            )
            for value in values
        ),
        (
            change(shipped.dump([entry(softmax(M=1))]), "entry", {"extents": {"M": True, "N": 1024}}),
            "extents: M is 'True', which is no whole number in 1",
        ),
    ],
)
def test_a_file_with_anything_wrong_is_refused_with_its_place(text: str, told: str) -> None:
    with pytest.raises(StoreError, match=told):
        shipped.parse(text, "configs.json")


@pytest.mark.parametrize("target", targets.names())
def test_what_is_shipped_is_sound(target: str) -> None:
    """Every shipped file parses, belongs to its target, is as ``dump`` writes it, and names a config once a key."""
    found = shipped.load(target)
    path = shipped.FOLDER / f"{target}.json"
    if not path.exists():
        assert found == []
        return
    assert path.read_text() == shipped.dump(found)
    assert len({(e.key.digest, e.origin) for e in found}) == len(found)
    for one in found:
        known = targets.of_device(one.key.device)
        assert one.key.device == target or (known is not None and known.name == target)


def test_every_shipped_file_is_of_a_target() -> None:
    assert {path.stem for path in shipped.FOLDER.glob("*.json")} <= set(targets.names())


def test_of_what_was_imported_and_what_was_measured_here_the_latter_is_written() -> None:
    own, other = entry(config=Config(block_M=1)), replace(entry(config=Config(block_M=2)), imported=True)
    for both in ([own, other], [other, own]):
        (found,) = shipped.parse(shipped.dump(both), "file")
        assert found.config == own.config
        assert not found.imported


@pytest.mark.parametrize("path", sorted(shipped.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_what_is_shipped_is_of_the_kernels_that_there_are(path: Path) -> None:
    """Entries of another text of a kernel are never found again."""
    for kernel in json.loads(path.read_text())["kernels"]:
        module, _, name = kernel["kernel"].partition(":")
        assert kernel["source"] == getattr(import_module(module), name).now().hash, kernel["kernel"]
