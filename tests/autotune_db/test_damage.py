"""A share of ``python -m tests.damage``: damaged databases cost no answer and no traceback, and kills no entry."""

import logging
from pathlib import Path

import pytest

from tests.damage import databases, kills


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "kpt")


def test_a_damaged_database_costs_no_answer_and_no_traceback() -> None:
    outside = [Path("/"), Path("/dev/zero"), Path("/dev/tty")]  # what links in place of a database lead to
    before = [place.stat().st_mode for place in outside if place.exists()]
    figures = databases.try_all(60, seed=1)
    assert figures.faults == []
    assert [place.stat().st_mode for place in outside if place.exists()] == before
    assert figures.asked >= 60 * 7


def test_kills_lose_nothing() -> None:
    figures = kills.try_all(20, seed=1)
    assert figures.faults == []
    assert figures.kills == 20


def test_the_tools_see_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else no fault would mean nothing."""
    from autotune_db import snapshot, store

    sound = snapshot.read
    monkeypatch.setattr(snapshot, "read", lambda path: 1 / 0 if path.name == "c.sqlite" else sound(path))
    monkeypatch.setattr(databases, "ONCE", {"a text": databases.ONCE["a text"]})
    monkeypatch.setattr(store.Store, "_trouble", lambda self, reason: ZeroDivisionError(reason))
    faults = databases.try_all(2, seed=1).faults
    assert any("dispatch: ZeroDivisionError" in fault for fault in faults)
    assert any("kpt-tune list: ZeroDivisionError" in fault for fault in faults)
