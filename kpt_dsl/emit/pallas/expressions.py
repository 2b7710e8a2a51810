"""Expressions of the tile IR as JAX text, for the body of a Pallas kernel and for its index maps.

Everything on a TPU lies in registers of two dimensions, so a value with one axis is written as a column (length, 1) or a row
(1, length), whichever its uses want. Scalars are those that index arithmetic makes; a reduction to nothing gives a (1, 1) tile.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from kpt_dsl import arithmetic, ir
from kpt_dsl.dtypes import DType, bf16, f8e4m3, f8e5m2, f16, f32, i32
from kpt_dsl.emit.pallas import gathers
from kpt_dsl.emit.pallas.plan import LANES, Plan, Side
from kpt_dsl.errors import TargetError
from kpt_dsl.ir import Axis, Expr
from kpt_dsl.passes import fold

# How strongly Python's operators bind, weakest first.
_COMPARE, _OR, _XOR, _AND, _SHIFT, _ADD, _MULTIPLY, _NEGATE, ATOM = range(9)

_INFIX: dict[str, tuple[str, int]] = {
    "lt": ("<", _COMPARE), "le": ("<=", _COMPARE), "gt": (">", _COMPARE), "ge": (">=", _COMPARE),
    "eq": ("==", _COMPARE), "ne": ("!=", _COMPARE), "or": ("|", _OR), "and": ("&", _AND),
    "xor": ("^", _XOR), "shl": ("<<", _SHIFT), "shr": (">>", _SHIFT),
    "add": ("+", _ADD), "sub": ("-", _ADD), "mul": ("*", _MULTIPLY), "div": ("/", _MULTIPLY),
    "floordiv": ("//", _MULTIPLY), "mod": ("%", _MULTIPLY),
}  # fmt: skip

_CALL: dict[str, str] = {
    "max": "jnp.maximum", "min": "jnp.minimum", "maxnum": "jnp.maximum", "minnum": "jnp.minimum",
    "abs": "jnp.abs", "exp": "jnp.exp", "exp2": "jnp.exp2", "log": "jnp.log",
    "log2": "jnp.log2", "sqrt": "jnp.sqrt", "rsqrt": "lax.rsqrt", "tanh": "jnp.tanh", "erf": "lax.erf",
    "ndtr": "ndtr", "sigmoid": "lax.logistic", "floor": "jnp.floor", "round": "jnp.round", "sin": "jnp.sin", "cos": "jnp.cos",
    "not": "jnp.logical_not",
}  # fmt: skip

JAX_DTYPES: dict[str, str] = {
    "f32": "jnp.float32", "f16": "jnp.float32", "bf16": "jnp.bfloat16", "f8e4m3": "jnp.float8_e4m3fn",
    "f8e5m2": "jnp.float8_e5m2", "i8": "jnp.int8", "u8": "jnp.uint8", "i32": "jnp.int32", "i64": "jnp.int32",
    "bool": "jnp.bool_",
}  # fmt: skip
"""How the element types are held inside a kernel. A TPU has no float16, so those values are float32 and are rounded outside."""

_NARROW = (bf16, f8e4m3, f8e5m2)
"""What tiles hold as it is, and a scalar of a tensor in 32 bits."""

_SHIFTS = {"shl": "shift_left", "shr": "shift_right"}

_LARGEST = {"f8e4m3": "448.0", "f8e5m2": "57344.0"}


def _is_held_wide(node: ir.Expr) -> bool:
    """Whether it is a scalar in 32 bits, whatever its type; a number is as wide as what stands beside it."""
    return not node.type.shape and not isinstance(node, ir.Const)


class Text:
    """Writes expressions of one plan.

    ``tiles`` says how the number of each tile ("m", or "0" where it is the only one) and each index are written, ``variable``
    how a variable is, ``block`` how the block behind a load is; ``products`` are the dtypes whose products the chip's compiler
    takes. ``masks`` collects the masks that expressions name, for whoever writes the lines before them, who also says which
    variables are ``wide``.
    """

    def __init__(
        self,
        plan: Plan,
        tiles: Mapping[str, str],
        variable: Callable[[ir.Var], str],
        block: Callable[[ir.Read], str],
        products: frozenset[str],
    ) -> None:
        self.plan = plan
        self.tiles = tiles
        self.variable = variable
        self.block = block
        self.products = products
        self.masks: dict[str, str] = {}
        self.wide: set[str] = set()
        self.dim_of = {name: tile.dim for name, tile in plan.tiles.items()}

    # -------------------------------------------------------------- names of extents
    def length(self, axis: Axis) -> str:
        """How many lanes an axis has, by the name of a constant."""
        return "1" if axis == ir.UNIT else axis.dim if axis.tile is None else f"block_{axis.dim}"

    def shape(self, kind: ir.Type, side: Side | None = None) -> str:
        sizes = [self.length(a) for a in kind.shape]
        if len(sizes) == 1:
            side = side or self.plan.side(kind.shape[0])
            sizes = ["1", sizes[0]] if side == "row" else [sizes[0], "1" if side == "column" else str(LANES)]
        return f"({', '.join(sizes or ['1', '1'])})"

    # -------------------------------------------------------------- expressions
    def expr(self, node: Expr, place: int = _COMPARE, side: Side | None = None) -> str:
        """The text of an expression for a place that binds as strongly as ``place``; ``side`` is asked of a one-axis value."""
        text, strength = self._format(node, side)
        return f"({text})" if strength < place else text

    def _format(self, node: Expr, side: Side | None) -> tuple[str, int]:
        if len(node.type.shape) == 1:
            side = side or self.plan.side(node.type.shape[0])
        if self.is_static(node) and node.type.dtype.is_float and not isinstance(node, ir.Cast):
            return _number(arithmetic.shortest(self.static(node), node.type.dtype))
        match node:
            case ir.Const(value):
                return _number(value)
            case ir.Param(name):
                return f"{name}_ref[0]", ATOM
            case ir.Size(dim):
                return dim, ATOM
            case ir.Index(name):
                return self.tiles[name], ATOM
            case ir.Start(tile):
                number = self.tiles[tile]
                return ("0", ATOM) if number == "0" else (f"{number} * block_{self.dim_of[tile]}", _MULTIPLY)
            case ir.Block(tile):
                return f"block_{self.dim_of[tile]}", ATOM
            case ir.Count(tile):
                (stop, _), (first, strength) = self._stop(tile), self._first(tile)
                return (f"{stop} - {first if strength > _ADD else f'({first})'}", _ADD) if first != "0" else self._stop(tile)
            case ir.Before(tile, begin):
                first, strength = self._first(tile)
                return (first, strength) if begin == ir.scalar(0) else (f"{first} - {self.expr(begin, _MULTIPLY)}", _ADD)
            case ir.Stop(tile):
                return self._stop(tile)
            case ir.Lanes(axis):
                return f"{_thin(side)}({self.tiles[axis.tile] if axis.tile else 0}, {self.length(axis)})", ATOM
            case ir.Valid(axis):
                return self._valid(axis, _thin(side) or "row"), ATOM
            case ir.Var():
                return self._turned(self.variable(node), self.own_side(node), side)
            case ir.Load():
                return self._load(node, side)
            case ir.Gather():
                return self._gather(node, side)
            case ir.Checked(x, _, dim):
                return f"jnp.clip({self.expr(x, side=side)}, 0, {dim} - 1)", ATOM
            case ir.Unary(op, x):
                if op == "neg" or (op == "not" and x.type.shape):  # Python may know a scalar's: ``~True`` is true there
                    return f"{'-' if op == 'neg' else '~'}{self.expr(x, _NEGATE, side)}", _NEGATE
                return f"{_CALL[op]}({self.expr(x, side=side)})", ATOM
            case ir.Binary(op, a, b):
                return self._binary(op, a, b, node, side)
            case ir.Where(_, a, b) if node.type.dtype in _NARROW and node.type.shape and any(map(_is_held_wide, (a, b))):
                a, b = (ir.Cast(x, type=ir.Type(f32, x.type.shape)) for x in (a, b))
                wide = replace(node, a=a, b=b, type=ir.Type(f32, node.type.shape))
                return f"{self.expr(wide, ATOM, side)}.astype({JAX_DTYPES[node.type.dtype.name]})", ATOM
            case ir.Where(cond, a, b):
                return f"jnp.where({', '.join(self._beside(x, node, side=side) for x in (cond, a, b))})", ATOM
            case ir.Cast(x):
                return self._cast(x, node.type.dtype, side)
            case ir.Full(value):
                return self._full(value, node.type, side), ATOM
            case ir.Expand(x, axis):
                return self._expand(x, axis, side)
            case ir.Transpose(x):
                return f"{self.expr(x, ATOM)}.T", ATOM
            case ir.Half() | ir.Join():
                what = "split of what is carried or multiplied" if isinstance(node, ir.Half) else "join of what is not stored"
                raise TargetError(f"{self.plan.kernel.name}: kd.{what} (line {node.loc.line}) has no TPU form")
            case ir.Reduce(op, x, axis):
                return self._reduce(op, x, axis, node, side)
            case ir.Dot(a, b, acc):
                return self._dot(a, b, acc)
        raise AssertionError(node)

    def turned(self, node: Expr, side: Side | None) -> str:
        """The text of a value that is stored on a side: turned as a whole, so once, if it lies on the other."""
        own = self.own_side(node)
        return self.expr(node, side=side) if own == side else self._turned(self.expr(node, ATOM, own), own, side)[0]

    def own_side(self, node: Expr) -> Side | None:
        """On which side a value with one axis lies that is assigned to a variable."""
        if len(node.type.shape) != 1:
            return None
        return "wide" if self._is_wide(node) else self.plan.side(node.type.shape[0])

    def _is_wide(self, node: Expr) -> bool:
        """Whether a column, wide where that is asked for, then has all lanes."""
        match node:
            case ir.Var(name):
                return name in self.wide
            case ir.Unary() | ir.Binary() | ir.Where() | ir.Cast() | ir.Expand(axis=1):
                return any(map(self._is_wide, ir.children(node)))
        return False

    def filling(self, node: Expr) -> str:
        """The text of a value for the whole of a variable that is wide."""
        side = "wide" if isinstance(node, ir.Full) else self.own_side(node)
        text = self.expr(node, side=side)
        return text if side == "wide" else f"jnp.broadcast_to({text}, {self.shape(node.type, 'wide')})"

    def _beside(self, x: Expr, node: Expr, place: int = _COMPARE, side: Side | None = None) -> str:
        """The text of an operand of an elementwise operation: a wide column has as many lanes as the others."""
        shape = node.type.shape
        if len(shape) == 2 and x.type.shape[1:] == (ir.UNIT,) and shape[1] != ir.UNIT and self._is_wide(x):
            return f"across({self.expr(x, side='wide')}, {self.length(shape[1])})"
        return self.expr(x, place, side)

    def _turned(self, text: str, has: Side | None, wants: Side | None) -> tuple[str, int]:
        """A value that lies on one side (its text an atom), on another; a wide one is made of no other."""
        if has is None or wants is None or has == wants or (has, wants) == ("column", "wide"):
            return text, ATOM
        if has == "wide":
            return f"{text}[:, :1]" if wants == "column" else f"{text}.T[:1]", ATOM
        return f"{text}.T", ATOM

    def is_static(self, node: Expr) -> bool:
        """Whether a scalar follows from extents and tile sizes alone: Python computes it, not the device."""
        if node.type.shape or node.type.dtype.kind == "bool":
            return False
        match node:
            case ir.Const() | ir.Size() | ir.Block():
                return True
            case ir.Start(tile) | ir.Stop(tile) | ir.Count(tile) | ir.Before(tile):
                return self.tiles[tile] == "0"
            case ir.Var(name):
                return name in self.plan.definitions and self.is_static(self.plan.definitions[name])
            case ir.Unary() | ir.Binary() | ir.Cast():
                return all(map(self.is_static, ir.children(node)))
        return False

    def static(self, node: Expr) -> float:
        """What a static scalar is, rounded as the device would; NaN where an integer is divided by zero."""
        found = self._computed(node)
        return arithmetic.converted(found, node.type.dtype) if node.type.dtype.is_float else found

    def _computed(self, node: Expr) -> float:
        match node:
            case ir.Start() | ir.Before():
                return 0
            case ir.Stop(tile) | ir.Count(tile):
                return self.plan.dims[self.dim_of[tile]]
            case ir.Var(name):
                return self.static(self.plan.definitions[name])
            case ir.Const(value):
                return value
            case ir.Size(dim):
                return self.plan.dims[dim]
            case ir.Block(tile):
                return self.plan.lanes[self.dim_of[tile]]
            case ir.Cast(x):
                return arithmetic.converted(self.static(x), node.type.dtype)
            case ir.Unary(op) | ir.Binary(op):
                found = arithmetic.evaluate(op, *map(self.static, ir.children(node)))
                return math.nan if found is None else arithmetic.converted(found, node.type.dtype) if op == "shl" else found
        raise AssertionError(node)

    def placed(self, node: Expr, indices: Mapping[str, str]) -> str:
        """The text of an expression in which some loops' indices are written otherwise."""
        own, self.tiles = self.tiles, {**self.tiles, **indices}
        text = self.expr(node)
        self.tiles = own
        return text

    def _first(self, tile: str) -> tuple[str, int]:
        """The first valid index of a tile."""
        number = self.tiles[tile]
        start = "0" if number == "0" else f"{number} * block_{self.dim_of[tile]}"
        phase = next((p for p in self.plan.phases if p.name == tile), None)
        if phase is None or not phase.bounded or phase.loop.aligned:
            return start, ATOM if number == "0" else _MULTIPLY
        return f"jnp.maximum({start}, {tile}_start)", ATOM

    def _stop(self, tile: str) -> tuple[str, int]:
        dim, number = self.dim_of[tile], self.tiles[tile]
        phase = next((p for p in self.plan.phases if p.name == tile), None)
        end = f"{tile}_stop" if phase and phase.bounded else dim
        if number == "0":
            return end, ATOM
        after = f"({number} + 1) * block_{dim}"
        if end == dim and self.plan.dims[dim] % self.plan.lanes[dim] == 0:
            return after, _MULTIPLY
        return f"jnp.minimum({after}, {end})", ATOM

    def _valid(self, axis: Axis, side: Side) -> str:
        """The name of a mask, noted in ``masks``."""
        name = f"{axis.tile}_valid_{side}"
        if name not in self.masks:
            lanes = f"{side}({self.tiles[axis.tile or '']}, {self.length(axis)})"
            phase = next((p for p in self.plan.phases if p.name == axis.tile), None)
            if phase is None or not phase.bounded:
                self.masks[name] = f"{lanes} < {axis.dim}"
            elif phase.loop.start == ir.scalar(0):
                self.masks[name] = f"{lanes} < {axis.tile}_stop"
            else:
                self.masks[name] = f"({lanes} >= {axis.tile}_start) & ({lanes} < {axis.tile}_stop)"
        return name

    def _load(self, node: ir.Load, side: Side | None, wide: bool = False) -> tuple[str, int]:
        """A block's value. A narrow one-axis one is masked in float32 (``wide``: and stays so): Mosaic masks no narrow rows."""
        if not node.type.shape:
            where = ", ".join(self.expr(i) for i in node.index if isinstance(i, Expr))
            text = f"{node.tensor}_ref[{where}]"
            return (f"{text} != 0", _COMPARE) if node.type.dtype.kind == "bool" else (text, ATOM)
        text = self.block(node)
        kept = [a for a in node.index if isinstance(a, Axis)]
        masks: list[str] = []
        for axis in node.masked:
            if len(kept) == 1:
                masks.append(self._valid(axis, self.plan.stored(axis)))
            elif len(kept) == 2:
                masks.append(self._valid(axis, "column" if kept.index(axis) == 0 else "row"))
            else:
                shape = ", ".join(self.length(a) if a == axis else "1" for a in kept)
                masks.append(f"{self._valid(axis, 'row')}.reshape({shape})")
        narrow = len(kept) == 1 and node.type.dtype.bits < 32
        if masks and narrow:
            text += ".astype(jnp.float32)"
        if masks:
            zero = "False" if node.type.dtype.kind == "bool" else "0"
            text = f"jnp.where({' & '.join(masks)}, {text}, {zero})"
        if narrow and bool(masks) != wide:
            text += f".astype({JAX_DTYPES['f32' if wide else node.type.dtype.name]})"
        return self._turned(text, self.plan.stored(kept[0]) if len(kept) == 1 else None, side)

    def _gather(self, node: ir.Gather, side: Side | None) -> tuple[str, int]:
        """What is gathered from a block, zero where it is padding: 32-bit words until then. It is read whoever asks."""
        form, dtype = gathers.form(self.plan, node), node.type.dtype
        text = gathers.text(form, self.block(node), self.expr(form.index, side=form.side), dtype)
        shape, own = node.type.shape, form.side if form.picked else None
        sides = {axis: own or ("column" if i == 0 else "row") for i, axis in enumerate(shape)}
        masks = [self._valid(axis, sides[axis]) for axis in node.masked]
        if masks:
            text = f"jnp.where({' & '.join(masks)}, {text}, 0)"
        if dtype.is_float:
            text = f"lax.bitcast_convert_type({text}, jnp.float32)"
        held = JAX_DTYPES[dtype.name]
        if held not in ("jnp.float32" if dtype.is_float else "jnp.int32", "jnp.bool_"):
            text += f".astype({held})"
        if dtype.kind == "bool":
            return f"{self._turned(text, own, side)[0]} != 0", _COMPARE
        return self._turned(text, own, side)

    def _binary(self, op: ir.BinaryOp, a: Expr, b: Expr, node: Expr, side: Side | None) -> tuple[str, int]:
        static = self.is_static(a) and self.is_static(b)
        op, b = (op, b) if static else fold.of_bits(op, b)
        if op in ("max", "min", "maxnum", "minnum"):
            operands = f"{self._beside(a, node, side=side)}, {self._beside(b, node, side=side)}"
            return f"{op if static else _CALL[op]}({operands})", ATOM
        if op in ("floordiv", "mod") and not static and self._never_negative(a) and self._never_negative(b):
            # Truncation is the same as rounding down here, and one instruction instead of six.
            name = {"floordiv": "lax.div", "mod": "lax.rem"}[op]
            return f"{name}({self._beside(a, node, side=side)}, {self._beside(b, node, side=side)})", ATOM
        if op in _SHIFTS:
            if static:
                return _number(self.static(ir.Binary(op, a, b, type=a.type)))
            if not fold.is_plain_shift(op, a, b):
                return f"{_SHIFTS[op]}({self._beside(a, node, side=side)}, {self._beside(b, node, side=side)})", ATOM
        symbol, strength = _INFIX[op]
        left = strength + 1 if strength == _COMPARE else strength
        return f"{self._beside(a, node, left, side)} {symbol} {self._beside(b, node, strength + 1, side)}", strength

    def _cast(self, x: Expr, to: DType, side: Side | None) -> tuple[str, int]:
        if to == f16 and not self.is_static(x):
            wide = ir.Cast(x, type=ir.Type(f32, x.type.shape))
            return self._format(wide, side) if x.type.dtype.is_fp8 else (f"to_f16({self.expr(wide, side=side)})", ATOM)
        if JAX_DTYPES[to.name] == JAX_DTYPES[self._held(x).name] and not self.is_static(x):
            return self._format(x, side)
        if isinstance(x, ir.Load) and to == f32 and x.type.dtype.is_float and len(x.type.shape) == 1:
            return self._load(x, side or self.own_side(x), wide=True)
        if to.is_fp8:
            if x.type.dtype.is_fp8:  # which may not hold the other's largest number
                x = ir.Cast(x, type=ir.Type(f32, x.type.shape))
            return f"saturated({self.expr(x, side=side)}, {_LARGEST[to.name]}, {JAX_DTYPES[to.name]})", ATOM
        if self.is_static(x):
            widened = to.kind == x.type.dtype.kind == "int" and to.bits >= x.type.dtype.bits
            return self._format(x, side) if widened else _number(self.static(ir.Cast(x, type=ir.Type(to))))
        if to.kind == "int" and x.type.dtype.is_float:
            return f"to_int({self.expr(x, side=side)})", ATOM
        if not x.type.shape:  # which may be a number of Python's
            return f"{JAX_DTYPES[to.name]}({self.expr(x)})", ATOM
        return f"{self.expr(x, ATOM, side)}.astype({JAX_DTYPES[to.name]})", ATOM

    def _held(self, x: Expr) -> DType:
        """The type that a value has in the kernel: scalars of tensors come as 32 bits."""
        if isinstance(x, ir.Load) and not x.type.shape and x.type.dtype.bits < 32:
            return f32 if x.type.dtype.is_float else i32
        return x.type.dtype

    def _full(self, value: Expr, kind: ir.Type, side: Side | None) -> str:
        if isinstance(value, ir.Const) and value.value == 0:
            return f"jnp.zeros({self.shape(kind, side)}, {JAX_DTYPES[kind.dtype.name]})"
        return f"jnp.full({self.shape(kind, side)}, {self.expr(value)}, {JAX_DTYPES[kind.dtype.name]})"

    def _expand(self, x: Expr, axis: int, side: Side | None) -> tuple[str, int]:
        match len(x.type.shape):
            case 0:
                return self._format(x, None)
            case 1:
                return self._format(x, "row" if axis == 0 else side or "column")
        return f"jnp.expand_dims({self.expr(x)}, {axis})", ATOM

    def _reduce(self, op: str, x: Expr, axis: int, node: Expr, side: Side | None) -> tuple[str, int]:
        rank, name = len(x.type.shape), op.removesuffix("num")
        if rank == 1:
            return f"jnp.{name}({self.expr(x)}, keepdims=True)", ATOM
        if rank == 2:
            text = f"jnp.{name}({self.expr(x)}, axis={axis}, keepdims=True)"
            return self._turned(text, "column" if axis == 1 else "row", side)
        return f"jnp.{name}({self.expr(x)}, axis={axis})", ATOM

    def _dot(self, a: Expr, b: Expr, acc: Expr | None) -> tuple[str, int]:
        turned = (isinstance(a, ir.Transpose), isinstance(b, ir.Transpose))
        operands = [self._operand(x.x if isinstance(x, ir.Transpose) else x) for x in (a, b)]
        extra = "" if turned == (False, False) else f", contract=({0 if turned[0] else 1}, {1 if turned[1] else 0})"
        if a.type.dtype in (f32, f16):
            extra += ", precision=lax.Precision.HIGHEST"
        product = f"dot({', '.join(operands)}{extra})"
        if acc is None:
            return product, ATOM
        return f"{self.expr(acc, _ADD)} + {product}", _ADD

    def _operand(self, x: Expr) -> str:
        """An operand of a product; float8 on a chip whose compiler does not take it becomes bfloat16, which holds it."""
        if x.type.dtype.is_fp8 and x.type.dtype.name not in self.products:
            return f"{self.expr(x, ATOM)}.astype(jnp.bfloat16)"
        return self.expr(x)

    def _never_negative(self, node: Expr) -> bool:
        """Whether an integer is provably zero or more."""
        if self.is_static(node):
            return self.static(node) >= 0
        match node:
            case ir.Index() | ir.Start() | ir.Count() | ir.Before() | ir.Lanes():
                return True
            case ir.Binary("add" | "mul" | "floordiv" | "mod" | "min" | "or" | "xor" | "shr", a, b):
                return self._never_negative(a) and self._never_negative(b)
            case ir.Binary("max" | "and", a, b):
                return self._never_negative(a) or self._never_negative(b)
        return False


def _thin(side: Side | None) -> Side | None:
    return "column" if side == "wide" else side


def _number(value: float | int | bool) -> tuple[str, int]:
    if isinstance(value, float) and not math.isfinite(value):
        text = "jnp.nan" if math.isnan(value) else "jnp.inf" if value > 0 else "-jnp.inf"
    else:
        text = repr(value)
    return text, _NEGATE if text.startswith("-") else ATOM
