"""What a kernel's text means, said by Python: the function runs as it stands, on whole dims, in float64 and exact integers.

Written apart from the compiler, and knows nothing of it: ``kd`` here is a small eager library of the same words. A tile is its
whole dim (or what bounds leave of it), so that what a config changes does not exist.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.programs.program import Call, Program
from tests.programs.values import INTEGERS, LARGEST

_I32 = (-(2**31), 2**31 - 1)


class Value:
    """An array of float64, int64 or bool. ``axes``: what each of its axes runs over, a tile or a dim; None of length one."""

    __slots__ = ("array", "axes", "wide")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, array: Any, wide: bool = False, axes: Sequence[Any] = ()) -> None:
        self.array: NDArray[Any] = np.asarray(array)
        self.wide = wide
        self.axes = tuple(axes)
        assert len(self.axes) == self.array.ndim

    def __index__(self) -> int:
        return int(self.array)

    @property
    def T(self) -> "Value":
        return Value(self.array.T, self.wide, self.axes[::-1])

    def __getitem__(self, index: Any) -> "Value":
        axes = iter(self.axes)
        every = index if isinstance(index, tuple) else (index,)
        return Value(self.array[index], self.wide, [None if i is None else next(axes) for i in every])

    def to(self, dtype: str) -> "Value":
        x = self.array
        if dtype in LARGEST:
            x = x.astype(np.float64)
            limit = LARGEST[dtype]
            return Value(np.clip(x, -limit, limit) if dtype.startswith("f8") else x, False, self.axes)
        low = 0 if dtype == "u8" else -(2 ** (INTEGERS[dtype] - 1))
        high = low + 2 ** INTEGERS[dtype] - 1
        if x.dtype.kind == "f":
            clear = np.nan_to_num(np.trunc(x), nan=0.0, posinf=2.0**62, neginf=-(2.0**62))
            x = np.clip(clear, -(2.0**62), 2.0**62).astype(np.int64)
            x = np.clip(x, low, high)
        elif INTEGERS[dtype] < 32:
            x = (x.astype(np.int64) - low) % 2 ** INTEGERS[dtype] + low
        return Value(x.astype(np.int64), dtype == "i64", self.axes)


def _raw(x: Any) -> Any:
    return x.array if isinstance(x, Value) else x


def _wide(*given: Any) -> bool:
    return any(isinstance(x, Value) and x.wide for x in given)


def _axes(*given: Any) -> tuple[Any, ...]:
    """Those of what operands broadcast to."""
    known = [x.axes for x in given if isinstance(x, Value) and x.axes]
    return tuple(next((a for a in both if a is not None), None) for both in zip(*known, strict=True))


def _lift(fn: Callable[..., Any]) -> Callable[..., Value]:
    return lambda *given, drop_nan=False: Value(fn(*map(_raw, given)), _wide(*given), _axes(*given))


def _divide(a: Any, b: Any) -> Any:
    return np.asarray(a, np.float64) / np.asarray(b, np.float64)


def _counts(b: Any) -> Any:
    """Whether an integer is a number of bits to shift by."""
    return (np.asarray(b) >= 0) & (np.asarray(b) < 64)


_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "truediv": _divide,
    "floordiv": lambda a, b: a // b, "mod": lambda a, b: a % b, "and": lambda a, b: a & b, "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b, "lshift": lambda a, b: np.where(_counts(b), a << np.where(_counts(b), b, 0), 0),
    "rshift": lambda a, b: a >> np.where(_counts(b), b, 63),
    "lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b,
}  # fmt: skip
for _name, _fn in _OPERATORS.items():
    setattr(Value, f"__{_name}__", _lift(_fn))
    setattr(Value, f"__r{_name}__", _lift(lambda a, b, fn=_fn: fn(b, a)))
Value.__neg__ = _lift(lambda a: -a)  # type: ignore[attr-defined]
Value.__invert__ = _lift(lambda a: ~a)  # type: ignore[attr-defined]


@dataclass(eq=False)
class Tile:
    """What bounds leave of a dim."""

    low: int
    high: int
    number: int = 0

    @property
    def index(self) -> Value:
        return Value(np.arange(self.low, self.high), axes=[self])

    start = property(lambda self: Value(self.low))
    stop = property(lambda self: Value(self.high))
    size = property(lambda self: Value(self.high - self.low))
    count = size
    before = property(lambda self: Value(0))
    group = property(lambda self: Value(self.number))


@dataclass
class Memory:
    """A tensor argument; ``written`` says which elements of an output were stored to.

    At places that tiles tell an output is added to only: what is read there is nothing, and what is stored is added.
    """

    array: NDArray[Any]
    dtype: str
    dims: tuple[str, ...]
    written: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((), bool))

    def axes(self, index: Any) -> tuple[Any, ...]:
        """Those of a tile of it: each that its index has, once, in the order in which they are met."""
        entries = index if isinstance(index, tuple) else (index,)
        met = [[d] if isinstance(i, slice) else [i] if isinstance(i, Tile) else i.axes if isinstance(i, Value) else []
               for i, d in zip(entries, self.dims, strict=True)]  # fmt: skip
        return tuple(dict.fromkeys(a for axes in met for a in axes))

    def place(self, index: Any) -> tuple[Any, ...]:
        entries = index if isinstance(index, tuple) else (index,)
        assert len(entries) == self.array.ndim
        if any(isinstance(entry, Value) and entry.axes for entry in entries):
            return self._places(entries)
        found: list[Any] = []
        for entry, extent in zip(entries, self.array.shape, strict=True):
            if isinstance(entry, Tile):
                found.append(slice(entry.low, entry.high))
            elif isinstance(entry, slice):
                found.append(entry)
            else:
                at = int(_raw(entry))
                if not 0 <= at < extent:
                    raise IndexError(f"index {at} of a dim of {extent}")
                found.append(at)
        return tuple(found)

    def _adds(self, index: Any) -> bool:
        entries = index if isinstance(index, tuple) else (index,)
        return self.written.ndim == self.array.ndim and any(isinstance(i, Value) and i.axes for i in entries)

    def _places(self, entries: tuple[Any, ...]) -> tuple[Any, ...]:
        """Where tiles tell places: arrays of the rank of the result. What is none is in a branch that is not taken."""
        axes, found = self.axes(entries), []
        for entry, dim, extent in zip(entries, self.dims, self.array.shape, strict=True):
            if isinstance(entry, slice):
                entry = Value(np.arange(extent), axes=[dim])
            x = entry.index if isinstance(entry, Tile) else entry if isinstance(entry, Value) else Value(entry)
            assert list(x.axes) == [a for a in axes if a in x.axes]
            kept = tuple(slice(None) if a in x.axes else None for a in axes)
            found.append(np.clip(x.array[kept] if x.axes else x.array, 0, max(0, extent - 1)))
        return tuple(found)

    def __getitem__(self, index: Any) -> Value:
        found = self.array[self.place(index)].copy()
        return Value(np.zeros_like(found) if self._adds(index) else found, self.dtype == "i64", self.axes(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        place = self.place(index)
        if self._adds(index):
            np.add.at(self.array, place, _raw(value))
            self.written[place] = True
            return
        self.array[place] = _raw((value if isinstance(value, Value) else Value(value)).to(self.dtype)
                                 if self.dtype != "bool" else value)  # fmt: skip
        self.written[place] = True


class _Words:
    """The words of the language for one call."""

    def __init__(self, call: Call, choices: Mapping[str, Any]) -> None:
        self.extents, self.choices = call.extents, choices

    def parallel(self, *over: Any) -> Iterator[Any]:
        ranges = [self.tiles(o) if isinstance(o, _Over) else [Value(i) for i in range(self.extents[o])] for o in over]
        if any(isinstance(o, _Over) and not self.extents[o.dim] for o in over):
            return
        for found in product(*ranges):
            yield found if len(over) > 1 else found[0]

    def tiles(self, over: "_Over") -> list[Tile]:
        """The dim, or what there is of it in each group. Raises IndexError where groups do not lie one behind the other."""
        extent = self.extents[over.dim]
        if over.starts is None:
            return [Tile(0, extent)]
        starts = over.starts.array.tolist()
        if len(starts) > 1 and any(a > b for a, b in pairwise([0, *starts, extent])):
            raise IndexError(f"groups that begin at {starts} of {extent}")
        return [Tile(a, b, g) for g, (a, b) in enumerate(pairwise(starts)) if a < b]

    def sequential(self, over: Any, *, start: Any = 0, stop: Any = None, share: Any = None) -> Iterator[Any]:
        extent = self.extents[over.dim if isinstance(over, _Over) else over]
        low, high = max(int(_raw(start)), 0), extent if stop is None else min(int(_raw(stop)), extent)
        if share is not None and int(_raw(share)) > 0:
            return
        if isinstance(over, str):
            yield from (Value(i) for i in range(low, high))
        elif low < high:
            yield Tile(low, high)

    def length(self, side: Any) -> int:
        return side.high - side.low if isinstance(side, Tile) else self.extents[side]

    def full(self, shape: Any, value: Any, dtype: str = "f32") -> Value:
        filled = Value(np.full([self.length(s) for s in shape], _raw(value)), axes=shape)
        return filled if dtype == "bool" else filled.to(dtype)

    def size(self, dim: str) -> Value:
        return Value(self.extents[dim])

    def group(self, dim: str, of: str) -> Value:
        return Value(self.extents[dim] // self.extents[of])

    def choice(self, name: str, *options: Any) -> Any:
        return self.choices.get(name, options[0])


@dataclass(frozen=True)
class _Over:
    dim: str
    starts: Memory | None = None


def _without(x: Value, axis: int) -> list[Any]:
    axes = list(x.axes)
    del axes[axis]
    return axes


def _reduced(op: Callable[..., Any], low: bool) -> Callable[..., Value]:
    def along(x: Value, axis: int, drop_nan: bool = False) -> Value:
        if x.array.dtype.kind == "f":
            empty: Any = -np.inf if low else np.inf
        else:
            empty = (-(2**63), 2**63 - 1)[not low] if x.wide else _I32[not low]
        return Value(op(x.array, axis=axis, initial=empty), x.wide, _without(x, axis))

    return along


def _dot(a: Value, b: Value, acc: Value | None = None) -> Value:
    found = a.array.astype(np.float64) @ b.array.astype(np.float64)
    return Value(found if acc is None else acc.array + found, axes=(a.axes[0], b.axes[1]))


def _real(fn: Callable[[Any], Any]) -> Callable[[Any], Value]:
    return lambda x: Value(fn(np.asarray(_raw(x), np.float64)), axes=_axes(x))


def _words(call: Call, choices: Mapping[str, Any]) -> SimpleNamespace:
    words = _Words(call, choices)
    dtypes = {d: d for d in ("f32", "f16", "bf16", "f8e4m3", "f8e5m2", *INTEGERS)}
    kinds = dict.fromkeys(("In", "Out", "Float", "Positive", "Int", "Static", "Value"))
    return SimpleNamespace(
        kernel=lambda **dims: lambda fn: fn, function=lambda fn: fn, inf=math.inf, tile=_Over, parallel=words.parallel,
        sequential=words.sequential, full=words.full, zeros=lambda shape, dtype="f32": words.full(shape, 0, dtype),
        index=lambda dim: Value(np.arange(call.extents[dim]), axes=(dim,)), size=words.size,
        group=words.group, choice=words.choice, range=range, dot=_dot,
        where=_lift(np.where), maximum=_lift(np.maximum), minimum=_lift(np.minimum), abs=_lift(np.abs),
        sum=lambda x, axis: Value(x.array.sum(axis=axis), x.wide, _without(x, axis)),
        max=_reduced(np.max, True), min=_reduced(np.min, False),
        argmax=lambda x, axis: Value(x.array.argmax(axis), axes=_without(x, axis)),
        argmin=lambda x, axis: Value(x.array.argmin(axis), axes=_without(x, axis)),
        split=lambda x: tuple(Value(x.array[..., i], x.wide, x.axes[:-1]) for i in (0, 1)),
        join=lambda a, b, dim: Value(np.stack((_raw(a), _raw(b)), -1), _wide(a, b), (*_axes(a, b), dim)),
        exp=_real(np.exp), exp2=_real(np.exp2), log=_real(np.log), log2=_real(np.log2), sqrt=_real(np.sqrt),
        rsqrt=_real(lambda x: 1 / np.sqrt(x)), tanh=_real(np.tanh), erf=_real(np.vectorize(math.erf, otypes=[np.float64])),
        ndtr=_real(np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2)), otypes=[np.float64])),
        sigmoid=_real(lambda x: 1 / (1 + np.exp(-x))), floor=_real(np.floor), sin=_real(np.sin), cos=_real(np.cos),
        round=_real(np.rint),
        **dtypes, **kinds,
    )  # fmt: skip


@dataclass(frozen=True)
class Meaning:
    """What an output is, and which of its elements are written."""

    values: NDArray[Any]
    written: NDArray[np.bool_]


def meaning(
    program: Program, statics: Mapping[str, Any], constants: Mapping[str, Any], choices: Mapping[str, Any]
) -> dict[str, Meaning]:
    """The outputs of a call. Raises IndexError where the text reads or writes beyond a tensor."""
    call = program.call
    scope: dict[str, Any] = {"kd": _words(call, choices), "__name__": "meaning"}
    exec(compile(program.text.replace("import kpt_dsl as kd\n", "\n"), "<meaning>", "exec"), scope)
    scope.update(constants)
    held = call.values()
    given: dict[str, Any] = {t.name: Memory(held[t.name], t.dtype, t.dims) for t in call.tensors if t.name in held}
    outputs = {}
    for t in call.tensors:
        if t.role == "out" and not t.absent:
            kind = np.bool_ if t.dtype == "bool" else np.int64 if t.dtype in INTEGERS else np.float64
            shape = call.shape(t)
            outputs[t.name] = Memory(np.zeros(shape, kind), t.dtype, t.dims, written=np.zeros(shape, bool))
    scalars = {
        n: None if v is None else Value(np.float64(v) if isinstance(v, float) else v) for n, v in call.scalars.items()
    }
    functions = {n: scope[v] for n, v in statics.items() if n in call.functions and v is not None}
    absent = {t.name: None for t in call.tensors if t.absent}
    with np.errstate(all="ignore"):
        scope["drawn"](**given, **outputs, **absent, **scalars, **{**statics, **functions})
    return {name: Meaning(memory.array, memory.written) for name, memory in outputs.items()}
