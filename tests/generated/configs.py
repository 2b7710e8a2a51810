"""Configs for generated cases: any point of the legal space, as long as an interpreter can run it in a moment."""

import math
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from kpt_dsl import ir
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config, space
from kpt_dsl.targets import Target

MOST_STEPS = 150
"""Tiles that a case may visit on the CPU, all programs together: Triton's interpreter takes about a millisecond each."""

_TRIES = 60
_LENGTHS = (1, 3, 8, 16, 31, 32, 64, 100, 128, 1000)


def steps(instance: Instance, config: Mapping[str, object]) -> int:
    """How many tiles are visited: programs times the turns of all loops."""
    kernel = instance.lower(config)
    count = 1
    for loop in kernel.grid:
        count *= _turns(loop, instance, config)
    inner = sum(_turns(s.over, instance, config) for s in ir.statements(kernel.body) if isinstance(s, ir.For))
    return count * max(1, inner)


def _turns(over: ir.Tile | ir.Each, instance: Instance, config: Mapping[str, object]) -> int:
    block = config[over.block] if isinstance(over, ir.Tile) else 1
    assert isinstance(block, int)
    return math.ceil(instance.extents.dim(over.dim) / block)


def any_legal(
    instance: Instance,
    target: Target,
    seed: int,
    most_steps: int = MOST_STEPS,
    count: Callable[[Instance, Mapping[str, object]], int] = steps,
) -> Config:
    """A random legal config for a target, with not too many steps; the first config by rule where none is found."""
    options, random = space(instance, target), Random(seed)
    for _ in range(_TRIES):
        variant = random.choice(options.variants)
        config = variant.choices | {name: random.choice(values) for name, values in variant.knobs.items()}
        if options.why_illegal(config) is None and count(instance, config) <= most_steps:
            return config
    return options.first


def any_lengths(instance: Instance, seed: int, most_steps: int = 20 * MOST_STEPS) -> Config:
    """A random config for NumPy, where tiles may have any length."""
    random = Random(seed)
    for _ in range(_TRIES):
        values: dict[str, Any] = {name: random.choice(options) for name, options in instance.lower().choices}
        kernel = instance.lower(values)
        loops = [*kernel.grid, *(s.over for s in ir.statements(kernel.body) if isinstance(s, ir.For))]
        values |= {loop.block: random.choice(_LENGTHS) for loop in loops if isinstance(loop, ir.Tile)}
        config = Config(values)
        if steps(instance, config) <= most_steps:
            break
    return config
