"""What kpt's kernels would take on TPUs, beside JAX's own, tokamax's and XLA's: predicted from the code that Google's compiler
makes of each, by one method (``cost.METHOD``). No TPU is needed, and none was run: these are no measurements.

Needs JAX and libtpu. A file a generation. ``--tune`` has kpt's configs chosen by its offline tuning first.
"""

import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import local
from typing import Any

from benchmarks import timing
from benchmarks.case import Found, Stopping, compared
from benchmarks.report import Picture
from benchmarks.tpu import cases, cost
from benchmarks.tpu.cases import TpuCase
from benchmarks.tpu.peers import Program
from kpt_dsl import build, classes, configs, targets
from kpt_dsl.build.tpu_compiler import Compiler, versions
from kpt_dsl.errors import KptError
from kpt_dsl.instance import Instance
from kpt_dsl.targets import Target

TITLE = "Predicted by the compiler, run on no TPU; bf16, 16 heads of 128"

DEVICES = ("tpu-v5e", "tpu-v5p", "tpu-v6e", "tpu-tpu7x")


def predict(given: Namespace) -> Iterator[Found]:
    """The rows of every generation, each with what the figures are. Raises MissingPackageError without JAX or libtpu."""
    about = {"method": cost.METHOD, "compiled by": versions()}
    picture = Picture("of the best", "predicted speed, of the best")
    for device in DEVICES:
        target = targets.get(device)
        rows: list[dict[str, Any]] = []
        failed = 0
        with _Compiling(target) as compiling, Stopping() as stopping:
            for case in cases.every():
                if given.only not in f"{device} {case.name}":
                    continue
                try:
                    rows.append(row(case, target, compiling, given.tune))
                except Exception:  # whatever kpt's side raises; the other cases are worth having
                    failed += 1
                    print(f"{device} {case.name} failed", file=sys.stderr)
                    traceback.print_exc()
                else:
                    print(f"{device} {timing.line(rows[-1])}", flush=True)
        yield Found(rows, failed, about | {"device": f"{device}, not run"}, picture, stopping.stopped, device)
        if stopping.stopped:
            return


def row(case: TpuCase, target: Target, compiling: "_Compiling", tune: float) -> dict[str, Any]:
    """Predicts one case. Raises CompileError where a config of kpt's does not compile."""
    begun = {
        (name, program.sizes): compiling.begin(case, program, target)
        for name, programs in case.peers.items()
        for program in programs
    }
    if tune:
        _tune(case.problem, target, tune)
    config, provenance = configs.choose(case.problem, target)
    first = classes.options(case.problem, target).first
    taken = {}
    for name, chosen in (("kpt first", first), ("kpt", config)):
        cycles = build.compile(case.problem, target, chosen).cycles
        assert cycles is not None  # libtpu tells them
        taken[name] = cycles / target.clock_hz * 1e6
    found, sizes, missing = _best(begun)
    taken |= found
    held = [name for name, microseconds in taken.items() if microseconds <= case.work.least(target) * (1 + 1e-6)]
    return {
        "case": case.name,
        "problem": str(case.problem),
        **compared(case, taken, ("kpt", "kpt first")),
        "of the best": {name: round(min(taken.values()) / microseconds, 4) for name, microseconds in taken.items()},
        "config": dict(config),
        "config from": provenance,
        "first config": dict(first),
        "sizes": sizes,
        "held at 0.95 of peak": held,
        "missing": {**case.missing, **missing},
    }


def _best(
    begun: Mapping[tuple[str, str], Future[float]],
) -> tuple[dict[str, float], dict[str, str], dict[str, str]]:
    """Microseconds of each peer with the best of its block sizes, these sizes, and why some were not compiled."""
    taken: dict[str, float] = {}
    best: dict[str, str] = {}
    missing: dict[str, str] = {}
    for (name, sizes), future in begun.items():
        try:
            found = future.result()
        except KptError as error:
            missing[f"{name}, {sizes}" if sizes else name] = str(error)[:300]
            continue
        if found < taken.get(name, float("inf")):
            taken[name] = found
            best[name] = sizes
    return taken, {name: sizes for name, sizes in best.items() if sizes}, missing


def _tune(problem: Instance, target: Target, seconds: float) -> None:
    from autotune_db.budget import Budget
    from autotune_db.offline import predict as tuned
    from autotune_db.store import Store

    with Store() as store:
        tuned(problem, target, store, budget=Budget(seconds=seconds))


class _Compiling(ThreadPoolExecutor):
    """Compiling processes for a target, one a core, that live as long as this does; one that the compiler brings down is
    started anew. Kernels that do not say how much vector memory they take may take three quarters: by default they get an
    eighth of a v5e's, in which their best blocks do not fit, and with all of it XLA compiles a product for minutes."""

    def __init__(self, target: Target) -> None:
        super().__init__(os.cpu_count())
        self._mine = local()
        self._all: list[Compiler] = []
        os.environ["LIBTPU_INIT_ARGS"] = f"--xla_tpu_scoped_vmem_limit_kib={3 * target.vmem_bytes // 4 >> 10}"

    def begin(self, case: TpuCase, program: Program, target: Target) -> Future[float]:
        """Microseconds of a peer's program, in a while. Raises CompileError then where the compiler refuses or aborts."""
        return self.submit(self._priced, case, program, target)

    def _priced(self, case: TpuCase, program: Program, target: Target) -> float:
        if not hasattr(self._mine, "compiler"):
            self._mine.compiler = Compiler()
            self._all.append(self._mine.compiler)
        job = {"name": "peer", "text": program.text, "arch": target.arch, "arguments": case.arguments}
        return cost.microseconds(self._mine.compiler.run(job), program.counts, case.work, target)

    def __exit__(self, *error: Any) -> None:
        self.shutdown(wait=False, cancel_futures=True)
        for compiler in self._all:
            compiler.stop()
        super().__exit__(*error)
