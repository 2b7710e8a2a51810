"""A machine that runs the skeleton of a generated Gluon module: barriers, copies and products, each warpgroup a thread.

It knows nothing of values. A tile is the tensor and the corner that it was loaded from, a product notes which tiles it read.
"""

import re
import threading
from dataclasses import dataclass, field
from typing import Any

from kpt_dsl.emit import Source
from kpt_dsl.emit.triton_abi import Argument, Descriptor, Extent, Scalar

SECONDS = 20.0
"""A wait that lasts so long is a deadlock."""


class Anything:
    """A value that nobody looks at: all operations give it back."""

    def _itself(self, *_: Any, **__: Any) -> "Anything":
        return self

    __call__ = __getitem__ = _itself
    __add__ = __radd__ = __sub__ = __mul__ = __rmul__ = __truediv__ = __lt__ = _itself

    def __getattr__(self, name: str) -> "Anything":
        if name.startswith("__"):
            raise AttributeError(name)
        return self


ANYTHING = Anything()


@dataclass
class Slot:
    """Room for a tile, or a barrier."""

    holds: Any = None
    count: int = 0
    arrived: int = 0
    bytes: int = 0
    phase: int = 0

    def permute(self, _: Any) -> "Slot":
        return self

    def store(self, _: Any) -> None:
        self.holds = "written"


@dataclass
class Slots:
    each: list[Slot]

    def index(self, i: int) -> Slot:
        return self.each[i]


@dataclass
class Described:
    """A tensor descriptor; its blocks are one byte long."""

    tensor: str
    nbytes: int = 1

    @property
    def block_type(self) -> "Described":
        return self


@dataclass
class Machine:
    """Runs one program. ``products``: the pairs of tiles that each consumer multiplied, in order; ``stored``: what
    it wrote; ``worked``: which work it did between products, "masked" or "clear"."""

    program: int
    programs: int
    products: dict[int, list[tuple[Any, Any]]] = field(default_factory=dict)
    stored: dict[int, list[Any]] = field(default_factory=dict)
    worked: dict[int, list[str]] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)
    failures: list[str] = field(default_factory=list)

    def run(self, source: Source, extents: dict[str, int], **scalars: int) -> None:
        """Run the program; raises AssertionError where a warpgroup waits forever or fails."""
        text = re.sub(r"^from .*$", "", source.text, flags=re.MULTILINE)
        # The work between products is on values only, and gives as many as it names.
        text = re.sub(r"(def s_(\w+)\([^)]*\):\n)(?:    .*\n)*?    return (.*)\n", self._noted, text)
        scope: dict[str, Any] = {
            "gluon": self, "gl": self, "mbarrier": self, "tma": self, "fence_async_shared": ANYTHING,
            "warpgroup_mma": self.multiply, "warpgroup_mma_wait": lambda _, deps: deps[0],
        }  # fmt: skip
        exec(text, scope)
        scope[source.name](*(self._argument(a, extents, scalars) for a in source.abi.arguments))

    @staticmethod
    def _argument(a: Argument, extents: dict[str, int], scalars: dict[str, int]) -> Any:
        match a:
            case Descriptor():
                return Described(a.tensor)
            case Extent():
                return extents[a.dim]
            case Scalar():
                return scalars.get(a.scalar, ANYTHING)
        return ANYTHING

    @staticmethod
    def _noted(found: "re.Match[str]") -> str:
        return f'{found[1]}    return gl.work("{found[2]}", {found[3].count(",") + 1})\n'

    # ------------------------------------------------------------------ the language
    def __getattr__(self, name: str) -> Any:
        return ANYTHING

    def jit(self, fn: Any) -> Any:
        return fn

    def constexpr(self, value: Any) -> Any:
        return value

    def program_id(self, _: int) -> int:
        return self.program

    def num_programs(self, _: int) -> int:
        return self.programs

    def cdiv(self, a: int, b: int) -> int:
        return -(-a // b)

    def minimum(self, a: Any, b: Any) -> Any:
        return min(a, b)

    def maximum(self, a: Any, b: Any) -> Any:
        return max(a, b)

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        return a if condition is True else b

    static_range = range

    def allocate_shared_memory(self, _: Any, shape: list[int], __: Any) -> Slots:
        return Slots([Slot() for _ in range(shape[0])])

    def warp_specialize(self, partitions: list[tuple[Any, tuple[Any, ...]]], *_: Any) -> None:
        def run(name: str, fn: Any, arguments: tuple[Any, ...]) -> None:
            try:
                fn(*arguments)
            except Exception as error:
                with self.changed:
                    self.failures.append(f"{name}: {error!r}")

        threads = [threading.Thread(target=run, args=(f"{i}", *p), name=f"{i}") for i, p in enumerate(partitions)]
        for notes in (self.products, self.stored, self.worked):
            notes.update({i: [] for i in range(len(threads))})
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not self.failures, self.failures

    # ------------------------------------------------------------------ barriers and copies
    def init(self, barrier: Slot, count: int) -> None:
        barrier.count = count

    def _turn(self, barrier: Slot) -> None:
        if barrier.arrived == barrier.count and not barrier.bytes:
            barrier.phase, barrier.arrived = barrier.phase + 1, 0
            self.changed.notify_all()

    def wait(self, barrier: Slot, phase: int, pred: bool = True) -> None:
        with self.changed:
            assert not pred or self.changed.wait_for(lambda: barrier.phase % 2 != phase, SECONDS), "waits forever"

    def arrive(self, barrier: Slot, count: int, pred: bool = True) -> None:
        with self.changed:
            barrier.arrived += count if pred else 0
            self._turn(barrier)

    def expect(self, barrier: Slot, size: int) -> None:
        with self.changed:
            barrier.arrived, barrier.bytes = barrier.arrived + 1, barrier.bytes + size

    def async_load(self, tensor: Described, corner: list[int], barrier: Slot, slot: Slot) -> None:
        with self.changed:
            slot.holds = (tensor.tensor, *corner)
            barrier.bytes -= tensor.nbytes
            self._turn(barrier)

    def async_store(self, tensor: Described, corner: list[int], _: Slot) -> None:
        self.stored[int(threading.current_thread().name)].append((tensor.tensor, *corner))

    def work(self, kind: str, results: int) -> tuple[Anything, ...]:
        self.worked[int(threading.current_thread().name)].append(kind)
        return (ANYTHING,) * results

    async_copy_global_to_shared, async_copy_shared_to_global = async_load, async_store

    def multiply(self, a: Any, b: Slot, *_: Any, **__: Any) -> Anything:
        left = a.holds if isinstance(a, Slot) else None
        self.products[int(threading.current_thread().name)].append((left, b.holds))
        return ANYTHING
