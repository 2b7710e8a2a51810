"""How far the first configs of classes are from those that each length would have had by the same rule, alone.

Every kernel of ops and backwards, 40 lengths, several batches. Where both configs are one, or make one binary, they are as fast
by definition and are not timed; the others are timed in turns on the same inputs. A ratio is the time under the length's
own config over that under its class's: more than 1 where the class's is the quicker.
"""

import hashlib
import math
import os
import random
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from autotune_db import inputs, jobs
from autotune_db import measure as measuring
from autotune_db.crew import Crew, Reply
from autotune_db.measure import Clock
from benchmarks.case import Found
from benchmarks.peers import reason
from benchmarks.report import Picture
from kpt.ops import registry
from kpt_dsl import KptError, runtime, targets
from kpt_dsl.classes import options
from kpt_dsl.emit import Source, emit
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config, space
from kpt_dsl.targets import Target

TITLE = "First configs of classes, and of each length"

PICTURE = Picture("ratio", "time by the length's config / by the class's", kind="sorted")

LENGTHS = (
    *range(1, 9), 15, 16, 17, 33, 64, 100, 127, 128, 199, 256, 300, 511, 512, 760, 1000, 1023, 1024, 1500, 2000, 2048, 3000,
    4096, 5000, 7777, 8192, 12000, 16384, 30000, 40000, 65536, 100000, 131072,
)  # fmt: skip

BATCHES = (1, 4, 16, 64)

MOST_BYTES = 2 << 30
"""Problems whose tensors take more are left out."""

ATTENTION = {"H": 32, "G": 8, "D": 64}
NORM = {"N": 2048}
LINEAR = {"N": 2048, "K": 2048}
OPS: Mapping[str, tuple[Mapping[str, int], Mapping[str, Any]]] = {
    "flash_attention": (ATTENTION, {"causal": True}),
    "flash_attention_backward": (ATTENTION, {"causal": True}),
    "rms_norm": (NORM, {}),
    "rms_norm_backward": (NORM, {}),
    "layer_norm": (NORM, {}),
    "layer_norm_backward": (NORM, {}),
    "linear_act": (LINEAR, {"activation": "silu"}),
    "linear_act_saving": (LINEAR, {"activation": "silu"}),
    "linear_act_backward": (LINEAR, {"activation": "silu"}),
}
"""The fixed dims and the flags of each."""

CHOSEN_AT_ONCE = 16
"""Problems of one job: neighbours, which share classes."""

CHOOSING_SECONDS, COMPILING_SECONDS, TIMING_SECONDS = 120.0, 60.0, 60.0
"""For each part in all. What was not compiled or timed by then is named."""

FAR = 0.05
"""Ratios further from 1 are measured again, the slow and the quick alike, and then that stands: most of them are noise."""

SECONDS_OF_ONE = (0.02, 0.1)
"""The least and the most for a pair at its first measuring; ``--seconds`` for one that is measured again."""


SAME_CONFIG, SAME_BINARY, LATE = "the same config", "the same binary", "no time was left"


class Two(NamedTuple):
    """The configs of a problem where they make different binaries, and names of these."""

    of_class: Config
    of_length: Config
    binaries: tuple[str, str]


Pair = tuple[Instance, Two]


def measure(given: Namespace) -> Found:
    """A row for each problem whose two configs make different binaries."""
    target = targets.of_device(torch.cuda.get_device_name())
    if target is None:
        raise KptError(f"no target describes {torch.cuda.get_device_name()}; see docs/add-a-target.md")
    every = [problem for problem in problems(LENGTHS, BATCHES, target) if given.only in str(problem)]
    return compared(every, target, "cuda", measuring.clock(target), given.seconds) if every else Found([])


def problems(lengths: Iterable[int], batches: Iterable[int], target: Target) -> list[Instance]:
    """Every kernel of the ops, in bf16, each problem once; neighbours are of one kernel and of like lengths."""
    batches, found = tuple(batches), dict[Instance, None]()
    for op, (fixed, flags) in OPS.items():
        for length in lengths:
            for batch in batches:
                varying = {"B": batch, "M": length, "N": length} if "D" in fixed else {"M": batch * length}
                found.update(dict.fromkeys(registry.get(op).instances({**fixed, **varying}, "bf16", target, **flags)))
    return sorted(found, key=lambda problem: (problem.kernel.name, problem.extents.dims))


def compared(every: Sequence[Instance], target: Target, device: str, clock: Clock, seconds: float) -> Found:
    """Chooses and compiles in processes, one a core; then, while they rest, times here."""
    fitting = [problem for problem in every if _bytes(problem) <= MOST_BYTES]
    with Crew(os.cpu_count() or 1) as crew:
        answers = _choices(crew, fitting, target)
        pairs: list[Pair] = [(p, a) for p, a in zip(fitting, answers, strict=True) if isinstance(a, Two)]
        # Drawn, so that the first, if there is time for no more, stand for all.
        random.Random(0).shuffle(pairs)
        without = _compile(crew, pairs, target)
    same = (SAME_CONFIG, SAME_BINARY)
    untimed = {p: a for p, a in zip(fitting, answers, strict=True) if isinstance(a, str) and a not in same}
    untimed |= {p: without[binary] for p, two in pairs for binary in two.binaries if binary in without}
    rows = _timed([pair for pair in pairs if pair[0] not in untimed], target, device, clock, seconds, untimed)
    about = {
        **_counted(fitting, answers, rows),
        "beyond the memory bound": len(every) - len(fitting),
        "memory bound, bytes": MOST_BYTES,
        "not timed": [{"case": str(problem), "why": why} for problem, why in untimed.items()],
        "kernels": {
            name: _counted(fitting, answers, rows, name) for name in dict.fromkeys(p.kernel.name for p in fitting)
        },
    }
    print(_line(about), flush=True)
    in_order = sorted(rows.values(), key=lambda row: float(row["ratio"]))
    return Found(in_order, sum(why != LATE for why in untimed.values()), about, PICTURE)


def choose(every: Sequence[Instance], target: str) -> list[Two | str]:
    """Of each problem the two configs, or what it has instead. Runs in a process of the crew."""
    chip = targets.get(target)
    return [_chosen(problem, chip) for problem in every]


def _chosen(problem: Instance, chip: Target) -> Two | str:
    try:
        of_class, of_length = options(problem, chip).first, space(problem, chip).first
        if of_class == of_length:
            return SAME_CONFIG
        mine, other = (_binary(emit(problem, chip, config)) for config in (of_class, of_length))
    except KptError as error:
        return reason(error)
    return SAME_BINARY if mine == other else Two(of_class, of_length, (mine, other))


def _binary(source: Source) -> str:
    """A name for what is compiled: texts that differ in what they say of their config only, and signatures, are compared."""
    lines = [line for line in source.text.splitlines() if not line.startswith("Config: ")]
    return hashlib.sha256("\n".join([*lines, repr(source.abi)]).encode()).hexdigest()


def _choices(crew: Crew, every: Sequence[Instance], target: Target) -> list[Two | str]:
    found: list[Two | str] = [LATE] * len(every)
    for begin in range(0, len(every), CHOSEN_AT_ONCE):
        some = list(every[begin : begin + CHOSEN_AT_ONCE])
        crew.submit(begin, choose, some, target.name, seconds=CHOOSING_SECONDS)
    for reply in _replies(crew, CHOOSING_SECONDS):
        assert isinstance(reply.job, int)
        end = min(reply.job + CHOSEN_AT_ONCE, len(every))
        lost = [f"{reply.failure}: {reply.kind} {reply.detail}"] * (end - reply.job)
        found[reply.job : end] = lost if reply.failure else reply.value
    return found


def _compile(crew: Crew, pairs: Sequence[Pair], target: Target) -> dict[str, str]:
    """Compile each binary once, onto the disk, where the launches find it. Gives why some binaries are not there."""
    without = {binary: LATE for _, two in pairs for binary in two.binaries}
    submitted = set[str]()
    for problem, two in pairs:
        for binary, config in zip(two.binaries, (two.of_class, two.of_length), strict=True):
            if binary not in submitted:
                submitted.add(binary)
                crew.submit(binary, jobs.compile_one, problem, target.name, config, seconds=jobs.COMPILE_SECONDS)
    for reply in _replies(crew, COMPILING_SECONDS):
        if reply.failure:
            without[str(reply.job)] = f"{reply.failure}: {reply.kind} {reply.detail}"
        else:
            del without[str(reply.job)]
    return without


def _replies(crew: Crew, seconds: float) -> Iterator[Reply]:
    """What ends within so many seconds; the rest is forgotten."""
    until = time.monotonic() + seconds
    while crew.unfinished and time.monotonic() < until:
        yield from crew.collect(0.5)
    crew.abandon()


def _timed(
    pairs: Sequence[Pair], target: Target, device: str, clock: Clock, seconds: float, untimed: dict[Instance, str]
) -> dict[Instance, dict[str, Any]]:
    """A row a pair; into ``untimed`` goes why some have none."""
    rows, until = dict[Instance, dict[str, Any]](), time.monotonic() + TIMING_SECONDS
    least, most = SECONDS_OF_ONE
    share = max(least, min(most, TIMING_SECONDS / 4 / max(1, len(pairs))))
    with clock.on_its_stream():
        for problem, two in pairs:
            if time.monotonic() > until:
                untimed[problem] = LATE
                continue
            try:
                rows[problem] = _row(problem, two, target, device, clock, (share, seconds))
            except Exception as error:  # whatever a compiler or a device raises: it costs this row only
                untimed[problem] = reason(error)
    return rows


def _row(
    problem: Instance, two: Two, target: Target, device: str, clock: Clock, seconds: tuple[float, float]
) -> dict[str, Any]:
    arguments = inputs.make(problem, device, seed=0)
    launches = [
        clock.prepare(runtime.launcher(problem, arguments, config, target)) for config in (two.of_class, two.of_length)
    ]
    of_class, of_length = measuring.medians(clock, launches, seconds[0])
    if again := abs(math.log(of_length / of_class)) > FAR:
        of_class, of_length = measuring.medians(clock, launches, seconds[1])
    return {
        "case": str(problem),
        "microseconds": {"class": round(of_class, 2), "length": round(of_length, 2)},
        "ratio": round(of_length / of_class, 4),
        "timed again": again,
        "configs": {"class": dict(two.of_class), "length": dict(two.of_length)},
    }


def _counted(
    every: Sequence[Instance], answers: Sequence[Two | str], rows: Mapping[Instance, Mapping[str, Any]], kernel: str = ""
) -> dict[str, Any]:
    """Counts and means, of all problems or of a kernel's. Equal configs and binaries count as ratios of 1."""
    known = [(p, answer) for p, answer in zip(every, answers, strict=True) if kernel in ("", p.kernel.name)]
    timed = [float(rows[p]["ratio"]) for p, _ in known if p in rows]
    same = {what: sum(answer == what for _, answer in known) for what in (SAME_CONFIG, SAME_BINARY)}
    return {
        "problems": len(known),
        **same,
        "two binaries": sum(isinstance(answer, Two) for _, answer in known),
        "timed": len(timed),
        "geometric mean": _mean([1.0] * sum(same.values()) + timed),
        "geometric mean of the timed": _mean(timed),
        "worst": min(timed, default=None),
        "below 0.9": sum(ratio < 0.9 for ratio in timed),
    }


def _mean(ratios: Sequence[float]) -> float | None:
    return round(math.exp(sum(map(math.log, ratios)) / len(ratios)), 4) if ratios else None


def _bytes(problem: Instance) -> int:
    total = 0
    for name, _ in problem.extents.strides:
        element = problem.specialisation.dtype(name)
        assert element is not None
        total += math.prod(problem.shape(name)) * element.bits // 8
    return total


def _line(about: Mapping[str, Any]) -> str:
    """All together, for the terminal."""
    counts = ", ".join(f"{about[key]} {key}" for key in ("problems", SAME_CONFIG, SAME_BINARY, "two binaries", "timed"))
    means = f"geometric mean {about['geometric mean']}, of the timed {about['geometric mean of the timed']}"
    lines = [f"{counts}; {means}, worst {about['worst']}, {about['below 0.9']} below 0.9"]
    for name, of in about["kernels"].items():
        mean = of["geometric mean of the timed"]
        lines.append(f"  {name:<32} {of['timed']:4} timed of {of['problems']:4}: {mean}, worst {of['worst']}")
    why = Counter(entry["why"] for entry in about["not timed"])
    return "\n".join([*lines, *(f"  {count} not timed: {what}" for what, count in why.most_common(10))])
