"""Fixtures of the tests of ops and their gradients."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from kpt.ops import backends
from kpt.ops.dispatch import DISPATCHERS
from kpt.ops.registry import get

LINEAR = ("linear_act", "linear_act_saving", "linear_act_backward")


@pytest.fixture
def at_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Linear layers on the CPU are served by NumPy unasked, as they are by Triton on a GPU."""
    for name in LINEAR:
        dispatcher = DISPATCHERS[name]
        kernels = [replace(k, devices=frozenset({"cpu"})) for k in get(name).kernels if k.name == "numpy"]
        monkeypatch.setattr(dispatcher, "op", replace(get(name), kernels=tuple(kernels)))
        monkeypatch.setattr(dispatcher, "_logged", set())
        dispatcher._forget()
    yield
    for name in LINEAR:
        DISPATCHERS[name]._forget()


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that are launched."""
    names: list[str] = []
    launch = backends.Launches.__call__

    def noting(self: backends.Launches, kernel: Any, *arguments: Any) -> None:
        names.append(kernel.name)
        launch(self, kernel, *arguments)

    monkeypatch.setattr(backends.Launches, "__call__", noting)
    return names
