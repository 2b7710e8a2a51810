"""Generated source, reports and binaries on disk: entries are folders that appear whole or not at all, the oldest go first.

Nothing in here is ever executed from the folder, and nothing depends on it: a cache that is missing, full, read-only or garbled
costs time, and one warning. Many processes may share it; what one deletes while another reads is compiled again.
"""

import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

VARIABLE = "KPT_CACHE_DIR"
"""Names the cache folder; else the user's cache folder of the system is used."""

MAX_BYTES = 4 * 1024**3
"""Beyond this, entries that were not used for longest are deleted."""

_PRUNE_EVERY = 64
"""How many entries a process adds before it looks at the total again."""

_log = logging.getLogger("kpt")
_added = 0
_warned = False


def folder() -> Path:
    """The cache folder; it may not exist yet."""
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("kpt"))


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
        return folder() / self.kind / self.key

    def get_json(self, name: str) -> dict[str, Any] | None:
        """A file of the entry; None where it is missing or garbled. Marks the entry as used."""
        try:
            found = json.loads((self.path / name).read_text())
            os.utime(self.path)
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def put(self, files: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        """Write the entry, if it is not there; gives form -> path, where a form is a file name up to its first dot."""
        forms = tuple((name.partition(".")[0], str(self.path / name)) for name in files)
        if self.path.is_dir():
            return forms
        draft = self.path.with_name(f".{self.key}.{uuid.uuid4().hex}")
        try:
            draft.mkdir(parents=True)
            for name, text in files.items():
                (draft / name).write_text(text)
            # Renaming onto a folder that another process has just made fails, and then theirs is as good.
            with suppress(FileExistsError, NotADirectoryError):
                draft.rename(self.path)
        except OSError as error:
            if not self.path.is_dir():
                warn_once(str(error))
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        added()
        return forms


def binaries() -> str:
    """The folder for Triton's own cache; that of ``temporary`` where ours cannot be written."""
    path = folder() / "triton"
    try:
        path.mkdir(parents=True, exist_ok=True)
        if os.access(path, os.W_OK):
            return str(path)
        warn_once(f"{path} is not writable")
    except OSError as error:
        warn_once(str(error))
    return temporary()


@lru_cache(maxsize=1)
def temporary() -> str:
    """A folder of this process alone."""
    return tempfile.mkdtemp(prefix="kpt-")


def used(file: str) -> None:
    """Note that the entry which holds a file is in use, so that it goes last."""
    with suppress(OSError):
        os.utime(Path(file).parent)


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
    with suppress(OSError):
        for kind in folder().iterdir():
            for entry in kind.iterdir():
                with suppress(OSError):
                    entries.append((entry.stat().st_mtime, sum(f.stat().st_size for f in entry.iterdir()), entry))
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
