"""The first config of a kernel on a GPU: the best of a few hundred candidates by the model of ``gpu_model``.

Tile sizes, warps and pipeline depth are searched, for they trade against each other; the rest follows from them by rule.
"""

import itertools
import math
from collections.abc import Callable, Iterator

from kpt_dsl.space import gpu_model
from kpt_dsl.space.config import Config, Value
from kpt_dsl.space.facts import Facts
from kpt_dsl.space.gpu_model import PARTITIONS
from kpt_dsl.space.gpu_sizes import GpuSizes
from kpt_dsl.targets import Target

OPERAND_ROW_BYTES = (128, 256)
"""Bytes of a product's operands along k in one step: a line of shared memory without bank conflicts is 128 B."""
THREAD_BYTES = 32
"""Bytes of a row that a thread best holds: two of the widest loads (16 B) under way at once."""
DEPTHS = (2, 3, 4, 1)
"""Pipeline depths worth considering, the least that pipelines first. Where copies pass through registers, a chain of
products leaves none for them: one stage then (AMD's own attention kernels)."""
DESCRIPTOR_SECONDS = 20e-6
"""Below this run time, encoding descriptors on the host costs more than they save."""
GROUP = 8
"""Rows of tiles that are walked together, so that operands stay in L2."""

WAVES = 2
"""From this many tiles a core on, programs that go on to the next tile hide its loads behind the end of the last."""
PART_BYTES = 32 * 1024
"""A larger tile is stored in parts, for it would take shared memory from the pipeline."""
COMFORTABLE_REGISTERS = 0.7
"""Share of a thread's registers that tiles may take before the compiler is likely to run out."""

Judge = Callable[[Config], str | None]


def first(facts: Facts, target: Target, knobs: dict[str, tuple[Value, ...]], why_illegal: Judge) -> Config | None:
    """The best legal candidate by the model, else the legal config with the smallest values, else None."""
    legal = (config for config in _candidates(facts, target, knobs) if why_illegal(config) is None)
    scored = ((_score(GpuSizes(facts, target, config)), config) for config in legal)
    best = min(scored, key=lambda pair: pair[0], default=None)
    if best is not None:
        return best[1]
    everything = (Config(dict(zip(knobs, values, strict=True))) for values in itertools.product(*knobs.values()))
    return next((config for config in everything if why_illegal(config) is None), None)


def _candidates(facts: Facts, target: Target, knobs: dict[str, tuple[Value, ...]]) -> Iterator[Config]:
    """Points of a thinned grid over blocks, warps and stages, each completed by rule.

    The first of equals wins, so larger tiles come first, and fewer warps and stages, down to those that keep a core busy.
    """
    searched = [name for name in knobs if name in facts.blocks or name in ("num_warps", "num_stages")]
    worth = {name: _worth_trying(facts, target, name, knobs[name]) for name in searched}
    for values in itertools.product(*(v[::-1] if name in facts.blocks else v for name, v in worth.items())):
        yield _completed(facts, target, knobs, dict(zip(worth, values, strict=True)))


def _worth_trying(facts: Facts, target: Target, name: str, values: tuple[Value, ...]) -> tuple[Value, ...]:
    if name == "num_stages":
        through_registers = not target.async_copies and any(p.chained for p in facts.products)
        depths = (1,) if through_registers else DEPTHS
        return tuple(depth for depth in depths if depth in values) or values
    if name == "num_warps":
        return tuple(v for v in values if int(v) >= PARTITIONS) + tuple(v for v in values if int(v) < PARTITIONS)
    sizes = [p.dtype.bytes for p in facts.products if facts.block_of.get(p.k) == name and not p.chained]
    if sizes:
        fitting = tuple(v for v in values if int(v) * max(sizes) in OPERAND_ROW_BYTES) or values[-1:]
        return fitting[::-1]  # ties go to the shorter rows
    return values


def _completed(facts: Facts, target: Target, knobs: dict[str, tuple[Value, ...]], chosen: dict[str, Value]) -> Config:
    """A config whose remaining knobs follow from those chosen."""
    config = Config({name: chosen.get(name, values[0]) for name, values in knobs.items()})
    sizes = GpuSizes(facts, target, config)
    by_rule: dict[str, Value] = {}
    if "group" in knobs and min(map(sizes.tiles, facts.grid_tiles[-2:])) >= GROUP:
        by_rule["group"] = GROUP
    if "descriptors" in knobs and gpu_model.compulsory_seconds(sizes) > DESCRIPTOR_SECONDS:
        by_rule["descriptors"] = True
        if "persistent" in knobs and sizes.programs > WAVES * target.cores:
            by_rule["persistent"] = True
        if "epilogue" in knobs and sizes.epilogue_bytes > PART_BYTES:
            by_rule["epilogue"] = 2
    return config | by_rule


def _score(sizes: GpuSizes) -> float:
    """Modelled seconds, with small handicaps for what a roofline does not see.

    With products: registers close to the limit, which the compiler then spills. Without: threads that hold more or less of a
    tile than they load at once.
    """
    seconds = gpu_model.seconds(sizes)
    if sizes.facts.products:
        return seconds * (1 + max(0.0, sizes.registers / sizes.target.thread_registers - COMFORTABLE_REGISTERS))
    widest = max((sizes.bytes(load) for load in sizes.facts.loads), default=0)
    return seconds * (1 + 0.05 * abs(math.log2(max(1, widest) / sizes.threads / THREAD_BYTES)))
