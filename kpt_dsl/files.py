"""Files that may be anything: what stands in a file's place, a pipe or a device, is refused and never waited for."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

MOST_BYTES = 64 * 1024**2
"""Of a file that is read whole: a hundred times the largest that kpt writes."""


def users_cache() -> Path | None:
    """The user's cache folder for kpt; None for a user without a home folder, as there are in containers."""
    import platformdirs

    try:
        found = expanded(platformdirs.user_cache_dir("kpt"))
    except RuntimeError:  # of newer versions; older ones leave the ~ in place
        return None
    return found if found and found.is_absolute() else None


def expanded(place: str) -> Path | None:
    """A path with its ``~`` spelt out; None where that home folder is unknown."""
    found = os.path.expanduser(place)  # noqa: PTH111 (Path's own raises where there is no home)
    return None if found.startswith("~") else Path(found)


def is_there(path: Path) -> bool:
    """Whether there is a regular file. Raises OSError where something else stands in its place, or nobody may look."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    _must_be_regular(found, path)
    return True


def read(path: Path, most: int = MOST_BYTES) -> str:
    """The text of a regular file. Raises OSError for what is none or is too large, UnicodeDecodeError for what is no text."""
    _must_be_regular(path.stat(), path)  # opening some devices already does something
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        _must_be_regular(os.fstat(file.fileno()), path)
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"larger than {most:,} bytes", str(path))
    return content.decode()


def make_folders(folder: Path) -> None:
    """A folder and those above it, as far as they are missing; what is made is its user's alone."""
    if not folder.is_dir():
        make_folders(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def from_json(text: str | bytes) -> Any:
    """What JSON text says. Raises ValueError for any other text, one that is nested too deep included."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _must_be_regular(found: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder, not a file", str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
