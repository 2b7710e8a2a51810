"""NumPy source from tile IR: the meaning of a kernel, to be read and stepped through.

One function with one nested loop per grid dim. Tiles are exact slices, so padding does not exist and no mask is needed:
this is the language as its author thinks of it. Takes IR fresh from the front end; blocks may be any positive integers.
With ``precision="f64"`` every float is computed in float64 and rounded only where it is stored: the oracle of a kernel.
Knows no device and runs nothing.
"""

import json
import keyword
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from kpt_dsl import ir
from kpt_dsl.dtypes import DType, f32, i32
from kpt_dsl.emit import Source
from kpt_dsl.emit.text import Writer
from kpt_dsl.errors import ConfigError
from kpt_dsl.passes import indices

if TYPE_CHECKING:
    from kpt_dsl.extents import Extents
    from kpt_dsl.space import Config
    from kpt_dsl.targets import Target

Precision = Literal["typed", "f64"]
Index = tuple[ir.Axis | ir.Expr, ...]

_DTYPES = {
    "f32": "np.float32", "f16": "np.float16", "bf16": "ml_dtypes.bfloat16", "f8e4m3": "ml_dtypes.float8_e4m3fn",
    "f8e5m2": "ml_dtypes.float8_e5m2", "i8": "np.int8", "u8": "np.uint8", "i32": "np.int32", "i64": "np.int64",
    "bool": "np.bool_",
}  # fmt: skip

# How strongly Python's operators bind, weakest first; an operand that binds weaker than its place gets parentheses.
_IF, _OR, _AND, _NOT, _COMPARE, _BIT_OR, _BIT_XOR, _BIT_AND, _SHIFT, _ADD, _MULTIPLY, _NEGATE, _ATOM = range(13)

# op -> (text, strength the operand needs, strength of the whole); "not" is different for scalars and tiles.
_UNARY = {
    "neg": ("-{x}", _NEGATE, _NEGATE), "rsqrt": ("1 / np.sqrt({x})", _IF, _MULTIPLY), "erf": ("erf({x})", _IF, _ATOM),
    "ndtr": ("ndtr({x})", _IF, _ATOM),
    "sigmoid": ("1 / (1 + np.exp(-{x}))", _NEGATE, _MULTIPLY), "round": ("np.rint({x})", _IF, _ATOM),
} | {
    name: (f"np.{name}({{x}})", _IF, _ATOM)
    for name in ("abs", "exp", "exp2", "log", "log2", "sqrt", "sin", "cos", "tanh", "floor")
}  # fmt: skip
_SCALAR_UNARY = _UNARY | {"not": ("not {x}", _NOT, _NOT)}
_TILE_UNARY = _UNARY | {"not": ("~{x}", _NEGATE, _NEGATE)}

# op -> (symbol, strength); of conditions that are scalars, which may be Python's, two are words.
_INFIX = {
    "lt": ("<", _COMPARE), "le": ("<=", _COMPARE), "gt": (">", _COMPARE), "ge": (">=", _COMPARE), "eq": ("==", _COMPARE),
    "ne": ("!=", _COMPARE), "or": ("|", _BIT_OR), "xor": ("^", _BIT_XOR), "and": ("&", _BIT_AND), "shl": ("<<", _SHIFT),
    "shr": (">>", _SHIFT), "add": ("+", _ADD), "sub": ("-", _ADD), "mul": ("*", _MULTIPLY), "div": ("/", _MULTIPLY),
    "floordiv": ("//", _MULTIPLY), "mod": ("%", _MULTIPLY),
}  # fmt: skip
_CONDITION_INFIX = _INFIX | {"or": ("or", _OR), "and": ("and", _AND)}

_SHIFTS = {"shl": "np.left_shift", "shr": "np.right_shift"}
"""Python's own shifts take no negative count, and drop no bits."""

_EXTREMES = {"max": "max", "min": "min", "maxnum": "max", "minnum": "min"}
"""NumPy's maxima and minima keep NaN, which is right for those that may drop it too."""

_BUILTINS = ("np", "ml_dtypes", "math", "max", "min", "range", "slice", "float", "IndexRangeError")
"""Names that generated text means as Python and its imports mean them."""

# Functions that generated text uses, written above it when it does; REAL is the dtype of arithmetic.
_HELPERS = {
    "tiles": '''\
def tiles(start, stop, block):
    """Slices of range(start, stop), cut at multiples of the block."""
    if start < stop:
        for first in range(start // block * block, stop, block):
            yield slice(max(first, start), min(first + block, stop))''',
    "tiles_of_groups": '''\
def tiles_of_groups(starts, extent, block, *names):
    """The number of each group, with the slices of its tiles; the names are those of the kernel and of where groups begin."""
    IndexRangeError.check_groups(*names, starts.tolist(), extent)
    for group, (start, stop) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)):
        for first in range(start, stop, block):
            yield group, slice(first, min(first + block, stop))''',
    "length": """\
def length(tile):
    return tile.stop - tile.start""",
    "indices": """\
def indices(tile):
    return np.arange(tile.start, tile.stop, dtype=np.int32)""",
    "at": '''\
def at(index, extent, place):
    """The index, which may be none of a dim of this extent."""
    if not 0 <= index < extent:
        raise IndexRangeError.at(place, index, extent)
    return index''',
    "among": '''\
def among(index, extent, place, asked=True):
    """Indices, where they are asked for; any may be none of a dim of this extent."""
    wrong = np.asarray((index < 0) | (index >= extent)) & asked
    if wrong.any():
        raise IndexRangeError.at(place, int(np.broadcast_to(index, wrong.shape)[wrong][0]), extent)
    return index''',
    "picked": '''\
def picked(x, index, asked):
    """The elements of an array that are asked for, and zeros."""
    *index, asked = np.broadcast_arrays(*index, asked)
    found = np.zeros(asked.shape, x.dtype)
    found[asked] = x[tuple(i[asked] for i in index)]
    return found''',
    "dot": '''\
def dot(a, b):
    """The product of two narrow tiles, in REAL."""
    return np.matmul(a, b, dtype=REAL)''',
    "to_fp8": '''\
def to_fp8(x, dtype):
    """Rounded to nearest even; what is too large saturates."""
    largest = float(ml_dtypes.finfo(dtype).max)
    return np.clip(x, -largest, largest, dtype=np.float32).astype(dtype)''',
    "saturate": '''\
def saturate(x, dtype):
    """Clipped to what an fp8 dtype can hold, not rounded."""
    largest = float(ml_dtypes.finfo(dtype).max)
    return np.clip(x, -largest, largest)''',
    "to_int": '''\
def to_int(x, dtype):
    """Towards zero; what is too large saturates, and NaN becomes 0."""
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    wide = np.asarray(x, np.float64)
    inside = np.where((wide >= low) & (wide < -float(low)), wide, 0).astype(dtype)
    return np.where(wide < low, low, np.where(wide >= -float(low), high, inside))[()]''',
    "erf": "erf = np.vectorize(math.erf, otypes=[REAL])",
    "ndtr": "ndtr = np.vectorize(lambda x: 0.5 * math.erfc(x * -math.sqrt(0.5)), otypes=[REAL])",
}


def facts(kernel: ir.Kernel, extents: "Extents", config: "Config") -> None:
    """Nothing: the text reads extents off its arrays, whose slices may be as long as dims."""


def emit(kernel: ir.Kernel, known: None, target: "Target", config: "Config") -> Source:
    """The NumPy source of a kernel, which is the same for any target. Raises as ``emit_kernel``."""
    return emit_kernel(kernel, config)


def emit_kernel(kernel: ir.Kernel, config: Mapping[str, object], precision: Precision = "typed") -> Source:
    """The NumPy source of a kernel; ``config`` holds its block sizes. ``abi`` names the arguments of the function, in order:
    the present tensors, the scalars.

    Raises ConfigError where a block size is missing or not a positive integer.
    """
    emitter = _Emitter(kernel, config, precision)
    return Source("numpy", emitter.name(kernel.name), emitter.module(), abi=tuple(a.name for a in _arguments(kernel)))


class _Emitter:
    """State of one emission: the lines so far, the names taken, and the helpers that they need."""

    def __init__(self, kernel: ir.Kernel, config: Mapping[str, object], precision: Precision) -> None:
        self.kernel = kernel
        self.config = config
        self.exact = precision == "f64"
        self.real = "np.float64" if self.exact else "np.float32"
        self.out = Writer()
        self.helpers: set[str] = set()
        self.tiles = {t.name: t for t in ir.tiles(kernel)}
        # Tiles that start where their block starts; a loop that begins anywhere may cut its first tile.
        self.uncut = {t.name for t in kernel.grid} | {
            loop.over.name for loop in ir.tile_loops(kernel.body) if loop.aligned
        }
        self.taken = {*_BUILTINS, *_HELPERS, *keyword.kwlist}
        self.names: dict[tuple[str, str], str] = {}
        for dim in (d for t in kernel.tensors for d in t.dims if d in self._used_dims()):
            self.extent(dim)
        for tile in self.tiles.values():
            self.block(tile)

    # -------------------------------------------------------------- the module
    def module(self) -> str:
        kernel = self.kernel
        arguments = ", ".join(self.name(a.name) for a in _arguments(kernel))
        self.out.line('@np.errstate(all="ignore")  # infinities and NaNs follow IEEE 754, as on a device')
        with self.out.block(f"def {self.name(kernel.name)}({arguments}):", kernel.loc):
            self._prologue()
            self._grid(kernel.grid)
        body = self.out.text()
        helpers = [text.replace("REAL", self.real) for name, text in _HELPERS.items() if name in self.helpers]
        code = "\n\n\n".join([*helpers, body])
        width = "float64" if self.exact else "the types of the kernel"
        head = f'"""{kernel.name} on NumPy, in {width}: what the kernel means, tile by tile."""\n\n'
        head += "import math\n\n" if "math." in code else ""
        head += "import ml_dtypes\n" if "ml_dtypes." in code else ""
        ours = "\nfrom kpt_dsl.errors import IndexRangeError\n" if "IndexRangeError" in code else ""
        return f"{head}import numpy as np\n{ours}\n\n{code}"

    def _prologue(self) -> None:
        """Block sizes, extents and scalars."""
        for tile in {t.block: t for t in self.tiles.values()}.values():
            self.out.line(f"{self.block(tile)} = {self._size(tile)}")
        used, known = self._used_dims(), set[str]()
        for tensor in self.kernel.tensors:
            new = [d for d in tensor.dims if d in used and d not in known]
            if new == list(tensor.dims) and len(new) == len(set(new)) > 1:
                self.out.line(f"{', '.join(map(self.extent, new))} = {self.name(tensor.name)}.shape")
            else:
                for dim in dict.fromkeys(new):
                    self.out.line(f"{self.extent(dim)} = {self.name(tensor.name)}.shape[{tensor.dims.index(dim)}]")
            known.update(new)
        for scalar in self.kernel.scalars:
            name = self.name(scalar.name)
            self.out.line(f"{name} = {self.dtype(scalar.dtype)}({name})")

    def _size(self, tile: ir.Tile) -> int:
        size = self.config.get(tile.block)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ConfigError(f"{tile.block} is {size!r}, but tiles of {tile.dim} need a length: a positive integer")
        return size

    def _used_dims(self) -> set[str]:
        """The dims whose extents the text names."""
        used = {loop.dim for loop in self.kernel.grid}
        added = [s.index for s in ir.statements(self.kernel.body) if isinstance(s, ir.Store) and s.add]
        used.update(i.dim for index in added for i in index if isinstance(i, ir.Axis) and i.tile is None)
        for node in ir.every_expr(self.kernel.body):
            match node:
                case ir.Size(dim):
                    used.add(dim)
                case ir.Lanes(axis) if axis.tile is None:
                    used.add(axis.dim)
                case ir.Checked(dim=dim):
                    used.add(dim)
                case ir.Gather() if node.when is not None or not _is_lone(node):
                    used.update(a.dim for a in node.type.shape if a.tile is None)
                case ir.Full() | ir.Load(when=ir.Expr()):
                    used.update(a.dim for a in node.type.shape if a.tile is None)
        return used

    def name(self, name: str, kind: str = "value") -> str:
        """The Python name of an argument, variable or tile: its own, unless this text uses that for something else."""
        if (kind, name) not in self.names:
            free = name
            while free in self.taken:
                free += "_"
            self.taken.add(free)
            self.names[kind, name] = free
        return self.names[kind, name]

    def extent(self, dim: str) -> str:
        """The Python name of a dim's extent."""
        return self.name(dim, "extent")

    def block(self, tile: ir.Tile) -> str:
        """The Python name of the length of a tile."""
        return self.name(tile.block, "block")

    # -------------------------------------------------------------- statements
    def _grid(self, grid: tuple[ir.Each | ir.Tile, ...]) -> None:
        if not grid:
            self._body(self.kernel.body)
            return
        loop, *inner = grid
        with self.out.block(self._header(loop, "0", self.extent(loop.dim))):
            self._grid(tuple(inner))

    def _body(self, body: tuple[ir.Stmt, ...]) -> None:
        for stmt in body:
            match stmt:
                case ir.Assign(name, value):
                    self.out.line(f"{self.name(name)} = {self.typed(value)}", stmt.loc)
                case ir.Store(tensor, index, value) if any(isinstance(i, ir.Expr) and i.type.shape for i in index):
                    places = ", ".join(self._among(index, ir.kept(index), None))
                    self.out.line(f"np.add.at({self.name(tensor)}, ({places}), {self.expr(value)})", stmt.loc)
                case ir.Store(tensor, index, value, add=add):
                    sign = "+=" if add else "="
                    self.out.line(f"{self.name(tensor)}{self._index(index)} {sign} {self.expr(value)}", stmt.loc)
                case ir.For(over, start, stop, inner):
                    with self.out.block(self._header(over, self.expr(start), self.expr(stop)), stmt.loc):
                        self._body(inner)
                case _:
                    raise AssertionError(stmt)

    def _header(self, loop: ir.Tile | ir.Each, start: str, stop: str) -> str:
        """The first line of a loop over [start, stop)."""
        if isinstance(loop, ir.Tile) and loop.groups is not None:
            names = f"{self.name(loop.groups.index)}, {self.name(loop.name)}"
            starts, told = self.name(loop.groups.tensor), f'"{self.kernel.name}", "{loop.groups.tensor}"'
            return f"for {names} in {self.helper('tiles_of_groups')}({starts}, {stop}, {self.block(loop)}, {told}):"
        if isinstance(loop, ir.Tile):
            return f"for {self.name(loop.name)} in {self.helper('tiles')}({start}, {stop}, {self.block(loop)}):"
        bounds = stop if start == "0" else f"{start}, {stop}"
        return f"for {self.name(loop.name)} in range({bounds}):"

    def helper(self, name: str) -> str:
        self.helpers.add(name)
        return name

    # -------------------------------------------------------------- expressions
    def dtype(self, dtype: DType) -> str:
        return self.real if dtype.is_float and (self.exact or dtype == f32) else _DTYPES[dtype.name]

    def expr(self, node: ir.Expr, place: int = _IF) -> str:
        text, strength = self._format(node)
        return f"({text})" if strength < place else text

    def typed(self, node: ir.Expr, place: int = _IF) -> str:
        """The same where NumPy must see the dtype of a float scalar, which Python's numbers do not have."""
        named = (ir.Param, ir.Var, ir.Load, ir.Reduce, ir.Cast)
        if node.type.shape or not node.type.dtype.is_float or any(isinstance(x, named) for x in ir.walk(node)):
            return self.expr(node, place)
        return f"{self.dtype(node.type.dtype)}({self.expr(node)})"

    def _format(self, node: ir.Expr) -> tuple[str, int]:
        """The text of an expression and how strongly it binds."""
        scalar = not node.type.shape
        match node:
            case ir.Const(value):
                return _number(value)
            case ir.Param(name) | ir.Var(name) | ir.Index(name):
                return self.name(name), _ATOM
            case ir.Size(dim):
                return self.extent(dim), _ATOM
            case ir.Start(tile) if tile in self.uncut:
                return f"{self.name(tile)}.start", _ATOM
            case ir.Start(tile):
                block = self.block(self.tiles[tile])
                return f"{self.name(tile)}.start // {block} * {block}", _MULTIPLY
            case ir.Stop(tile):
                return f"{self.name(tile)}.stop", _ATOM
            case ir.Block(tile):
                return self.block(self.tiles[tile]), _ATOM
            case ir.Count(tile):
                return f"{self.helper('length')}({self.name(tile)})", _ATOM
            case ir.Before(tile, begin):
                first = f"{self.name(tile)}.start"
                return (first, _ATOM) if begin == ir.scalar(0) else (f"{first} - {self.expr(begin, _MULTIPLY)}", _ADD)
            case ir.Lanes(axis):
                if axis.tile is None:
                    return f"np.arange({self.extent(axis.dim)}, dtype=np.int32)", _ATOM
                return f"{self.helper('indices')}({self.name(axis.tile)})", _ATOM
            case ir.Load():
                return self._load(node)
            case ir.Gather():
                return self._gather(node), _ATOM
            case ir.Checked():
                return self._checked(node, self.expr(node.x), None), _ATOM
            case ir.Unary(op, x):
                text, place, strength = (_SCALAR_UNARY if scalar else _TILE_UNARY)[op]
                if op in _HELPERS:
                    self.helper(op)
                return text.format(x=self.typed(x, place)), strength
            case ir.Binary(op, a, b):
                return self._binary(op, a, b, scalar)
            case ir.Where(cond, a, b) if scalar:
                return f"{self.expr(a, _OR)} if {self.expr(cond, _OR)} else {self.expr(b)}", _IF
            case ir.Where(cond, a, b):
                first = self.expr(a)
                if not a.type.shape and not b.type.shape:
                    first = f"{self.dtype(a.type.dtype)}({first})"
                return f"np.where({self.expr(cond)}, {first}, {self.expr(b)})", _ATOM
            case ir.Cast(x):
                return self._cast(x, node.type.dtype)
            case ir.Full(value):
                return self._full(value, node.type)
            case ir.Expand(x, axis):
                kept = [":"] * len(x.type.shape)
                return f"{self.expr(x, _ATOM)}[{', '.join([*kept[:axis], 'None', *kept[axis:]])}]", _ATOM
            case ir.Transpose(x):
                return f"{self.expr(x, _ATOM)}.T", _ATOM
            case ir.Half(x, which):
                return f"{self.expr(x, _ATOM)}[..., {which}]", _ATOM
            case ir.Join(a, b):
                return f"np.stack(({self.expr(a)}, {self.expr(b)}), axis=-1)", _ATOM
            case ir.Reduce():
                return self._reduce(node)
            case ir.Dot():
                return self._dot(node)
        raise AssertionError(node)  # Valid: only passes write it, and none runs before this emitter

    def _load(self, node: ir.Load) -> tuple[str, int]:
        text = f"{self.name(node.tensor)}{self._index(node.index)}"
        if self.exact and node.type.dtype.is_float:
            text += ".astype(np.float64)"
        if node.when is None:
            return text, _ATOM
        zero = f"{self.dtype(node.type.dtype)}(0)"
        if node.type.shape:
            zero, _ = self._full(ir.scalar(0), node.type)
        return f"{text} if {self.expr(node.when, _OR)} else {zero}", _IF

    def _checked(self, node: ir.Checked, index: str, when: ir.Expr | None) -> str:
        """An index, or a tile of them, that raises where it is none of its dim and is asked for."""
        helper = self.helper("among" if node.type.shape or when is not None else "at")
        asked = "" if when is None else f", {self.expr(when)}"
        place = json.dumps(indices.place(self.kernel, node), ensure_ascii=False)
        return f"{helper}({index}, {self.extent(node.dim)}, {place}{asked})"

    def _gather(self, node: ir.Gather) -> str:
        name = self.name(node.tensor)
        if node.when is not None:
            index = ", ".join(self._among(node.index, node.type.shape, node.when))
            text = f"{self.helper('picked')}({name}, [{index}], {self.expr(node.when)})"
        elif _is_lone(node):
            text = f"{name}{self._index(node.index)}"
        else:
            text = f"{name}[{', '.join(self._among(node.index, node.type.shape, None))}]"
        return f"{text}.astype(np.float64)" if self.exact and node.type.dtype.is_float else text

    def _among(self, index: Index, shape: tuple[ir.Axis, ...], when: ir.Expr | None) -> list[str]:
        """The entries of an index as arrays that broadcast to a shape."""
        found = []
        for entry in index:
            x = ir.Lanes(entry, type=ir.Type(i32, (entry,))) if isinstance(entry, ir.Axis) else entry
            inner = x.x if isinstance(x, ir.Checked) else x
            text = self.expr(inner, _ATOM if len(inner.type.shape) < len(shape) else _IF)
            if inner.type.shape and len(inner.type.shape) < len(shape):
                text += f"[{', '.join(':' if axis in inner.type.shape else 'None' for axis in shape)}]"
            found.append(self._checked(x, text, when) if isinstance(x, ir.Checked) else text)
        return found

    def _binary(self, op: str, a: ir.Expr, b: ir.Expr, scalar: bool) -> tuple[str, int]:
        if op in _EXTREMES:
            whole = scalar and not a.type.dtype.is_float  # Python's own drop a NaN, or not, by its place
            name = _EXTREMES[op] if whole else {"max": "np.maximum", "min": "np.minimum"}[_EXTREMES[op]]
            return f"{name}({self.expr(a)}, {self.expr(b)})", _ATOM
        if op in _SHIFTS and scalar:
            return f"{_SHIFTS[op]}({self.expr(a)}, {self.expr(b)}, dtype={self.dtype(a.type.dtype)})", _ATOM
        symbol, strength = (_CONDITION_INFIX if scalar and a.type.dtype.kind == "bool" else _INFIX)[op]
        left = strength + 1 if strength == _COMPARE else strength  # comparisons would chain
        return f"{self.expr(a, left)} {symbol} {self.expr(b, strength + 1)}", strength

    def _cast(self, x: ir.Expr, to: DType) -> tuple[str, int]:
        if to.is_fp8:
            helper = self.helper("saturate" if self.exact else "to_fp8")
            return f"{helper}({self.expr(x)}, {_DTYPES[to.name]})", _ATOM
        if self.exact and to.is_float and x.type.dtype.is_float:
            return self._format(x)
        if to.kind == "int" and x.type.dtype.is_float:
            return f"{self.helper('to_int')}({self.expr(x)}, {_DTYPES[to.name]})", _ATOM
        if to.is_narrow_int and not x.type.shape:  # Python's numbers do not wrap
            return f"np.int32({self.expr(x)}).astype({self.dtype(to)})", _ATOM
        if x.type.shape:
            return f"{self.expr(x, _ATOM)}.astype({self.dtype(to)})", _ATOM
        return f"{self.dtype(to)}({self.expr(x)})", _ATOM

    def _full(self, value: ir.Expr, kind: ir.Type) -> tuple[str, int]:
        sides = [self._width(axis) for axis in kind.shape]
        shape = sides[0] if len(sides) == 1 else f"({', '.join(sides)})"
        if isinstance(value, ir.Const) and value.value == 0:
            return f"np.zeros({shape}, {self.dtype(kind.dtype)})", _ATOM
        return f"np.full({shape}, {self.expr(value)}, {self.dtype(kind.dtype)})", _ATOM

    def _width(self, axis: ir.Axis) -> str:
        return self.extent(axis.dim) if axis.tile is None else f"{self.helper('length')}({self.name(axis.tile)})"

    def _reduce(self, node: ir.Reduce) -> tuple[str, int]:
        dtype = node.type.dtype
        extra = ""
        if node.op == "sum":
            extra = f", dtype={self.dtype(dtype)}"
        elif node.x.type.shape[node.axis].tile is None:  # a whole dim may be empty; a tile never is
            limits = f"np.iinfo({self.dtype(dtype)})"
            low, high = ("-np.inf", "np.inf") if dtype.is_float else (f"{limits}.min", f"{limits}.max")
            extra = f", initial={low if _EXTREMES[node.op] == 'max' else high}"
        return f"np.{_EXTREMES.get(node.op, node.op)}({self.expr(node.x)}, axis={node.axis}{extra})", _ATOM

    def _dot(self, node: ir.Dot) -> tuple[str, int]:
        if self.exact or node.a.type.dtype == f32:
            product, strength = f"{self.expr(node.a, _MULTIPLY)} @ {self.expr(node.b, _NEGATE)}", _MULTIPLY
        else:
            product, strength = f"{self.helper('dot')}({self.expr(node.a)}, {self.expr(node.b)})", _ATOM
        if node.acc is None:
            return product, strength
        return f"{self.expr(node.acc, _ADD)} + {product}", _ADD

    def _index(self, index: Index) -> str:
        entries = [self._index_entry(i) for i in index]
        return f"[{', '.join(entries) or '()'}]"

    def _index_entry(self, entry: ir.Axis | ir.Expr) -> str:
        if isinstance(entry, ir.Axis):
            return ":" if entry.tile is None else self.name(entry.tile)
        return self.expr(entry)


def _is_lone(node: ir.Gather) -> bool:
    """Whether one tile of indices stands among slices of other axes: NumPy then leaves its axes where it stands."""
    tiles = [i for i in node.index if isinstance(i, ir.Expr)]
    return len(tiles) == 1 and len(node.type.shape) == len(tiles[0].type.shape) + len(node.index) - 1


def _arguments(kernel: ir.Kernel) -> tuple[ir.Tensor | ir.Scalar, ...]:
    return (*kernel.tensors, *kernel.scalars)


def _number(value: float | int | bool) -> tuple[str, int]:
    if value in (float("inf"), float("-inf")):
        text = "np.inf" if value > 0 else "-np.inf"
    else:
        text = "np.nan" if value != value else repr(value)
    return text, _NEGATE if text.startswith("-") else _ATOM
