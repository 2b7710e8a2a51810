"""Times the candidates of one case in turns and makes a row of the report of them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

import autotune_db
from autotune_db import measure
from autotune_db.measure import Clock
from benchmarks.case import Case, OpCase, Run, compared
from benchmarks.peers import as_tensors, reason
from kpt_dsl import KptError, configs, runtime
from kpt_dsl.classes import options
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config
from kpt_dsl.targets import Target

if TYPE_CHECKING:
    from autotune_db.workshop import Workshop

LARGEST_DIFFERENCE = 0.05
"""Between what kpt and a peer compute, as a part of its norm: some times what bfloat16 makes of gradients, and no more."""


Choose = Callable[[Instance, Target], tuple[Config, str]]
"""Says which config a kernel runs with, and where it comes from."""


@contextmanager
def chooser(tune_seconds: float) -> Iterator[Choose]:
    """What dispatch would choose; with ``tune_seconds``, after each kernel was tuned for so long, and that was stored."""
    if not tune_seconds:
        yield configs.choose
        return
    from autotune_db.workshop import Workshop

    with Workshop() as workshop:
        yield partial(_tuned, seconds=tune_seconds, workshop=workshop)


def row(case: Case | OpCase, target: Target, clock: Clock, choose: Choose, seconds: float) -> dict[str, Any]:
    """Times one case. Raises KptError where kpt differs.

    Must run on the clock's stream, as the case must have been made on it.
    """
    tuned = {}
    for problem in (case.problem,) if isinstance(case, Case) else case.problems:
        tuned[problem] = choose(problem, target)
    if isinstance(case, Case):
        config, provenance = tuned[case.problem]
        first = options(case.problem, target).first
        kpt: dict[str, Run] = {
            "kpt first": runtime.launcher(case.problem, dict(case.arrays), first, target),
            "kpt": runtime.launcher(case.problem, dict(case.arrays), config, target),
        }
        about = {"config": dict(config), "config from": provenance, "first config": dict(first)}
    else:
        kpt = dict(case.kpt)
        kernels = [{"problem": str(p), "config": dict(c), "from": origin} for p, (c, origin) in tuned.items()]
        about = {"configs": kernels, "launches": list(case.launches()), **_agreement(case)}

    prepared, missing = _prepared(clock, kpt, case.peers)
    taken = dict(zip(prepared, measure.medians(clock, list(prepared.values()), seconds), strict=True))
    captured = {name for name, run in prepared.items() if run is not kpt.get(name, case.peers.get(name))}
    return {
        "case": case.name,
        "problem": " ".join(map(str, tuned)),
        **compared(case, taken, kpt, case.bound),
        **about,
        "missing": {**case.missing, **missing},
        "not in a graph": sorted(prepared.keys() - captured),
    }


def line(found: Mapping[str, Any]) -> str:
    """A row for the terminal."""
    rates = "  ".join(f"{name} {rate:.0f}" for name, rate in found["rate"].items())
    origins = {found["config from"]} if "config from" in found else {c["from"] for c in found["configs"]}
    against = "" if found["best peer"] is None else f"  | kpt / {found['best peer']}: {found['ratio']:.3f}"
    lines = [f"{found['case']:<28} {found['unit']:<8} {rates}{against} ({', '.join(sorted(origins))})"]
    return "\n".join([*lines, *(f"{'':<28} missing: {name}: {why}" for name, why in found["missing"].items())])


def _tuned(problem: Instance, target: Target, seconds: float, workshop: "Workshop") -> tuple[Config, str]:
    from autotune_db.budget import Budget
    from autotune_db.store import Store
    from autotune_db.tune import tune

    chosen, _ = configs.choose(problem, target)
    with Store() as store:
        config = tune(problem, target, store, budget=Budget(seconds=seconds), warm=[chosen], workshop=workshop).config
    autotune_db.forget()  # the next call reads what was stored
    return config, "measured"


def _agreement(case: OpCase) -> dict[str, Any]:
    """How far kpt's results are from a peer's: gradients have no oracle in float64 at these sizes."""
    for name, peer in case.peers.items():
        if name not in case.bound:
            apart = {way: _apart(as_tensors(run()), as_tensors(peer())) for way, run in case.kpt.items()}
            for way, parts in apart.items():
                if not all(part <= LARGEST_DIFFERENCE for part in parts):  # a NaN is too far
                    raise KptError(
                        f"{case.name}: {way} is {parts} of its norm from {name}; allowed is {LARGEST_DIFFERENCE}"
                    )
            return {"difference": {"from": name, **apart}}
    return {}


def _apart(ones: list[torch.Tensor], others: list[torch.Tensor]) -> list[float]:
    """How far each tensor is from its peer, as a part of that one's norm."""
    parts = (((a.float() - b.float()).norm() / b.float().norm()).item() for a, b in zip(ones, others, strict=True))
    return [float(f"{part:.2e}") for part in parts]


def _prepared(clock: Clock, kpt: Mapping[str, Run], peers: Mapping[str, Run]) -> tuple[dict[str, Run], dict[str, str]]:
    """The candidates ready to be timed, and why some peers are not."""
    ready = {name: clock.prepare(run) for name, run in kpt.items()}
    missing = {}
    for name, run in peers.items():
        try:
            ready[name] = clock.prepare(run)
        except Exception as error:
            missing[name] = reason(error)
    torch.cuda.empty_cache()
    return ready, missing
