"""The interpreter of Gluon taking notes: which tiles its warpgroups move and multiply, and their work between products."""

import math
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kpt_dsl.emit import Source
from kpt_dsl.emit.triton.abi import Descriptor, Pointer, Scalar
from kpt_dsl.instance import Instance
from kpt_dsl.runtime import gluon_interpreter
from kpt_dsl.runtime.gluon_interpreter import Described
from kpt_dsl.runtime.triton_launch import numbers

Notes = defaultdict[int, list[Any]]


def notes() -> Notes:
    return defaultdict(list)


@dataclass
class Machine(gluon_interpreter.Machine):
    """Runs one program. ``products``: the pairs of tiles that each consumer multiplied, in order; ``stored``: what
    it wrote; ``worked``: which work it did between products, "masked" or "clear". A tile is its tensor and its corner."""

    products: Notes = field(default_factory=notes)
    stored: Notes = field(default_factory=notes)
    worked: Notes = field(default_factory=notes)
    names: dict[int, str] = field(default_factory=dict)
    held: dict[int, tuple[Any, ...]] = field(default_factory=dict)

    def on_zeros(self, source: Source, instance: Instance, **scalars: int) -> None:
        """Run the program on tensors of zeros."""
        known, arguments = iter(numbers(source.abi, instance)), []
        for a in source.abi.arguments:
            match a:
                case Descriptor():
                    described = Described(np.zeros(instance.shape(a.tensor), np.float16), a.block)
                    self.names[id(described.array)] = a.tensor
                    arguments.append(described)
                case Pointer():
                    arguments.append(gluon_interpreter.Pointer(np.zeros(math.prod(instance.shape(a.tensor)), np.float32)))
                case Scalar():
                    arguments.append(scalars.get(a.scalar, 1.0))
                case _:
                    arguments.append(next(known))
        self.run(source, arguments)

    @property
    def me(self) -> int:
        return int(threading.current_thread().name)

    def jit(self, function: Any) -> Any:
        kind = function.__name__.removeprefix("s_")
        if kind not in ("masked", "clear"):
            return function

        def noted(*given: Any) -> Any:
            self.worked[self.me].append(kind)
            return function(*given)

        return noted

    def async_load(self, tensor: Described, corner: list[int], barrier: Any, tile: Any) -> None:
        self.held[address(tile)] = (self.names[id(tensor.array)], *corner)
        super().async_load(tensor, corner, barrier, tile)

    def async_store(self, tensor: Described, corner: list[int], tile: Any) -> None:
        self.stored[self.me].append((self.names[id(tensor.array)], *corner))
        super().async_store(tensor, corner, tile)

    async_copy_global_to_shared, async_copy_shared_to_global = async_load, async_store

    def warpgroup_mma(self, a: Any, b: Any, c: Any, **more: Any) -> Any:
        left = None if isinstance(a, np.ndarray) else self.held[address(a)]
        self.products[self.me].append((left, self.held.get(address(b))))  # none: behind the last step, and not read
        return super().warpgroup_mma(a, b, c, **more)


def address(tile: Any) -> int:
    """Where a tile is in memory, transposed or not."""
    return int(tile.data.__array_interface__["data"][0])
