"""The words that kernels are written with.

A kernel's text is read, never executed: the functions here carry signatures, docstrings and names for editors and type
checkers, and the front end recognises them by identity. Calling one outside a kernel raises KernelError.

Element rule: arithmetic on tiles narrower than float32 is done in float32; only operands of ``dot`` and values that are
stored are rounded. Padding rule: a tile at an edge has fewer elements than lanes, and nothing ever sees the other lanes.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from kpt_dsl.dtypes import DType
from kpt_dsl.errors import KernelError

inf = float("inf")


def _never(name: str) -> NoReturn:
    raise KernelError(f"kd.{name} was called by Python; it can only be written inside a @kd.kernel or @kd.function")


class Value:
    """A tile or a scalar inside a kernel: what loads, arithmetic and the functions below give."""

    T: "Value"
    """The transpose of a two-axis tile."""

    def to(self, dtype: DType) -> "Value":
        """The same values in another element type (``x.to(kd.bf16)``)."""
        _never("Value.to")

    def _binary(self, other: Any) -> "Value":
        _never("Value")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _binary
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __and__ = __rand__ = __or__ = __ror__ = __pow__ = _binary
    __xor__ = __rxor__ = __lshift__ = __rlshift__ = __rshift__ = __rrshift__ = _binary
    __lt__ = __le__ = __gt__ = __ge__ = _binary

    def __eq__(self, other: object) -> "Value":  # type: ignore[override]
        _never("Value")

    def __ne__(self, other: object) -> "Value":  # type: ignore[override]
        _never("Value")

    __hash__ = None  # type: ignore[assignment]

    def __neg__(self) -> "Value":
        _never("Value")

    def __invert__(self) -> "Value":
        _never("Value")

    def __getitem__(self, index: Any) -> "Value":
        """``x[:, None]`` inserts a unit axis, which broadcasts."""
        _never("Value")


class In:
    """A tensor argument that is read: ``x[m, :]`` loads a tile, with one index a dim (tile, scalar, or ``:`` for all of it).

    A scalar index must be one of its dim, from 0 up: IndexRangeError says where it is not (on GPUs within ``kd.checking()``).
    """

    dtype: DType
    """Its element type, known before the kernel runs: ``if x.dtype == kd.f32``."""

    def __getitem__(self, index: Any) -> Value:
        _never("In")


class Out:
    """A tensor argument that is written: ``y[m, :] = value`` stores a tile, rounded to the tensor's element type.

    ``y[m, :] += value`` adds to what a float32 tensor holds, element by element. Programs that add to one place do so in any
    order, so that the sum may differ in its last bits from run to run; whoever calls the kernel clears the tensor first.
    """

    dtype: DType
    """Its element type, known before the kernel runs."""

    def __setitem__(self, index: Any, value: Any) -> None:
        _never("Out")

    def __getitem__(self, index: Any) -> "_Sum":
        _never("Out")


class _Sum:
    """What stands on the left of ``y[m, :] += value``."""

    def __iadd__(self, value: Any) -> "_Sum":
        _never("Out")


class Float(Value):
    """A float32 scalar argument."""


SMALLEST_POSITIVE = 2.0**-126
"""The least that ``Positive`` takes: the smallest normal float32."""


class Positive(Float):
    """A float32 scalar argument above zero, and no subnormal number, which devices take for zero.

    What is minus infinity stays so when it is scaled by it, and spares masks.
    """


class Int(Value):
    """An int32 scalar argument."""


Static = Any
"""An argument that specialises the kernel: a bool, str, int, None or @kd.function, known before it is compiled."""


class Tile:
    """What a loop over ``kd.tile(dim)`` gives: a run of consecutive indices of the dim."""

    index: Value
    """The indices, an int32 vector."""
    count: Value
    """How many elements the tile has."""
    before: Value
    """How many elements its loop visits before it: with ``count`` it merges what was found so far with what is found now."""
    start: Value
    """The first index, for the bounds of loops only: where a tile begins is the config's choice."""
    stop: Value
    """One past the last index that holds an element, for the bounds of loops only."""
    size: Value
    """How many lanes the tile has, elements or not, for the bounds of loops only."""
    group: Value
    """Of ``kd.tile(dim, starts=…)``: the number of the group that the tile lies in."""


def tile(dim: str, *, starts: "In | None" = None) -> Tile:
    """In a loop header: tiles of a dim, of a length that the config chooses. Tiles of one dim share that length.

    ``starts``, in ``kd.parallel``: an int32 tensor of one dim, ascending from 0 or more to the dim's extent or less. Group g is
    the indices from ``starts[g]`` up to ``starts[g + 1]``; no tile reaches from one into another, and what lies in none is not
    visited. None: the dim is one group, without a number.
    """
    _never("tile")


def parallel(*dims: "str | Tile") -> Iterator[Any]:
    """The outermost loop: one program for every index of each named dim and every tile of each ``kd.tile``, in any order."""
    _never("parallel")


def sequential(over: "Tile | str", *, start: Any = 0, stop: Any = None, share: Any = None) -> Iterator[Any]:
    """A loop in ascending order that visits the indices [start, stop) of a dim, by default all of them.

    ``kd.sequential(kd.tile("N"))`` goes through tiles; ``kd.sequential("N")`` through one index after the other, and its
    variable is a scalar. Both bounds may be computed, also from loaded scalars, and need not be multiples of anything; what
    they name beyond the dim is not visited. What a loop over tiles computes must not depend on how wide they are.
    ``share``, of a loop over tiles, is the index of an untiled parallel loop: the tiles that touch [start, stop) are dealt out
    evenly among its indices, a run of whole tiles each (none, where there are fewer tiles), and this index's run is visited.
    So a program makes partial sums over its share.
    """
    _never("sequential")


def range(start: int, stop: int | None = None, step: int = 1, /) -> Iterator[Any]:
    """A loop that is written out, as Python's ``range``: its variable is a plain number, its bounds are known before the kernel
    runs. Loops in each other make ``MOST_TURNS`` (64) turns at most."""
    _never("range")


MOST_TURNS = 64
"""Of loops over ``range`` in each other: each turn is a copy of the body."""


def size(dim: str) -> Value:
    """The extent of a dim, an int32 scalar."""
    _never("size")


def index(dim: str) -> Value:
    """The indices of a whole dim, 0 up to its extent: int32 of shape (dim)."""
    _never("index")


def group(dim: str, of: str) -> Value:
    """How many indices of ``dim`` share one of ``of``: ``h // kd.group("H", "G")`` is the key-value head of query head h."""
    _never("group")


def choice(name: str, *options: Any) -> Any:
    """An algorithm choice that the tuner makes: static, one of ``options`` (the first is the default)."""
    _never("choice")


def zeros(shape: Sequence["Tile | str"], dtype: DType | None = None) -> Value:
    """A tile of zeros, float32 unless said. The shape lists tile variables and names of whole dims."""
    _never("zeros")


def full(shape: Sequence["Tile | str"], value: Any, dtype: DType | None = None) -> Value:
    """A tile filled with a scalar, float32 unless said; an empty shape gives a scalar."""
    _never("full")


def dot(a: Value, b: Value, acc: Value | None = None) -> Value:
    """Matrix product (m, k) x (k, n) in float32, added to ``acc``. A float32 operand beside a narrower one is rounded to it."""
    _never("dot")


def where(cond: Any, a: Any, b: Any) -> Value:
    """``a`` where the condition holds, else ``b``, element by element.

    With a scalar condition, what is loaded in ``a`` or ``b`` is loaded only where that one is taken; with a tile, what is
    gathered there by tiles of indices, where its axes are those of the condition.
    """
    _never("where")


def sum(x: Value, axis: int) -> Value:
    """Sum over one axis, in float32 for floats."""
    _never("sum")


def max(x: Value, axis: int, *, drop_nan: bool = False) -> Value:
    """Largest element along one axis; -inf (or the least integer) where there is none, and NaN where an element is NaN.

    ``drop_nan``: a NaN may be passed over, or not. That saves instructions on some devices; for where it cannot matter.
    """
    _never("max")


def min(x: Value, axis: int, *, drop_nan: bool = False) -> Value:
    """Smallest element along one axis; inf (or the greatest integer) where there is none. NaN: as in ``max``."""
    _never("min")


def maximum(a: Any, b: Any, *, drop_nan: bool = False) -> Value:
    """The larger of two, element by element; NaN where one of them is NaN. ``drop_nan``: there it may be the other one."""
    _never("maximum")


def minimum(a: Any, b: Any, *, drop_nan: bool = False) -> Value:
    """The smaller of two, element by element. NaN: as in ``maximum``."""
    _never("minimum")


def split(x: Value) -> tuple[Value, Value]:
    """``x[..., 0]`` and ``x[..., 1]``: the last axis is a whole dim of two elements, which one load brings."""
    _never("split")


def join(a: Value, b: Value, dim: str) -> Value:
    """The tile whose ``[..., 0]`` is a and whose ``[..., 1]`` is b: ``dim``, its last axis, has two elements. For one store."""
    _never("join")


def argmax(x: Any, axis: int) -> Value:
    """Where along an axis the largest element is: its index in the dim, int32, the first of several. A NaN is the largest, as
    in torch.argmax. Of no elements it is 2**31 - 1, which is no index."""
    _never("argmax")


def argmin(x: Any, axis: int) -> Value:
    """Where along an axis the smallest element is: as ``argmax``, and a NaN is the smallest."""
    _never("argmin")


def exp(x: Any) -> Value:
    """e to the power x."""
    _never("exp")


def exp2(x: Any) -> Value:
    """2 to the power x: the fast one on GPUs; fold log2(e) into a scale you already have."""
    _never("exp2")


def log(x: Any) -> Value:
    """Natural logarithm."""
    _never("log")


def log2(x: Any) -> Value:
    """Logarithm to base 2."""
    _never("log2")


def sqrt(x: Any) -> Value:
    """Square root."""
    _never("sqrt")


def rsqrt(x: Any) -> Value:
    """1 / sqrt(x)."""
    _never("rsqrt")


def sin(x: Any) -> Value:
    """Sine of radians, of any finite number; NaN of an infinite one."""
    _never("sin")


def cos(x: Any) -> Value:
    """Cosine of radians, of any finite number; NaN of an infinite one."""
    _never("cos")


def tanh(x: Any) -> Value:
    """Hyperbolic tangent."""
    _never("tanh")


def erf(x: Any) -> Value:
    """The error function."""
    _never("erf")


def ndtr(x: Any) -> Value:
    """The normal distribution function, (1 + erf(x / sqrt 2)) / 2, in a third of the instructions of erf: off by less than
    1.4e-7, and by ever less below zero, where 1 + erf cancels."""
    _never("ndtr")


def sigmoid(x: Any) -> Value:
    """1 / (1 + exp(-x))."""
    _never("sigmoid")


def abs(x: Any) -> Value:
    """Magnitude."""
    _never("abs")


def floor(x: Any) -> Value:
    """The largest whole number that is not larger than x."""
    _never("floor")


def round(x: Any) -> Value:
    """The whole number nearest to x, the even one of two that are as near."""
    _never("round")
