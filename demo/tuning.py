"""Tunes one shape of each op: timed where a GPU is, predicted for an H200 where none is."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import autotune_db
from autotune_db.budget import Budget
from autotune_db.environment import present_devices
from autotune_db.result import Result
from autotune_db.store import Store
from kpt.ops import registry
from kpt_dsl import build, targets
from kpt_dsl.build import Report
from kpt_dsl.instance import Instance
from kpt_dsl.targets import Target

TRIALS = 24
SECONDS = 40.0
"""Of searching a key; the demo as a whole is to end in minutes on a small machine."""


@dataclass(frozen=True)
class Task:
    """One shape of one op."""

    op: str
    dims: dict[str, int]
    dtype: str
    flags: dict[str, object] = field(default_factory=dict)

    @property
    def instance(self) -> Instance:
        return registry.get(self.op).instances(self.dims, self.dtype, **self.flags)[0]

    def __str__(self) -> str:
        flags = [f"{name}={value}" for name, value in self.flags.items()]
        return " ".join([",".join(f"{d}={n}" for d, n in self.dims.items()), self.dtype, *flags])


TASKS = (
    Task("flash_attention", {"B": 4, "H": 16, "G": 16, "M": 4096, "N": 4096, "D": 128}, "bf16", {"causal": True}),
    Task("linear_act", {"M": 8192, "N": 14336, "K": 4096}, "bf16", {"activation": "gelu_tanh"}),
    Task("layer_norm", {"M": 8192, "N": 4096}, "bf16"),
    Task("fp8_matmul", {"M": 8192, "N": 8192, "K": 8192}, "f8e4m3"),
)


@dataclass(frozen=True)
class Tuned:
    """A task, what its tuning came to, and the compiler's report on the winner."""

    task: Task
    instance: Instance
    result: Result
    report: Report


def device() -> Target | None:
    """The GPU that is here, if kpt knows it."""
    return next(filter(None, map(targets.of_device, present_devices())), None)


def tune(target: Target, present: bool, database: Path) -> Iterator[Tuned]:
    """Tune every task into a database of the demo's own, which dispatch reads from then on."""
    shutil.rmtree(database.parent, ignore_errors=True)
    database.parent.mkdir(parents=True)
    autotune_db.use(database)
    with Store(str(database)) as store:
        for task in TASKS:
            yield _tuned(task, target, present, store)
    autotune_db.forget()


def _tuned(task: Task, target: Target, present: bool, store: Store) -> Tuned:
    from autotune_db.offline import predict
    from autotune_db.tune import tune as measure

    instance, budget = task.instance, Budget(SECONDS, TRIALS)
    result = (measure if present else predict)(instance, target, store, budget=budget)
    return Tuned(task, instance, result, build.compile(instance, target, result.config))
