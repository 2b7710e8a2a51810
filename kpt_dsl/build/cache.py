"""Generated source, reports and binaries on disk: entries are folders that appear whole or not at all, the oldest go first.

Nothing in here is ever executed from the folder, and nothing depends on it: a cache that is missing, full, read-only or garbled
costs time, and one warning. Many processes may share it; what one deletes while another reads is compiled again.

Every folder that is made here carries a mark, and only what carries it is ever deleted: the cache may lie in a folder that
holds other things too. A folder that others may write is not used, for binaries from it would run.
"""

import atexit
import logging
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from kpt_dsl import files

VARIABLE = "KPT_CACHE_DIR"
"""Names the cache folder; else the user's cache folder of the system is used."""

MAX_BYTES = 4 * 1024**3
"""Beyond this, entries that were not used for longest are deleted."""

MARK = ".made-by-kpt"
"""A file in every folder of the cache that kpt made, and so may delete."""

_PRUNE_EVERY = 64
"""How many entries a process adds before it looks at the total again."""

_log = logging.getLogger("kpt")
_added = 0
_warned = False


def folder() -> Path:
    """The cache folder; it may not exist yet. One of this process alone where the user's cannot be named or trusted."""
    if why := refusal():
        warn_once(why)
        return Path(temporary())
    place = _named()
    assert place is not None
    return place


def refusal() -> str:
    """Why the user's cache folder is not used; "" where it is."""
    place = _named()
    return _distrusted(place) if place else f"there is no home folder; name a folder with {VARIABLE}"


def use(place: str | Path) -> None:
    """From now on this folder, for this process and those that it starts: what ``KPT_CACHE_DIR`` does."""
    os.environ[VARIABLE] = str(place)


@dataclass(frozen=True)
class Entry:
    """One folder of small text files: ``kind`` of entry, and a ``key`` that says all that its content depends on."""

    kind: str
    key: str

    @property
    def path(self) -> Path:
        return _of_kind(self.kind) / self.key

    def get_json(self, name: str) -> dict[str, Any] | None:
        """A file of the entry; None where it is missing or garbled. Marks the entry as used."""
        path = self.path
        try:
            found = files.from_json(files.read(path / name))
            os.utime(path)
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def put(self, texts: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        """Write the entry, if it is not there; gives form -> path, where a form is a file name up to its first dot."""
        path = self.path
        try:
            _make_kind(path.parent)
            if _appear(path, texts):
                added()
        except OSError as error:
            warn_once(str(error))
        return tuple((name.partition(".")[0], str(path / name)) for name in texts)


def binaries() -> str:
    """The folder for Triton's own cache; that of ``temporary`` where ours cannot be written."""
    path = _of_kind("triton")
    try:
        _make_kind(path)
        if os.access(path, os.W_OK):
            return str(path)
        warn_once(f"{path} is not writable")
    except OSError as error:
        warn_once(str(error))
    return temporary()


@lru_cache(maxsize=1)
def temporary() -> str:
    """A folder of this process alone; it goes when the process does."""
    path, owner = tempfile.mkdtemp(prefix="kpt-"), os.getpid()

    def end() -> None:
        if os.getpid() == owner:  # not in a child that was forked
            shutil.rmtree(path, ignore_errors=True)

    atexit.register(end)
    return path


def used(file: str, seal: str) -> None:
    """Note that the entry which holds a file that was made for kpt is in use, so that it goes last; keep a seal with it."""
    mark = Path(file).with_name(MARK)
    with suppress(OSError):
        if sealed(file) != seal:
            mark.write_text(seal)
        os.utime(mark.parent)


def sealed(file: str) -> str:
    """The seal that was kept with a file's entry; "" where there is none."""
    try:
        return files.read(Path(file).with_name(MARK))
    except (OSError, ValueError):
        return ""


def warn_once(reason: str) -> None:
    """Say that the cache does not work, and why, the first time that this is asked for."""
    global _warned
    if not _warned:
        _log.warning("kpt's cache folder cannot be used, so kernels are compiled again in each process: %s", reason)
    _warned = True


def added() -> None:
    """Note that an entry was added; now and then this deletes old ones."""
    global _added
    _added += 1
    if _added % _PRUNE_EVERY == 0:
        prune(MAX_BYTES)


def prune(most: int) -> None:
    """Delete the entries that were not used for longest until three quarters of ``most`` bytes remain, if there are more."""
    entries: list[tuple[float, int, Path]] = []
    for kind in _marked(folder()):
        for entry in _marked(kind):
            with suppress(OSError):
                entries.append((entry.lstat().st_mtime, sum(f.lstat().st_size for f in entry.iterdir()), entry))
    total = sum(size for _, size, _ in entries)
    if total <= most:
        return
    for _, size, entry in sorted(entries):
        # Renamed first: nobody finds half an entry.
        grave = entry.with_name(f".{entry.name}.{uuid.uuid4().hex}")
        with suppress(OSError):
            entry.rename(grave)
            shutil.rmtree(grave, ignore_errors=True)
            total -= size
        if total <= most * 3 // 4:
            return


def _marked(place: Path) -> Iterator[Path]:
    """The folders within a folder that kpt made for this user. Links lead to what may be anybody's, and are left alone."""
    with suppress(OSError):
        for found in list(os.scandir(place)):
            with suppress(OSError):
                mark = Path(found.path, MARK).lstat()
                ours = stat.S_ISREG(mark.st_mode) and mark.st_uid == os.geteuid()
                if ours and found.is_dir(follow_symlinks=False):
                    yield Path(found.path)


def _of_kind(kind: str) -> Path:
    """The folder for entries of a kind, under one of this process alone where others may write to it."""
    path = folder() / kind
    if why := _distrusted(path):
        warn_once(why)
        return Path(temporary(), kind)
    return path


def _make_kind(path: Path) -> None:
    files.make_folders(path.parent)
    _appear(path, {})


def _appear(path: Path, texts: Mapping[str, str]) -> bool:
    """Make a folder with its mark and some files, whole or not at all. False where there is one already."""
    if path.is_dir():
        return False
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        draft.mkdir(mode=0o700)
        for name, text in {MARK: "", **texts}.items():
            (draft / name).write_text(text)
        draft.rename(path)
    except OSError:
        # Renaming onto a folder that another process has just made fails, and then theirs is as good.
        if not path.is_dir():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return True


def _named() -> Path | None:
    named = os.environ.get(VARIABLE)
    return files.expanded(named) if named else files.users_cache()


def _distrusted(place: Path) -> str:
    """Why a folder is not to be used; "" where nothing speaks against it, or nothing is there."""
    try:
        found = place.stat()
    except OSError:
        return ""  # what cannot be looked at shows itself when it is to be written
    if found.st_uid not in (os.geteuid(), 0):
        return f"{place} belongs to another user; name a folder of your own with {VARIABLE}"
    if not stat.S_ISDIR(found.st_mode):
        return f"{place} is no folder; name one with {VARIABLE}"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to {place}; `chmod go-w` it, or name another folder with {VARIABLE}"
    return ""
