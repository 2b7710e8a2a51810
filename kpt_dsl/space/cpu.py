"""Space rules of the NumPy run: a tile is an array, so larger tiles mean fewer Python steps; memory is the only limit."""

import math
from dataclasses import dataclass

from kpt_dsl import ir
from kpt_dsl.space.config import Config, points
from kpt_dsl.space.facts import Facts
from kpt_dsl.space.sized import Sized, powers, up_to_power
from kpt_dsl.space.space import Knobs
from kpt_dsl.targets import Target

MAX_BLOCK = 1024
MIN_BLOCK = 16
MAX_TILE_ELEMENTS = 2**24
"""Most elements of one array: 64 MiB in f32, of which a kernel holds a handful."""
STEP = 20e-6
"""Seconds that the interpreter spends on a step beside arithmetic."""


@dataclass(frozen=True)
class CpuSizes(Sized):
    """A kernel's sizes under a config, in NumPy."""

    def whole(self, axis: ir.Axis) -> int:
        return max(1, self.facts.extent(axis))


def knobs(facts: Facts, target: Target) -> Knobs:
    """Block sizes."""
    found: Knobs = {}
    for block, axes in facts.blocks.items():
        extent = up_to_power(max(1, *(facts.extent(axis) for axis in axes)))
        found[block] = powers(min(MIN_BLOCK, extent), min(MAX_BLOCK, extent))
    return found


def why_illegal(facts: Facts, target: Target, config: Config) -> str | None:
    """Why a config is refused: arrays too large to hold."""
    sizes = CpuSizes(facts, target, config)
    for kind in facts.tile_types:
        count = sizes.count(kind.shape)
        least = math.prod(min(sizes.lanes(a), MIN_BLOCK) if a.tile else sizes.lanes(a) for a in kind.shape)
        if count > max(least, MAX_TILE_ELEMENTS):
            return f"tile {kind} has {count:,} elements; an array may have at most {MAX_TILE_ELEMENTS:,}"
    return None


def first(facts: Facts, target: Target, knobs: Knobs) -> Config | None:
    """The legal config with the fewest steps."""
    configs = map(Config, points({name: values[::-1] for name, values in knobs.items()}))
    legal = (config for config in configs if why_illegal(facts, target, config) is None)
    return min(legal, key=lambda config: seconds(facts, target, config), default=None)


def seconds(facts: Facts, target: Target, config: Config) -> float:
    """Steps of the interpreter, and elements."""
    sizes = CpuSizes(facts, target, config)
    steps = sizes.programs * sum(sizes.steps)
    elements = sum(sizes.count(a.axes) * len(a.operations) * sizes.steps[a.scope] for a in facts.arithmetic)
    flops = sum(2 * sizes.count((p.m, p.n, p.k)) * sizes.steps[p.scope] for p in facts.products)
    busy = elements / target.vector_flops_per_s + flops / target.peak("f32")
    return steps * STEP + sizes.programs * busy
