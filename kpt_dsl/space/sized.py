"""Facts of a kernel with its tiles given sizes by a config: lanes, bytes, steps, programs. What is peculiar to a kind of
machine is in the classes derived from it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

from kpt_dsl import ir
from kpt_dsl.space.config import Value
from kpt_dsl.space.facts import Access, Axes, Facts
from kpt_dsl.space.spans import mean_steps
from kpt_dsl.targets import Target


@dataclass(frozen=True)
class Sized(ABC):
    """A kernel's sizes under a config."""

    facts: Facts
    target: Target
    config: Mapping[str, Value]

    OF_TILES: ClassVar[tuple[str, ...]] = ("_lanes", "_counts", "blocks", "programs", "steps", "compulsory_seconds")
    """What only depends on the tiles."""

    @abstractmethod
    def whole(self, axis: ir.Axis) -> int:
        """How many lanes an axis has that spans its whole dim."""

    def having(self, knobs: Mapping[str, Value]) -> Self:
        """The same tiles with some other knobs; what depends on the tiles alone is not computed again."""
        other = type(self)(self.facts, self.target, {**self.config, **knobs})
        other.__dict__.update({name: getattr(self, name) for name in self.OF_TILES})
        return other

    def lanes(self, axis: ir.Axis) -> int:
        """How many lanes an axis has."""
        found = self._lanes.get(axis)
        if found is None:
            block = self.facts.block_of.get(axis)
            found = self._lanes[axis] = self.whole(axis) if block is None else self.blocks[block]
        return found

    @cached_property
    def _lanes(self) -> dict[ir.Axis, int]:
        return {ir.UNIT: 1}

    def count(self, axes: Axes) -> int:
        """How many elements a tile has, padding included."""
        found = self._counts.get(axes)
        if found is None:
            found = self._counts[axes] = math.prod([self.lanes(axis) for axis in axes])
        return found

    @cached_property
    def _counts(self) -> dict[Axes, int]:
        return {}

    def bytes(self, access: Access) -> int:
        """Of a tile that is read or written."""
        return self.count(access.axes) * access.tensor.dtype.bytes

    @cached_property
    def blocks(self) -> dict[str, int]:
        return {block: int(self.config[block]) for block in self.facts.blocks}

    @cached_property
    def programs(self) -> int:
        """How many programs the grid has."""
        grid = self.facts.kernel.grid
        counts = (self.tiles(loop) if isinstance(loop, ir.Tile) else self.facts.dims[loop.dim] for loop in grid)
        return max(1, math.prod(counts))

    def tiles(self, tile: ir.Tile) -> int:
        """How many tiles cover the dim of a tile variable; of each group the last is half full, on average."""
        ends = self.facts.dims[tile.groups.dim] if tile.groups else 0
        return math.ceil(self.facts.dims[tile.dim] / self.blocks[tile.block]) + max(0, ends - 1) // 2

    def most_steps(self, loop: ir.For) -> int:
        """How many turns a loop over its whole dim makes."""
        return self.tiles(loop.over) if isinstance(loop.over, ir.Tile) else self.facts.dims[loop.over.dim]

    @cached_property
    def compulsory_seconds(self) -> float:
        """The least that the products and the bytes of every tensor can take."""
        facts, target = self.facts, self.target
        held = {t: math.prod(facts.dims[d] for d in t.dims) for t in facts.kernel.tensors}
        moved = sum(min(n, facts.gathered.get(t.name, n)) * t.dtype.bytes for t, n in held.items())
        products = sum(
            2 * self.count((p.m, p.n, p.k)) * self.steps[p.scope] / target.peak(p.dtype.name) for p in facts.products
        )
        return max(moved / target.bandwidth_bytes_per_s, products * self.programs)

    @cached_property
    def steps(self) -> tuple[float, ...]:
        """How often, on average, a program runs what is in each scope."""
        found = [1.0]
        for loop, outer in zip(self.facts.loops, self.facts.outer, strict=True):
            found.append(found[outer] * mean_steps(loop, self.facts.variables, self.facts.dims, self.blocks))
        return tuple(found)


def up_to_power(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()


def powers(low: int, high: int) -> tuple[int, ...]:
    """Powers of two from low to high, both included."""
    return tuple(1 << i for i in range(low.bit_length() - 1, high.bit_length()))
