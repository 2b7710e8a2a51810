"""The cache on disk: whole entries or none, shared by processes, bounded, and never in the way."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kpt_dsl.build import cache, triton
from kpt_dsl.build.cache import Entry
from tests.emit_triton.support import linear_instance
from tests.emit_triton.test_build import SMALL, compiled

pytestmark = pytest.mark.newest  # files are kpt's own


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    triton.binary.cache_clear()  # of what tests before left in this process
    return tmp_path


def test_an_entry_is_written_once_and_read_back(folder: Path) -> None:
    entry = Entry("reports", "key")
    assert entry.get_json("report.json") is None
    assert entry.put({"report.json": '{"a": 1}', "source.py": "x"}) == (
        ("report", str(folder / "reports/key/report.json")), ("source", str(folder / "reports/key/source.py")),
    )  # fmt: skip
    entry.put({"report.json": '{"a": 2}'})
    assert entry.get_json("report.json") == {"a": 1}
    assert sorted(p.name for p in (folder / "reports").iterdir()) == [cache.MARK, "key"]


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "[" * 100_000, '{"a":' * 100_000])
def test_a_garbled_entry_is_no_entry(folder: Path, text: str) -> None:
    (folder / "reports/key").mkdir(parents=True)
    (folder / "reports/key/report.json").write_text(text)
    assert Entry("reports", "key").get_json("report.json") is None


@pytest.mark.parametrize(
    "garbled", [{"forms": {}, "unknown": 1}, {"forms": []}, {"forms": {"ptx": 1}}, {"registers": "9"}, {"target": None}]
)
def test_a_garbled_report_is_compiled_again(garbled: dict[str, Any], folder: Path) -> None:
    instance = linear_instance(64, 64, 64)
    first = compiled(instance, **SMALL)
    (file,) = folder.glob("triton-reports/*/report.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **garbled}))
    assert replace(compiled(instance, **SMALL), seconds=first.seconds) == first


@pytest.mark.parametrize("suffix", [".cubin", ".json"])
@pytest.mark.parametrize(
    "damage", [lambda good: b"", lambda good: good[:-1], lambda good: good[:-9] + b"\xff" + good[-8:]]
)
def test_a_binary_that_is_emptied_cut_or_altered_is_made_again(
    damage: Callable[[bytes], bytes], suffix: str, folder: Path
) -> None:
    instance = linear_instance(64, 64, 64)
    first = compiled(instance, **SMALL)
    files = [f for f in folder.glob(f"triton/*/*{suffix}") if not f.name.startswith("__grp__")]
    (file,) = files
    good = file.read_bytes()
    file.write_bytes(damage(good))
    shutil.rmtree(folder / "triton-reports")
    triton.binary.cache_clear()
    assert replace(compiled(instance, **SMALL), seconds=first.seconds) == first
    assert file.read_bytes() == good


def test_a_binary_that_is_as_it_was_made_is_not_made_again(folder: Path) -> None:
    compiled(linear_instance(64, 64, 64), **SMALL)
    before = {f: f.stat().st_ino for f in folder.glob("triton/*/*.cubin")}
    shutil.rmtree(folder / "triton-reports")
    triton.binary.cache_clear()
    compiled(linear_instance(64, 64, 64), **SMALL)
    assert {f: f.stat().st_ino for f in folder.glob("triton/*/*.cubin")} == before


def test_the_oldest_entries_go_first(folder: Path) -> None:
    for age in range(4):
        Entry("reports", f"key{age}").put({"text": "x" * 1000})
        os.utime(folder / f"reports/key{age}", (1e9 - age, 1e9 - age))
    assert Entry("reports", "key3").get_json("text") is None  # not JSON, but used
    os.utime(folder / "reports/key3")
    cache.prune(3500)
    assert sorted(p.name for p in (folder / "reports").iterdir()) == [cache.MARK, "key0", "key3"]
    cache.prune(3500)
    assert len(list((folder / "reports").iterdir())) == 3


def everything(place: Path) -> dict[str, object]:
    """Every file, folder and link beneath a place."""
    return {
        str(p): p.readlink() if p.is_symlink() else p.read_bytes() if p.is_file() else p.stat().st_mode
        for p in place.rglob("*")
    }


def test_nothing_is_deleted_that_kpt_did_not_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder may be one in which other things lie, or lead to: a home, a project."""
    own, home = tmp_path / "home", tmp_path / "elsewhere"
    for place in (
        own / "letters" / "2024",
        own / "reports" / "annual",
        own / "triton" / "abc",
        home / "taxes" / "2023",
    ):
        place.mkdir(parents=True)
        (place / "file").write_text("x" * 1000)
    monkeypatch.setenv(cache.VARIABLE, str(own))
    Entry("reports", "key").put({"text": "x"})  # in a folder that was there before
    Entry("sources", "key").put({"text": "x"})
    (own / "sources" / "mine").mkdir()
    (own / "sources" / "mine" / "file").write_text("x" * 1000)
    for name in ("link", ".link"):
        (own / name).symlink_to(home)  # a kind that is a link
        (own / "sources" / name).symlink_to(home / "taxes")  # an entry that is one
    other = tmp_path / "another-cache"
    monkeypatch.setenv(cache.VARIABLE, str(other))
    Entry("sources", "kept").put({"text": "x"})
    monkeypatch.setenv(cache.VARIABLE, str(own))
    (own / "sources" / "another").symlink_to(other / "sources" / "kept")  # leads to folders with marks
    (own / "another").symlink_to(other / "sources")
    (own / "sources" / "key" / "within").symlink_to(home)
    before = everything(tmp_path)
    cache.prune(0)
    gone = {name for name in before if name not in everything(tmp_path)}
    assert gone == {str(own / "sources" / "key" / name) for name in ("", cache.MARK, "text", "within")}
    assert everything(tmp_path) == {name: value for name, value in before.items() if name not in gone}


def test_what_a_process_that_was_killed_left_goes_as_well(folder: Path) -> None:
    Entry("reports", "key").put({"text": "x"})
    (folder / "reports" / "key").rename(folder / "reports" / ".key.0123")
    cache.prune(0)
    assert [p.name for p in (folder / "reports").iterdir()] == [cache.MARK]


def test_binaries_of_triton_are_marked_when_they_are_used(folder: Path) -> None:
    compiled(linear_instance(64, 64, 128), **SMALL)
    assert list(folder.glob("triton/*/*.cubin"))
    cache.prune(0)
    assert not list(folder.glob("triton/*/*.cubin"))


def test_nobody_else_may_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "new" / "cache"))
    before = os.umask(0)
    try:
        Entry("reports", "key").put({"text": "x"})
        cache.binaries()
    finally:
        os.umask(before)
    made = [tmp_path / "new" / "cache" / part for part in ("", "reports", "reports/key", "triton")]
    assert [oct(place.stat().st_mode & 0o777) for place in made] == ["0o700"] * 4


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702])
@pytest.mark.parametrize("place", ["", "triton-reports", "triton"])
def test_a_folder_that_others_may_write_is_not_used(
    place: str, mode: int, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "_warned", False)
    (folder / place).mkdir(exist_ok=True)
    (folder / place).chmod(mode)
    with caplog.at_level(logging.WARNING, logger="kpt"):
        assert compiled(linear_instance(64, 64, 64), **SMALL).registers
    (record,) = caplog.records
    assert f"others may write to {folder / place}" in record.message and "chmod" in record.message
    assert not list((folder / place).glob("*/*"))


def test_without_a_home_folder_there_is_one_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does without $HOME and an account
    monkeypatch.setattr(cache, "_warned", False)
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING, logger="kpt"):
        Entry("reports", "key").put({"text": "x"})
        assert cache.folder() == Path(cache.temporary())
    assert "no home folder" in caplog.text
    assert not list(tmp_path.iterdir())  # no folder called "~" least of all


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "nothing"])
def test_whatever_stands_in_the_place_of_an_entry(kind: str, folder: Path) -> None:
    Entry("reports", "key").put({"report.json": "{}"})
    file = folder / "reports/key/report.json"
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "device":
        file.symlink_to("/dev/zero")
    assert Entry("reports", "key").get_json("report.json") is None


def test_a_folder_that_cannot_be_used_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv(cache.VARIABLE, str(blocked / "cache"))
    monkeypatch.setattr(cache, "_warned", False)
    with caplog.at_level(logging.WARNING, logger="kpt"):
        assert compiled(linear_instance(64, 64, 64, "f16"), **SMALL).registers
        assert compiled(linear_instance(64, 64, 64, "f16"), **SMALL).registers
    assert len([r for r in caplog.records if "cache folder cannot be used" in r.message]) == 1


def test_processes_share_it(folder: Path) -> None:
    code = (
        "from tests.emit_triton.test_build import compiled, SMALL\n"
        "from tests.emit_triton.support import linear_instance\n"
        "print(compiled(linear_instance(64, 64, 96), **SMALL).registers)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    children = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    printed = {child.communicate(timeout=120)[0].strip() for child in children}
    assert all(child.returncode == 0 for child in children)
    assert len(printed) == 1 and next(iter(printed)).isdigit()
    assert len(list(folder.glob("triton-reports/*/report.json"))) == 1


def test_what_kpt_made_for_another_user_is_not_deleted_and_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Entry("reports", "key").put({"report.json": "{}"})
    someone = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: someone)
    assert list(cache._marked(folder)) == []
    if folder.stat().st_uid:  # what root made may be used by all
        monkeypatch.setattr(cache, "_warned", False)
        assert Entry("reports", "key").get_json("report.json") is None
        assert "belongs to another user" in caplog.text
