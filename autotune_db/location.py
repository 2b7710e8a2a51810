"""Where the config database of this machine is: ``KPT_DB``, else one file in the user's cache folder.

``KPT_DB`` (or the argument that does the same) is a path, or an SQLAlchemy URL of a PostgreSQL database that a fleet shares.
Dispatch never opens a network connection: with a URL it reads the local file, which ``kpt-tune import`` fills.
``autotune_db.use(path)`` and ``kpt-tune --db`` do what the variable does.
"""

import os
import re
from pathlib import Path

from kpt_dsl import files
from kpt_dsl.errors import StoreError

VARIABLE = "KPT_DB"


def location() -> str:
    """A path, or a URL with ``://`` in it, for ``kpt-tune`` to write to. Raises StoreError where there is no home folder."""
    if named := os.environ.get(VARIABLE):
        return named
    default = _default()
    if default is None:
        raise StoreError(f"there is no home folder to keep a config database in: name a place with {VARIABLE} or --db")
    return str(default)


def local_file() -> Path | None:
    """The file that dispatch reads; None where there is no home folder that could have it."""
    named = os.environ.get(VARIABLE)
    return files.expanded(named) if named and not is_url(named) else _default()


def path_of(place: str) -> Path | None:
    """The file that a place names; None for a server. Raises StoreError for a home folder that is not there."""
    if is_url(place) and not place.startswith("sqlite"):
        return None
    text = place.partition("://")[2].partition("?")[0].removeprefix("/") if is_url(place) else place
    path = files.expanded(text)
    if path is None:
        shown = without_secrets(place, place)
        raise StoreError(f"{shown}: there is no such home folder; name another place with {VARIABLE} or --db")
    return path.absolute()


def is_url(place: str) -> bool:
    """Whether a place is a database URL rather than a path."""
    return "://" in place


def without_secrets(text: str, place: str) -> str:
    """A text that may quote a place, a URL with a password in it say, without what nobody should read over a shoulder."""
    for secret in _secrets(place):
        text = text.replace(secret, "***")
    return text


def _secrets(place: str) -> list[str]:
    """What stands in a URL, or in what was meant as one, where passwords do; as it is written and as it is meant."""
    from urllib.parse import unquote, unquote_plus

    found = re.findall(r"^[\w+]+:/{1,3}[^/:@]*:(.+)@", place) + re.findall(r"(?i)passw(?:or)?d=([^&\s]+)", place)
    return sorted({form for word in found for form in (word, unquote(word), unquote_plus(word))}, key=len, reverse=True)


def _default() -> Path | None:
    # In a folder of its own: what clears old compilations out of the cache finds only compilations.
    cache = files.users_cache()
    return cache / "database" / "configs.sqlite" if cache else None
