"""What CI leaves to ``make soak``: combinations of things each of which other tests see."""

from collections.abc import Sequence
from typing import Any

import pytest


def unless(kept: bool, *values: Any, name: str | None = None, marks: Sequence[Any] = ()) -> Any:
    """The values as parameters of a test that runs everywhere if ``kept``, and else in ``make soak`` only."""
    return pytest.param(*values, marks=marks if kept else (*marks, pytest.mark.soak), id=name)
