"""Loads and stores in a generated Triton module: through addresses, or through tensor descriptors where these are legal.

An address is a base (scalars: batch, head, first row of the tile) plus the offsets of lanes. Lanes beyond the end of a tensor
are masked along its unit stride, so that wide accesses stay wide; elsewhere, unless zeros are asked for, they read the last
row again. Where tiles of indices tell addresses, each term is a tile of its own, and no padding is an address.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kpt_dsl import ir
from kpt_dsl.dtypes import i32, i64
from kpt_dsl.emit.text import Writer
from kpt_dsl.emit.triton.abi import Argument, Descriptor, Pointer, Stride
from kpt_dsl.emit.triton.axes import spread
from kpt_dsl.emit.triton.checks import Checks
from kpt_dsl.emit.triton.expressions import AND, ATOM, LOOSE, MULTIPLY, Expressions
from kpt_dsl.emit.triton.facts import TMA_BYTES, TMA_ROWS

Index = tuple[ir.Axis | ir.Expr, ...]


@dataclass
class Memory:
    """Writes the loads and stores of one kernel and collects the arguments that they need.

    ``descriptors``: use them where they are legal. ``relaxed``: axes along which a load, as the operand of products alone, need
    not be cleared. ``ranged``: the compiler asks which tensors end within 2 GiB; AMD's does, and counts their bytes in 32 bits.
    ``checks``: what sees to indices that may be of no element, where that is asked for.
    """

    kernel: ir.Kernel
    expressions: Expressions
    descriptors: bool
    emulate: frozenset[str]
    relaxed: Mapping[ir.Load, frozenset[ir.Axis]]
    ranged: bool = False
    checks: Checks | None = None
    arguments: dict[object, Argument] = field(default_factory=dict)

    def load(self, e: ir.Read, out: Writer, loc: ir.Loc, name: str, policy: str = "") -> None:
        """Write a load whose result is called ``name``; ``policy`` is what caches are asked to do with it."""
        axes, kept = self.expressions.axes, ir.kept(e.index)
        zero = "0.0" if e.type.dtype.is_float and e.type.dtype.name not in self.emulate else "0"
        asked = self._asked(e.index, e.when, e.masked, out, loc)
        if not asked and self._describable(e.tensor, e.index):
            assert isinstance(e, ir.Load), "descriptors move blocks"
            text = f"{self._descriptor(e.tensor, e.index)}.load({self._corner(e.index)})"
            if len(kept) < len(e.index):
                text += f".reshape({self.expressions.shape(kept)})"
            # The hardware reads zeros beyond the end of a tensor; padding that lies within it is cleared here.
            cleared = [a for a in e.masked if not axes.natural(a) and a not in self.relaxed.get(e, ())]
            out.line(f"{name} = {text}", loc)
            if cleared:
                out.line(f"{name} = {axes.language}.where({self.condition(cleared, kept)}, {name}, {zero})", loc)
            return
        strides = axes.facts.tensors[e.tensor].strides
        repeated = (strides[i].zero for i, entry in enumerate(e.index) if isinstance(entry, ir.Axis))
        if isinstance(e, ir.Load) and kept and all(repeated):
            self._load_repeated(e, asked, zero, out, loc, name)
            return
        contiguous = self._contiguous(e.tensor, e.index)
        masked = [a for a in kept if a in e.masked or (a == contiguous and axes.beyond_memory(a))]
        pointers = self._pointers(e.tensor, e.index, masked, out, loc)
        mask = [f"mask={self.condition(masked, kept, asked)}", f"other={zero}"] if masked or asked else []
        hint = [f'eviction_policy="{policy}"'] if policy else []
        out.call(f"{name} = {axes.language}.load(", [pointers, *mask, *hint], loc)

    def _asked(
        self, index: Index, when: ir.Expr | None, masked: tuple[ir.Axis, ...], out: Writer, loc: ir.Loc
    ) -> list[str]:
        """The conditions under which an index is used, but for padding; checks of it are written first.

        They are scalars, unless it has tiles: then they broadcast to the shape of the result.
        """
        given = [] if when is None else [self.expressions.text(when, AND)]
        if self.checks is None:
            return given
        kept = ir.kept(index)
        apart = any(map(is_tile, index)) and (bool(masked) or (when is not None and bool(when.type.shape)))
        used = " & ".join([*given, *([self.condition(masked, kept)] if apart and masked else [])])
        return given + self.checks.write(index, used, apart, out, loc)

    def _load_repeated(self, e: ir.Load, asked: list[str], zero: str, out: Writer, loc: ir.Loc, name: str) -> None:
        """A tile whose elements are all the same one: a scalar in one register, where a tile would take many."""
        kept, dtype, tl = ir.kept(e.index), self.expressions.dtype(e.type.dtype), self.expressions.axes.language
        index = tuple(i if isinstance(i, ir.Expr) else ir.scalar(0) for i in e.index)
        pointer = self._pointers(e.tensor, index, [], out, loc)
        mask = f", mask={' & '.join(asked)}, other={zero}" if asked else ""
        text = self.expressions.filled(kept, f"{tl}.load({pointer}{mask})", dtype)
        if e.masked:
            text = f"{tl}.where({self.condition(e.masked, kept)}, {text}, 0.0)"
        out.line(f"{name} = {text}", loc)

    def store(self, stmt: ir.Store, out: Writer) -> None:
        """Write a store, or an addition: by addresses, four elements at a time where they are neighbours."""
        axes, kept = self.expressions.axes, ir.kept(stmt.index)
        dtype = self.kernel.tensor(stmt.tensor).dtype
        cast = ir.Cast(stmt.value, type=ir.Type(dtype, stmt.value.type.shape), loc=stmt.loc)
        asked = self._asked(stmt.index, None, stmt.masked, out, stmt.loc)
        plain = not stmt.add and not asked
        if plain and self._describable(stmt.tensor, stmt.index) and all(axes.natural(a) for a in stmt.masked):
            lanes = [axes.lanes(i) if isinstance(i, ir.Axis) else "1" for i in stmt.index]
            shape = f".reshape([{', '.join(lanes)}])" if len(kept) < len(stmt.index) else ""
            value = self.expressions.text(cast, ATOM if shape else LOOSE) + shape
            out.call(f"{self._descriptor(stmt.tensor, stmt.index)}.store(", [self._corner(stmt.index), value], stmt.loc)
            return
        pointers = self._pointers(stmt.tensor, stmt.index, stmt.masked, out, stmt.loc)
        mask = [f"mask={self.condition(stmt.masked, kept, asked)}"] if stmt.masked or asked else []
        # Sums ask no program to wait for another.
        how, order = ("atomic_add", ['sem="relaxed"']) if stmt.add else ("store", [])
        out.call(f"{axes.language}.{how}(", [pointers, self.expressions.text(cast), *mask, *order], stmt.loc)

    # ------------------------------------------------------------------ descriptors
    def _describable(self, tensor: str, index: Index) -> bool:
        """Whether a descriptor may move this tile: legal for the tensor, at least two axes, the last one contiguous."""
        facts, kept = self.expressions.axes.facts, ir.kept(index)
        declared = self.kernel.tensor(tensor)
        if (
            not self.descriptors
            or len(kept) != 2
            or not isinstance(index[-1], ir.Axis)
            or any(map(is_tile, index))
            or declared.dtype.name in self.emulate
            or index[-1].tile in ir.groups(self.kernel)  # which begins anywhere, where a block's row is to begin at 16 bytes
        ):
            return False
        rows, columns = map(self.expressions.axes.width, kept)
        # Blocks of more rows than a copy moves, or of columns narrower than its granule, are left to addresses.
        return facts.tensors[tensor].describable and rows <= TMA_ROWS and columns * declared.dtype.bytes >= TMA_BYTES

    def _descriptor(self, tensor: str, index: Index) -> str:
        """The descriptor argument for blocks of this shape."""
        axes, names = self.expressions.axes, self.expressions.axes.names
        block = [axes.width(i) if isinstance(i, ir.Axis) else 1 for i in index]
        key = ("descriptor", tensor, tuple(block))
        name = names.of(key, f"{tensor}_desc")
        self.arguments[key] = Descriptor(name, tensor, self.kernel.tensor(tensor).dtype.name, tuple(block))
        return name

    def _corner(self, index: Index) -> str:
        """Where the block starts in the tensor."""
        return f"[{', '.join(self._first(i) for i in index)}]"

    def _first(self, entry: ir.Axis | ir.Expr) -> str:
        if isinstance(entry, ir.Expr):
            return self.expressions.text(entry)
        return "0" if entry.tile is None else self.expressions.axes.start(entry.tile)

    # ------------------------------------------------------------------ addresses
    def _pointers(self, tensor: str, index: Index, masked: Sequence[ir.Axis], out: Writer, loc: ir.Loc) -> str:
        """The text of the addresses of a tile. Scalars are summed apart, so that they stay scalars in the compiler."""
        axes, kept = self.expressions.axes, ir.kept(index)
        base = [t for position, i in enumerate(index) if (t := self._scalar_term(tensor, position, i))]
        lanes = []
        for position, entry in enumerate(index):
            if isinstance(entry, ir.Axis):
                vector = axes.local(entry) if entry in masked else axes.inside(entry)
                lanes.append(self._lane_term(tensor, position, spread(vector, (entry,), kept)))
            elif entry.type.shape:
                lanes.append(self._index_term(tensor, position, entry, kept))
        pointer = self._pointer(tensor)
        if not lanes:
            return " + ".join([pointer, *base])
        if not base:
            return f"{pointer} + {_sum(lanes)}"
        first = axes.names.of(("base", tensor, out.depth), f"{tensor}_base")
        out.line(f"{first} = {pointer} + {_sum(base)}", loc)
        return f"{first} + {_sum(lanes)}"

    def _pointer(self, tensor: str) -> str:
        names, facts = self.expressions.axes.names, self.expressions.axes.facts.tensors[tensor]
        dtype = self.kernel.tensor(tensor).dtype.name
        name = names.of(("pointer", tensor), tensor)
        argument = Pointer(name, tensor, dtype, facts.aligned, facts.ranged and self.ranged, bits=dtype in self.emulate)
        self.arguments[("pointer", tensor)] = argument
        return name

    def vector(self, tensor: str) -> tuple[str, str]:
        """The address of a tensor's first element, and the step from one element to the next, of one that has one dim."""
        return self._pointer(tensor), self._stride(tensor, 0) or "1"

    def _scalar_term(self, tensor: str, position: int, entry: ir.Axis | ir.Expr) -> str:
        """How far a scalar index, or the first lane of a tile, is from the tensor's start; empty for zero."""
        if is_tile(entry):
            return ""
        if isinstance(entry, ir.Axis):
            text = "" if entry.tile is None else self.expressions.axes.start(entry.tile)
        else:
            zero = isinstance(entry, ir.Const) and entry.value == 0
            text = "" if zero else self.expressions.text(entry, strength=MULTIPLY)
        if not text:
            return ""
        if self.expressions.axes.facts.tensors[tensor].large:
            tl = self.expressions.axes.language
            text = f"{tl}.cast({text}, {tl}.int64)"
        stride = self._stride(tensor, position)
        return f"{text} * {stride}" if stride else text

    def _lane_term(self, tensor: str, position: int, lanes: str) -> str:
        """Offsets of an axis' lanes."""
        if self.expressions.axes.facts.tensors[tensor].strides[position].far:
            lanes = f"{lanes}.to({self.expressions.axes.language}.int64)"
        stride = self._stride(tensor, position)
        return f"{lanes} * {stride}" if stride else lanes

    def _index_term(self, tensor: str, position: int, index: ir.Expr, kept: tuple[ir.Axis, ...]) -> str:
        """Offsets that a tile of indices tells."""
        large, wide = self.expressions.axes.facts.tensors[tensor].large, index.type.dtype == i64
        within = len(index.type.shape) < len(kept)
        text = spread(self.expressions.text(index, ATOM if within or large != wide else MULTIPLY), index.type.shape, kept)
        if large != wide:
            text += f".to({self.expressions.dtype(i64 if large else i32)})"
        stride = self._stride(tensor, position)
        return f"{text} * {stride}" if stride else text

    def _stride(self, tensor: str, position: int) -> str:
        """The stride argument of a dim, empty where the stride is one."""
        axes = self.expressions.axes
        facts = axes.facts.tensors[tensor].strides[position]
        if facts.unit:
            return ""
        key = ("stride", tensor, position)
        name = axes.names.of(key, f"{tensor}_stride_{self.kernel.tensor(tensor).dims[position]}")
        self.arguments[key] = Stride(name, tensor, position, facts.wide, facts.divisible)
        return name

    def _contiguous(self, tensor: str, index: Index) -> ir.Axis | None:
        """The axis that runs along the tensor's unit stride, if the tile has it."""
        last = index[-1]
        unit = self.expressions.axes.facts.tensors[tensor].strides[-1].unit
        return last if unit and isinstance(last, ir.Axis) else None

    def condition(self, masked: Sequence[ir.Axis], kept: tuple[ir.Axis, ...], asked: Sequence[str] = ()) -> str:
        """Which lanes of a tile are none of the padding along some of its axes, as text."""
        texts = [*asked, *(spread(self.expressions.axes.valid(a), (a,), kept) for a in kept if a in masked)]
        return " & ".join(texts)


def is_tile(entry: ir.Axis | ir.Expr) -> bool:
    """Whether an entry of an index is a tile of indices."""
    return isinstance(entry, ir.Expr) and bool(entry.type.shape)


def _sum(terms: list[str]) -> str:
    return terms[0] if len(terms) == 1 else f"({' + '.join(terms)})"
