"""What compiling processes are asked to do, and how their failures are named. Functions here are found by name in a child."""

from collections.abc import Hashable, Iterable

from autotune_db.crew import Reply
from autotune_db.trial import Outcome, Trial
from kpt_dsl import build, targets
from kpt_dsl.build import Report
from kpt_dsl.errors import CompileError, KernelError, MissingPackageError
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config

COMPILE_SECONDS = 90.0
"""A config that takes longer to compile is not worth waiting for."""

HANG_SECONDS = 30.0
"""A config that is still compiling after so long, when a tuning ends, is remembered as one that hangs."""


def compile_one(instance: Instance, target: str, config: Config) -> Report:
    """Compile into the cache on disk, where the timing process finds it."""
    return build.compile(instance, targets.get(target), config)


def failed(config: Config, reply: Reply) -> Trial:
    """The trial of a config whose job did not end well.

    Raises MissingPackageError, KernelError or CompileError where no config could end otherwise.
    """
    if reply.kind == "KernelError":
        raise KernelError(reply.detail)
    if reply.kind == "MissingPackageError":
        raise MissingPackageError(reply.detail)
    if reply.failure == "start":
        raise CompileError(f"a process of the tuner cannot start: {reply.detail}")
    return Trial(config, _outcome(reply), detail=reply.detail.splitlines()[0][:500] if reply.detail else "")


def given_up(begun: Iterable[tuple[Hashable, float]]) -> list[Trial]:
    """The trials of configs that were still compiling when nobody waited any longer, as far as they hung (``Crew.abandon``)."""
    return [
        Trial(config, "timeout", detail=f"not compiled in {seconds:.0f} s, when the search ended")
        for config, seconds in begun
        if seconds >= HANG_SECONDS and isinstance(config, Config)
    ]


def _outcome(reply: Reply) -> Outcome:
    if reply.failure in ("crash", "timeout"):
        return "crash" if reply.failure == "crash" else "timeout"
    if "OutOfMemory" in reply.kind or reply.kind == "MemoryError" or "out of memory" in reply.detail.lower():
        return "out of memory"
    return "compile error" if reply.kind == "CompileError" else "crash"
