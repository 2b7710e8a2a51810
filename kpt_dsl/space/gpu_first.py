"""The first config of a kernel on a GPU: the best of a few hundred candidates by the model of ``gpu_model``.

Tile sizes, warps and pipeline depth are searched, for they trade against each other; the rest follows from them by rule.
"""

import itertools
import math
from collections.abc import Callable, Iterator

from kpt_dsl.space import gpu_model
from kpt_dsl.space.config import Config, Value
from kpt_dsl.space.facts import Facts
from kpt_dsl.space.gpu_sizes import GpuSizes
from kpt_dsl.targets import Target

OPERAND_ROW_BYTES = (128, 256)
"""Bytes of a product's operands along k in one step: a line of shared memory without bank conflicts is 128 B."""
THREAD_BYTES = 32
"""Bytes of a row that a thread best holds: two of the widest loads (16 B) under way at once."""
DEPTHS = (1, 2, 3, 4)
"""Pipeline depths worth considering; more only help when memory is very far."""
DESCRIPTOR_SECONDS = 20e-6
"""Below this run time, encoding descriptors on the host costs more than they save."""
GROUP = 8
"""Rows of tiles that are walked together, so that operands stay in L2."""

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
    """Points of a thinned grid over blocks, warps and stages, each completed by rule; larger tiles first."""
    searched = {name: _worth_trying(facts, name, values) for name, values in knobs.items() if _is_searched(facts, name)}
    for values in itertools.product(*(tuple(reversed(v)) for v in searched.values())):
        yield _completed(facts, target, knobs, dict(zip(searched, values, strict=True)))


def _is_searched(facts: Facts, name: str) -> bool:
    return name in facts.blocks or name in ("num_warps", "num_stages")


def _worth_trying(facts: Facts, name: str, values: tuple[Value, ...]) -> tuple[Value, ...]:
    if name == "num_stages":
        return tuple(v for v in values if v in (DEPTHS if facts.products else DEPTHS[:3])) or values
    depths = [p.dtype.bytes for p in facts.products if facts.block_of.get(p.k) == name and not p.chained]
    if depths:
        return tuple(v for v in values if int(v) * max(depths) in OPERAND_ROW_BYTES) or values[-1:]
    return values


def _completed(facts: Facts, target: Target, knobs: dict[str, tuple[Value, ...]], chosen: dict[str, Value]) -> Config:
    """A config whose remaining knobs follow from those chosen."""
    config = Config({name: chosen.get(name, values[0]) for name, values in knobs.items()})
    sizes = GpuSizes(facts, target, config)
    large = sizes.programs > target.cores
    by_rule: dict[str, Value] = {}
    if "group" in knobs and large:
        by_rule["group"] = GROUP
    if "descriptors" in knobs and gpu_model.compulsory_seconds(sizes) > DESCRIPTOR_SECONDS:
        by_rule["descriptors"] = True
        if "persistent" in knobs and large:
            by_rule["persistent"] = True
            by_rule |= {"epilogue": 2} if "epilogue" in knobs else {}
    return config | by_rule


def _score(sizes: GpuSizes) -> float:
    """Modelled seconds, with a small handicap for threads that hold more or less of a tile than they load at once."""
    seconds = gpu_model.seconds(sizes)
    if sizes.facts.products:
        return seconds
    widest = max((sizes.bytes(load) for load in sizes.facts.loads), default=0)
    return seconds * (1 + 0.05 * abs(math.log2(max(1, widest) / sizes.threads / THREAD_BYTES)))
