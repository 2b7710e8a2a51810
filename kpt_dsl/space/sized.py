"""Facts of a kernel with its tiles given sizes by a config: lanes, bytes, steps, programs. What is peculiar to a kind of
machine is in the classes derived from it."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

from kpt_dsl import ir
from kpt_dsl.space.config import Config
from kpt_dsl.space.facts import Access, Axes, Facts, Loops
from kpt_dsl.space.spans import mean_steps
from kpt_dsl.targets import Target


@dataclass(frozen=True)
class Sized(ABC):
    """A kernel's sizes under a config."""

    facts: Facts
    target: Target
    config: Config

    @abstractmethod
    def whole(self, axis: ir.Axis) -> int:
        """How many lanes an axis has that spans its whole dim."""

    def lanes(self, axis: ir.Axis) -> int:
        """How many lanes an axis has."""
        if axis == ir.UNIT:
            return 1
        block = self.facts.block_of.get(axis)
        return self.whole(axis) if block is None else self.blocks[block]

    def count(self, axes: Axes) -> int:
        """How many elements a tile has, padding included."""
        return math.prod(map(self.lanes, axes))

    def bytes(self, access: Access) -> int:
        """Of a tile that is read or written."""
        return self.count(access.axes) * access.tensor.dtype.bytes

    @cached_property
    def blocks(self) -> dict[str, int]:
        return {block: int(self.config[block]) for block in self.facts.blocks}

    @cached_property
    def programs(self) -> int:
        """How many programs the grid has."""
        dims = self.facts.dims
        return max(
            1,
            math.prod(
                math.ceil(dims[loop.dim] / self.blocks[loop.block]) if isinstance(loop, ir.Tile) else dims[loop.dim]
                for loop in self.facts.kernel.grid
            ),
        )

    @cached_property
    def _steps(self) -> dict[Loops, float]:
        found: dict[Loops, float] = {(): 1.0}
        for loops in self.facts.loops:
            steps = mean_steps(loops[-1], self.facts.tiles, self.facts.dims, self.blocks)
            found[loops] = found[loops[:-1]] * steps
        return found

    def steps(self, loops: Loops) -> float:
        """How often, on average, a program runs what is within some loops."""
        return self._steps[loops]


def up_to_power(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()


def powers(low: int, high: int) -> tuple[int, ...]:
    """Powers of two from low to high, both included."""
    return tuple(1 << i for i in range(low.bit_length() - 1, high.bit_length()))
