"""Generated Gluon source on tensors in host memory: each warpgroup is a thread, tiles are NumPy arrays, barriers are waited on.

Triton's own interpreter does not know Gluon. What a chip does some time between issue and wait is done here at the moment that
betrays a missing wait soonest: a copy to shared memory writes when it is issued; a product, and a copy from shared memory,
reads when it is waited for. A wait that nothing ends is an error. Layouts, which say where values live, are not looked at.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import CodeType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np

from kpt_dsl.emit import Source
from kpt_dsl.emit.gluon import vocabulary
from kpt_dsl.errors import CompileError

Array = np.ndarray[Any, Any]

SECONDS = 30.0
"""A wait on a barrier that lasts so long is a deadlock: nothing here takes longer than milliseconds."""


def interpret(source: Source, programs: int, arguments: Sequence[Any]) -> None:
    """Run the programs of a module one after another. ``arguments``: ``Pointer``, ``Described`` and numbers, in its order.

    Raises CompileError where a warpgroup fails or waits for ever.
    """
    for program in range(programs):
        Machine(program, programs).run(source, arguments)


@lru_cache(maxsize=64)
def _code(source: Source) -> CodeType:
    """A module without its imports: whoever runs it brings the names."""
    imports = (*vocabulary.IMPORTS, vocabulary.NAN_IMPORT)
    text = "\n".join("" if line in imports else line for line in source.text.splitlines())
    return compile(text, f"<kpt {source.name} {source.digest}>", "exec")


# ------------------------------------------------------------------ values and memory
class _Values(Array):
    """A tile in registers."""

    def to(self, dtype: str) -> "_Values":
        return self.astype(_dtype(dtype)).view(_Values)

    def __iadd__(self, other: Any) -> Any:  # type: ignore[misc]
        """Another value: others may hold this one."""
        return self + other


NARROW = {"float8e4nv": "float8_e4m3fn", "float8e5": "float8_e5m2"}
"""What ml_dtypes calls types that it names otherwise."""


def _dtype(name: str) -> Any:
    return np.dtype(getattr(ml_dtypes, NARROW.get(name, name), name))


@dataclass(frozen=True)
class Pointer:
    """A place in a flat array, or one for each element of an array of offsets."""

    memory: Array
    offset: Any = 0

    def __add__(self, more: Any) -> "Pointer":
        return Pointer(self.memory, self.offset + more)


@dataclass(frozen=True)
class Described:
    """A tensor that is moved in blocks."""

    array: Array
    block: tuple[int, ...]

    @property
    def block_type(self) -> "Described":
        return self

    @property
    def nbytes(self) -> int:
        count = self.array.itemsize
        for n in self.block:
            count *= n
        return count

    def places(self, corner: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The part of a block at a corner that lies in the tensor: where in the tensor, and where in the block."""
        ends = [min(c + n, extent) for c, n, extent in zip(corner, self.block, self.array.shape, strict=True)]
        starts = [max(c, 0) for c in corner]
        inside = tuple(slice(a, max(a, b)) for a, b in zip(starts, ends, strict=True))
        return inside, tuple(slice(s.start - c, s.stop - c) for s, c in zip(inside, corner, strict=True))


@dataclass
class _Tile:
    """A tile in shared memory."""

    data: Array

    def permute(self, order: tuple[int, ...]) -> "_Tile":
        return _Tile(self.data.transpose(order))

    def store(self, value: Any) -> None:
        self.data[...] = value

    def load(self, _: None) -> Any:
        return self.data.copy()

    def read(self) -> Any:
        return self.data


@dataclass
class _Barrier:
    """Turns when so many have arrived and all bytes that were announced are there."""

    count: int = 0
    arrived: int = 0
    bytes: int = 0
    turns: int = 0


@dataclass(frozen=True)
class _Several:
    each: Sequence[Any]

    def index(self, i: int) -> Any:
        return self.each[i]


@dataclass
class _Product:
    """A product under way; its operands are read when it is waited for."""

    compute: Callable[[], Any]
    value: Any = None


def _now(x: Any) -> Any:
    """What an operand holds now."""
    if isinstance(x, _Product):
        if x.value is None:
            raise CompileError("a product's result is read before it was waited for")
        return x.value
    return x.read() if isinstance(x, _Tile) else x


# ------------------------------------------------------------------ the language
@dataclass
class Machine:
    """One program: the names that a generated module takes from Gluon, and who waits for what."""

    program: int
    programs: int
    failures: list[Exception] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    mine: threading.local = field(default_factory=threading.local)

    def run(self, source: Source, arguments: Sequence[Any]) -> None:
        """Run the program of a module. Raises CompileError."""
        modules = dict.fromkeys(("gluon", "gl", "tl", "mbarrier", "tma"), self)
        functions = ("fence_async_shared", "warpgroup_mma", "warpgroup_mma_wait")
        scope: dict[str, Any] = modules | {name: getattr(self, name) for name in functions}
        exec(_code(source), scope)
        scope[source.name](*arguments)

    # -------------------------------------------------------------- values
    float32, float16, bfloat16, int32, int64, int1 = "float32", "float16", "bfloat16", "int32", "int64", "bool"
    float8e4nv, float8e5, int8, uint8 = *NARROW, "int8", "uint8"

    def __getattr__(self, name: str) -> Any:
        """Functions that NumPy has under the same name."""
        return getattr(np, name)

    def erf(self, x: Any) -> Any:
        return np.vectorize(math.erf, otypes=[np.float32])(x).view(_Values)

    def jit(self, function: Any) -> Any:
        return function

    def constexpr(self, value: Any) -> Any:
        return value

    def program_id(self, _: int) -> int:
        return self.program

    def num_programs(self, _: int) -> int:
        return self.programs

    def to_tensor(self, number: int) -> int:
        return number

    def cdiv(self, a: int, b: int) -> int:
        return -(-a // b)

    static_range = range

    def layout(self, *_: Any, **__: Any) -> None:
        """Where values would live."""

    NVMMADistributedLayout = NVMMASharedLayout = SliceLayout = DotOperandLayout = MBarrierLayout = BlockedLayout = layout

    def arange(self, start: int, stop: int, layout: None) -> Any:
        return np.arange(start, stop, dtype=np.int32).view(_Values)

    def full(self, shape: list[int], value: Any, dtype: str, layout: None = None) -> Any:
        return np.full(shape, value, _dtype(dtype)).view(_Values)

    def zeros(self, shape: list[int], dtype: str, layout: None = None) -> Any:
        return self.full(shape, 0, dtype)

    def convert_layout(self, x: Any, _: None) -> Any:
        return x

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        if not isinstance(condition, np.ndarray):
            return a if condition else b
        kinds: list[Any] = [x.dtype for x in (a, b) if isinstance(x, np.ndarray)]
        numbers = np.int32 if isinstance(a, int) and isinstance(b, int) else np.float32
        return np.where(condition, a, b).astype(np.result_type(*kinds or [numbers])).view(_Values)

    def cast(self, x: Any, dtype: str) -> Any:
        return np.asarray(x).astype(_dtype(dtype)).view(_Values)

    def clamp(self, x: Any, low: float, high: float, propagate_nan: bool = False) -> Any:
        return self.minimum(self.maximum(x, low, propagate_nan), high, propagate_nan)

    # NumPy's maxima keep NaN; Gluon's do where they are told to.
    PropagateNan = SimpleNamespace(ALL=True)

    def maximum(self, a: Any, b: Any, propagate_nan: bool = False) -> Any:
        return (np.maximum if propagate_nan else np.fmax)(a, b)

    def minimum(self, a: Any, b: Any, propagate_nan: bool = False) -> Any:
        return (np.minimum if propagate_nan else np.fmin)(a, b)

    def max(self, x: Any, axis: int) -> Any:
        return np.fmax.reduce(x, axis)

    def min(self, x: Any, axis: int) -> Any:
        return np.fmin.reduce(x, axis)

    def reduce(self, x: Any, axis: int, combine: Any) -> Any:
        """By one of the functions that generated modules carry."""
        return {"max_or_nan": np.max, "min_or_nan": np.min}[combine.__name__](x, axis)

    def load(self, pointer: Pointer, mask: Any = True, other: Any = 0) -> Any:
        if not isinstance(pointer.offset, np.ndarray):
            return pointer.memory[pointer.offset]
        here = np.broadcast_to(mask, pointer.offset.shape)
        return np.where(here, pointer.memory[np.where(here, pointer.offset, 0)], other).view(_Values)

    def store(self, pointer: Pointer, value: Any, mask: Any = True) -> None:
        here = np.broadcast_to(mask, pointer.offset.shape)
        pointer.memory[pointer.offset[here]] = np.broadcast_to(value, here.shape)[here]

    # -------------------------------------------------------------- shared memory, and warpgroups
    def allocate_shared_memory(self, dtype: str, shape: list[int], _: None) -> _Several:
        if len(shape) == 2:
            return _Several([_Barrier() for _ in range(shape[0])])
        # Whatever was there before: nothing that a kernel may count on.
        return _Several([_Tile(np.full(shape[1:], float("nan"), _dtype(dtype)).view(_Values)) for _ in range(shape[0])])

    def warp_specialize(self, partitions: Sequence[tuple[Any, tuple[Any, ...]]], *_: Any) -> None:
        def run(function: Any, arguments: tuple[Any, ...]) -> None:
            self.mine.products, self.mine.copies = deque(), []
            try:
                with np.errstate(all="ignore"):
                    function(*arguments)
            except Exception as error:
                error.add_note(f"in warpgroup {threading.current_thread().name}")
                with self.changed:
                    self.failures.append(error)
                    self.changed.notify_all()

        threads = [threading.Thread(target=run, args=p, name=f"{i}", daemon=True) for i, p in enumerate(partitions)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failures:
            first = self.failures[0]
            where = first.__notes__[-1]
            raise CompileError(f"it failed {where}: {type(first).__name__}: {first}") from first

    def barrier(self) -> None:
        """Of the threads of a warpgroup, which are one here."""

    fence_async_shared = thread_barrier = barrier

    # -------------------------------------------------------------- barriers in shared memory
    def init(self, barrier: _Barrier, count: int) -> None:
        barrier.count = count

    def expect(self, barrier: _Barrier, size: int, pred: bool = True) -> None:
        self._change(barrier, 1 if pred else 0, size if pred else 0)

    def arrive(self, barrier: _Barrier, count: int = 1, pred: bool = True) -> None:
        self._change(barrier, count if pred else 0, 0)

    def wait(self, barrier: _Barrier, phase: int, pred: bool = True) -> None:
        with self.changed:
            if pred and not self.changed.wait_for(lambda: barrier.turns % 2 != phase or self.failures, SECONDS):
                raise CompileError(f"a barrier was waited for {SECONDS:g} s in its turn {barrier.turns}")
            if self.failures:
                raise CompileError("another warpgroup failed")

    def _change(self, barrier: _Barrier, arrived: int, size: int) -> None:
        with self.changed:
            barrier.arrived += arrived
            barrier.bytes += size
            if barrier.arrived == barrier.count and not barrier.bytes:
                barrier.turns, barrier.arrived = barrier.turns + 1, 0
                self.changed.notify_all()

    # -------------------------------------------------------------- copies
    def async_load(self, tensor: Described, corner: list[int], barrier: _Barrier, tile: _Tile) -> None:
        block = np.zeros(tensor.block, tensor.array.dtype)
        inside, here = tensor.places(corner)
        block[here] = tensor.array[inside]
        tile.store(block.reshape(tile.data.shape))
        self._change(barrier, 0, -tensor.nbytes)

    def async_store(self, tensor: Described, corner: list[int], tile: _Tile) -> None:
        inside, here = tensor.places(corner)

        def write() -> None:
            tensor.array[inside] = tile.data.reshape(tensor.block)[here]

        self.mine.copies.append(write)

    def store_wait(self, pending: int) -> None:
        copies = self.mine.copies
        while len(copies) > pending:
            copies.pop(0)()

    async_copy_global_to_shared, async_copy_shared_to_global = async_load, async_store

    # -------------------------------------------------------------- products
    def warpgroup_mma(self, a: Any, b: _Tile, c: Any, *, use_acc: bool = True, is_async: bool = False) -> Any:
        product = _Product(partial(_multiplied, a, b, c if use_acc else None))
        self.mine.products.append(product)
        return product if is_async else self.warpgroup_mma_wait(0, [product])

    def warpgroup_mma_wait(self, pending: int, deps: list[Any]) -> Any:
        while len(self.mine.products) > pending:
            product = self.mine.products.popleft()
            product.value = product.compute()
        (dep,) = deps
        return dep.value if isinstance(dep, _Product) and dep.value is not None else dep


def _multiplied(a: Any, b: _Tile, c: Any) -> Any:
    found = _now(a).astype(np.float32) @ b.read().astype(np.float32)
    return (found if c is None else found + _now(c)).view(_Values)
