"""A database of its own for every test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune_db import location, lookup


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the database of this test is; nothing is there yet."""
    path = tmp_path / "folder" / "configs.sqlite"
    monkeypatch.setenv(location.VARIABLE, str(path))
    lookup.forget()
    yield path
    lookup.forget()
