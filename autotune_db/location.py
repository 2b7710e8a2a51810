"""Where the config database of this machine is: ``KPT_DB``, else one file in the user's cache folder.

``KPT_DB`` (or the argument that does the same) is a path, or an SQLAlchemy URL of a PostgreSQL database that a fleet shares.
Dispatch never opens a network connection: with a URL it reads the local file, which ``kpt-tune import`` fills.
``autotune_db.use(path)`` and ``kpt-tune --db`` do what the variable does.
"""

import os
from pathlib import Path

VARIABLE = "KPT_DB"


def location() -> str:
    """A path, or a URL with ``://`` in it, for ``kpt-tune`` to write to."""
    return os.environ.get(VARIABLE) or str(_default())


def local_file() -> Path:
    """The file that dispatch reads."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() if named and not is_url(named) else _default()


def is_url(place: str) -> bool:
    """Whether a place is a database URL rather than a path."""
    return "://" in place


def _default() -> Path:
    import platformdirs

    # In a folder of its own: what clears old compilations out of the cache finds only compilations.
    return Path(platformdirs.user_cache_dir("kpt")) / "database" / "configs.sqlite"
