"""Expressions of the tile IR as Triton text: a table from op to text, and the parentheses that Python's grammar asks for."""

import math
from collections.abc import Callable

from kpt_dsl import ir
from kpt_dsl.dtypes import DType, f16, f32
from kpt_dsl.emit.triton.axes import Axes
from kpt_dsl.emit.triton.helpers import HELPERS
from kpt_dsl.passes import fold

DTYPES = {
    "f32": "float32", "f16": "float16", "bf16": "bfloat16", "f8e4m3": "float8e4nv", "f8e5m2": "float8e5", "i32": "int32",
    "i64": "int64", "i8": "int8", "u8": "uint8", "bool": "int1",
}  # fmt: skip
"""What the language module calls each element type."""

# How strongly Python's operators bind; an operand that binds weaker than its place asks for is put in parentheses.
LOOSE, COMPARE, OR, XOR, AND, SHIFT, ADD, MULTIPLY, SIGN, ATOM = range(10)

UNARY = {
    "neg": ("-{x}", SIGN), "abs": ("{tl}.abs({x})", LOOSE), "exp": ("{tl}.exp({x})", LOOSE),
    "exp2": ("{tl}.exp2({x})", LOOSE), "log": ("{tl}.log({x})", LOOSE), "log2": ("{tl}.log2({x})", LOOSE),
    "sqrt": ("{tl}.sqrt({x})", LOOSE), "rsqrt": ("{tl}.rsqrt({x})", LOOSE), "erf": ("{tl}.erf({x})", LOOSE),
    "sigmoid": ("sigmoid({x})", LOOSE), "floor": ("{tl}.floor({x})", LOOSE), "tanh": ("tanh({x})", LOOSE),
    "sin": ("{tl}.sin({x})", LOOSE), "cos": ("{tl}.cos({x})", LOOSE), "round": ("round({x})", LOOSE),
    "ndtr": ("ndtr({x})", LOOSE),
}  # fmt: skip
"""Op -> its text (``tl``: the language module), and how strongly the operand must bind."""

INFIX = {
    "add": ("+", ADD), "sub": ("-", ADD), "mul": ("*", MULTIPLY), "div": ("/", MULTIPLY), "floordiv": ("//", MULTIPLY),
    "mod": ("%", MULTIPLY), "lt": ("<", COMPARE), "le": ("<=", COMPARE), "gt": (">", COMPARE), "ge": (">=", COMPARE),
    "eq": ("==", COMPARE), "ne": ("!=", COMPARE), "and": ("&", AND), "or": ("|", OR), "xor": ("^", XOR),
    "shl": ("<<", SHIFT), "shr": (">>", SHIFT),
}  # fmt: skip

CALLS = {"max": "maximum", "min": "minimum", "maxnum": "maximum", "minnum": "minimum"}

REDUCTIONS = {"sum": "sum", "max": "max", "min": "min", "maxnum": "max", "minnum": "min"}

KEEPS_NAN = {"max": "max_or_nan", "min": "min_or_nan"}
"""Helpers for floats; Triton's own maxima and minima drop a NaN."""

SIGNED_CALLS = {"floordiv": "floor_div", "mod": "floor_mod"}
"""Integer division of Triton rounds towards zero: where an operand may be negative a helper does it."""

SHIFTS = {"shl": "shift_left", "shr": "shift_right"}
"""Helpers: what machines make of a count that is negative or no less than the width differs."""

FP8_LIMITS = {"f8e4m3": 448.0, "f8e5m2": 57344.0}
"""Largest finite values (OCP 8-bit floating point specification, 1.0)."""

Text = tuple[str, int]


def literal(value: float | int | bool) -> Text:
    """A number as text."""
    if isinstance(value, float) and not math.isfinite(value):
        text = f'float("{abs(value)}")'
        return (f"-{text}", SIGN) if value < 0 else (text, ATOM)
    return repr(value), SIGN if not isinstance(value, bool) and value < 0 else ATOM


def nonnegative(e: ir.Expr) -> bool:
    """Whether an integer expression is seen to be zero or more."""
    match e:
        case ir.Const(value=value):
            return value >= 0
        case ir.Size() | ir.Index() | ir.Start() | ir.Stop() | ir.Block() | ir.Count() | ir.Before() | ir.Lanes():
            return True
        case ir.Binary(op="add" | "mul" | "floordiv" | "mod" | "min" | "or" | "xor" | "shr", a=a, b=b):
            return nonnegative(a) and nonnegative(b)
        case ir.Binary(op="max" | "and", a=a, b=b):
            return nonnegative(a) or nonnegative(b)
        case ir.Cast(x=x) | ir.Expand(x=x):
            return nonnegative(x)
    return False


class Expressions:
    """Turns expressions to text. Loads must have been written before (``loaded`` names their results)."""

    def __init__(self, axes: Axes, loaded: Callable[[ir.Read], str], emulate: frozenset[str], precision: str) -> None:
        """``emulate``: 8-bit types that the target lacks; ``precision``: Triton's input precision of float32 products."""
        self.axes = axes
        self.helpers: set[str] = set()
        self._loaded = loaded
        self._emulate = emulate
        self._precision = precision

    def text(self, e: ir.Expr, strength: int = LOOSE) -> str:
        """The text of an expression, in parentheses where it binds weaker than ``strength``."""
        text, own = self._show(e)
        return text if own >= strength else f"({text})"

    def name(self, variable: str) -> str:
        """The identifier of one of the author's variables."""
        return self.axes.names.of(("variable", variable), variable)

    def dtype(self, dtype: DType) -> str:
        """Triton's name of an element type; the types that the target lacks are kept as bits."""
        return f"{self.axes.language}.{'uint8' if dtype.name in self._emulate else DTYPES[dtype.name]}"

    def shape(self, shape: tuple[ir.Axis, ...]) -> str:
        return f"[{', '.join(map(self.axes.lanes, shape))}]"

    def _show(self, e: ir.Expr) -> Text:
        match e:
            case ir.Const(value=value):
                # 8-bit floats that are kept as bits are never calculated with: their only constant is padding, zero.
                if not e.type.dtype.is_fp8 or value == 0:
                    return ("0", ATOM) if e.type.dtype.name in self._emulate else literal(value)
                number, _ = literal(value)  # Triton makes no constants of 8-bit floats
                return self.cast_text(self.filled((), number, self.dtype(f32)), f32, e.type.dtype), ATOM
            case ir.Param(name=name):
                return self.axes.names.of(("scalar", name), name), ATOM
            case ir.Var(name=name):
                return self.name(name), ATOM
            case ir.Size(dim=dim):
                return self.axes.extent(dim), ATOM
            case ir.Index(name=name):
                return self.axes.names.of(("index", name), name), ATOM
            case ir.Start(tile=tile):
                return self.axes.start(tile), ATOM
            case ir.Stop(tile=tile):
                return self.axes.stop(tile), ATOM
            case ir.Block(tile=tile):
                return self.axes.block(tile), ATOM
            case ir.Count(tile=tile):
                return f"{self.axes.stop(tile)} - {self.axes.first(tile)}", ADD
            case ir.Before(tile=tile, begin=begin):
                first = self.axes.first(tile)
                return (first, ATOM) if begin == ir.scalar(0) else (f"{first} - {self.text(begin, MULTIPLY)}", ADD)
            case ir.Lanes(axis=axis):
                return self.axes.index(axis), ATOM
            case ir.Valid(axis=axis):
                return self.axes.valid(axis), ATOM
            case ir.Load() | ir.Gather():
                return self._loaded(e), ATOM
            case ir.Checked(x=x):
                return self._show(x)
            case ir.Unary(op=op, x=x):
                return self._unary(op, x)
            case ir.Binary(op=op, a=a, b=b):
                return self._binary(op, a, b)
            case ir.Where(cond=cond, a=a, b=b):
                return f"{self.axes.language}.where({self.text(cond)}, {self.text(a)}, {self.text(b)})", ATOM
            case ir.Cast():
                return self._cast(e)
            case ir.Full(value=value):
                return self._full(e, value)
            case ir.Expand(x=x, axis=axis):
                return self._expand(x, axis), ATOM
            case ir.Transpose(x=x):
                return f"{self.text(x, ATOM)}.T", ATOM
            case ir.Half(x=x, which=which):
                return self._one_of_two(x, which), ATOM
            case ir.Join(a=a, b=b):
                return self._join(a, b, e.type.shape[-1]), ATOM
            case ir.Reduce():
                return self._reduce(e), ATOM
            case ir.Dot(a=a, b=b, acc=acc):
                return self._dot(a, b, acc), ATOM
        raise AssertionError(f"no text for {type(e).__name__}")

    def _one_of_two(self, x: ir.Expr, which: int) -> str:
        """Of the elements along the last axis; where a product wants more lanes than two, by halving them."""
        *others, axis = x.type.shape
        tl, text, lanes = self.axes.language, self.text(x), self.axes.width(axis)
        while lanes > 2:
            lanes //= 2
            sizes = ", ".join([*map(self.axes.lanes, others), str(lanes), "2"])
            text, which = f"{tl}.split({tl}.reshape({text}, [{sizes}]))[{which}]", 0
        return f"{tl}.split({text})[{which}]"

    def _join(self, a: ir.Expr, b: ir.Expr, axis: ir.Axis) -> str:
        tl = self.axes.language
        if self.axes.width(axis) == 2:
            return f"{tl}.join({self.text(a)}, {self.text(b)})"
        rank = len(a.type.shape)
        behind = f"[{', '.join([':'] * rank + ['None'])}]" if rank else ""
        along = f"[{', '.join(['None'] * rank + [':'])}]" if rank else ""
        first, second = (f"{self.text(x, ATOM)}{behind}" for x in (a, b))
        return f"{tl}.where({self.axes.index(axis)}{along} == 0, {first}, {second})"

    def _unary(self, op: ir.UnaryOp, x: ir.Expr) -> Text:
        if op == "not":
            # Python may know a scalar's condition, and ``~True`` is true in Python; a tile has no ``not``.
            return (f"~{self.text(x, SIGN)}", ATOM) if x.type.shape else (f"not {self.text(x, COMPARE)}", LOOSE)
        pattern, strength = UNARY[op]
        if op in HELPERS:
            self.helpers.add(op)
        return pattern.format(x=self.text(x, strength), tl=self.axes.language), strength or ATOM

    def _binary(self, op: ir.BinaryOp, a: ir.Expr, b: ir.Expr) -> Text:
        op, b = fold.of_bits(op, b)
        if op in KEEPS_NAN and a.type.dtype.is_float:
            return self._call(KEEPS_NAN[op], f"{self.text(a)}, {self.text(b)}"), ATOM
        if op in CALLS:
            return f"{self.axes.language}.{CALLS[op]}({self.text(a)}, {self.text(b)})", ATOM
        if op in SIGNED_CALLS and not (nonnegative(a) and nonnegative(b)):
            return self._call(SIGNED_CALLS[op], f"{self.text(a)}, {self.text(b)}"), ATOM
        if op in SHIFTS and not fold.is_plain_shift(op, a, b):
            dtype = a.type.dtype  # Python, which drops no bits, may know a scalar
            known = self.text(a) if a.type.shape else f"{self.axes.language}.cast({self.text(a)}, {self.dtype(dtype)})"
            return self._call(SHIFTS[op], f"{known}, {self.text(b)}, {dtype.bits}"), ATOM
        symbol, strength = INFIX[op]
        # Comparisons do not chain, and the right operand of the others is read after the whole left one.
        left = strength + 1 if strength == COMPARE else strength
        return f"{self.text(a, left)} {symbol} {self.text(b, strength + 1)}", strength

    def _cast(self, e: ir.Cast) -> Text:
        to, x = e.type.dtype, e.x
        if x.type.dtype == to:
            return self._show(x)
        if x.type.dtype.name in self._emulate:
            half = self._half(x)
            return (half if to == f16 else f"{half}.to({self.dtype(to)})"), ATOM
        if x.type.dtype == f32 and to.kind == "int":
            return self._call(f"f32_to_{to.name}", self.text(x)), ATOM
        if not e.type.shape and not to.is_fp8:
            return f"{self.axes.language}.cast({self.text(x)}, {self.dtype(to)})", ATOM
        return self.cast_text(self.text(x, LOOSE if to.is_fp8 else ATOM), x.type.dtype, to), ATOM

    def cast_text(self, value: str, dtype: DType, to: DType) -> str:
        """The text of a tile cast from one type to another; 8-bit floats saturate, and NaN stays NaN."""
        if not to.is_fp8:
            return f"{value}.to({self.dtype(to)})"
        wide = value if dtype == f32 else f"{self.axes.language}.cast({value}, {self.dtype(f32)})"
        if to.name in self._emulate:
            return self._call(f"f32_to_{to.name}", wide)
        limit = FP8_LIMITS[to.name]
        clamped = f"{self.axes.language}.clamp({wide}, -{limit}, {limit}, propagate_nan=tl.PropagateNan.ALL)"
        return f"{clamped}.to({self.dtype(to)})"

    def _half(self, x: ir.Expr) -> str:
        """An 8-bit float as f16, which holds each of its values."""
        if x.type.dtype.name in self._emulate:
            return self._call(f"{x.type.dtype.name}_to_f16", self.text(x))
        return f"{self.text(x, ATOM)}.to({self.dtype(f16)})"

    def _reduce(self, e: ir.Reduce) -> str:
        language, x = self.axes.language, self.text(e.x)
        if e.op in KEEPS_NAN and e.type.dtype.is_float:
            self.helpers.add(KEEPS_NAN[e.op])
            return f"{language}.reduce({x}, {e.axis}, {KEEPS_NAN[e.op]})"
        return f"{language}.{REDUCTIONS[e.op]}({x}, axis={e.axis})"

    def _call(self, helper: str, arguments: str) -> str:
        self.helpers.add(helper)
        return f"{helper}({arguments})"

    def _full(self, e: ir.Full, value: ir.Expr) -> Text:
        zero = isinstance(value, ir.Const) and value.value == 0
        return self.filled(e.type.shape, "" if zero else self.text(value), self.dtype(e.type.dtype)), ATOM

    def filled(self, shape: tuple[ir.Axis, ...], value: str, dtype: str) -> str:
        """The text of a tile whose elements are all one scalar, zero where ``value`` is empty."""
        what = f"full({self.shape(shape)}, {value}" if value else f"zeros({self.shape(shape)}"
        return f"{self.axes.language}.{what}, {dtype})"

    def _expand(self, x: ir.Expr, axis: int) -> str:
        places = [":"] * len(x.type.shape)
        places.insert(axis, "None")
        return f"{self.text(x, ATOM)}[{', '.join(places)}]"

    def _dot(self, a: ir.Expr, b: ir.Expr, acc: ir.Expr | None) -> str:
        show = self._half if {a.type.dtype.name, b.type.dtype.name} & self._emulate else self.text
        arguments = [show(a), show(b)]
        if acc is not None:
            arguments.append(self.text(acc))
        if a.type.dtype == f32:
            arguments.append(f'input_precision="{self._precision}"')
        return f"{self.axes.language}.dot({', '.join(arguments)})"
