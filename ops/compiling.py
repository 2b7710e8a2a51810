"""Whether calls wait while their kernels compile: ``while_compiling``, and what a launch raises that would have to.

Knows neither ops nor processes; ``behind`` does what follows.
"""

import os
from collections.abc import Callable
from typing import Literal, get_args

from kpt_dsl.checks import is_on
from kpt_dsl.errors import InputError, KptError

Mode = Literal["wait", "reference"]

VARIABLE = "KPT_WHILE_COMPILING"
"""The environment variable that says what ``while_compiling`` says, until a program calls that."""

_said = os.environ.get(VARIABLE) or "wait"

_mode: Mode | None = None

told: list[Callable[[], None]] = []
"""Are called when calls wait again."""


class NotMadeError(KptError):
    """A launch has nothing that it could start without compiling."""


class while_compiling:
    """What calls do whose kernels are not compiled yet: "wait" for it, or have PyTorch serve ("reference") meanwhile.

    ``kpt.ops.while_compiling("reference")`` holds from then on, for all threads of the process;
    ``with kpt.ops.while_compiling("reference"): …`` until the block ends. Another process of the lowest priority then chooses
    configs and compiles, for a call that needs gradients also its backward; this one loads what was made, and kpt serves the
    calls after that. Such calls are among the ``fallbacks`` of ``kpt.ops.counters()``, ``kpt.ops.explain`` says since when it
    compiles, and the log says it once a class. Under ``prefer``, and with indices checked, calls wait.

    Raises InputError for another word.
    """

    def __init__(self, mode: Mode) -> None:
        self._before = _mode
        _become(_checked(mode, "while_compiling"))

    def __enter__(self) -> None:
        """It holds already."""

    def __exit__(self, *_: object) -> None:
        _become(self._before)


def is_behind() -> bool:
    """Whether PyTorch serves what is not compiled. Raises InputError where the environment has another word."""
    mode = _mode or _said
    return mode != "wait" and _checked(mode, VARIABLE) == "reference" and not is_on()


def _become(mode: Mode | None) -> None:
    global _mode
    _mode = mode
    if not is_behind():
        for tell in told:
            tell()


def _checked(mode: object, where: str) -> Mode:
    for known in get_args(Mode):
        if mode == known:
            return known  # type: ignore[no-any-return]
    raise InputError(f"{where}: {mode!r} is unknown; accepted: {', '.join(get_args(Mode))}")
