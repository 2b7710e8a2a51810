"""Shared memory of a generated Gluon module: the rings that the producer fills, the barriers beside them, and what holds tiles
on their way in and out.

A ring has a *ready* barrier a slot, on which consumers wait for data, and a *free* one, on which the producer waits for them.
"""

from dataclasses import dataclass, field

from kpt_dsl import ir
from kpt_dsl.emit.gluon.layouts import LaidOutAxes
from kpt_dsl.emit.text import Writer
from kpt_dsl.emit.triton.abi import Descriptor
from kpt_dsl.emit.triton.memory import Index, Memory
from kpt_dsl.passes.pipeline import Operand, Pipeline

SWIZZLES = (128, 64, 32)
"""Bytes of a row over which tiles in shared memory are swizzled, so that wgmma reads them without bank conflicts."""


def layout_name(bits: int, swizzle: int) -> str:
    """What a module calls the layout of shared tiles of elements of so many bits."""
    return f"SHARED_{bits}BIT_{swizzle}B"


@dataclass(frozen=True)
class Tile:
    """A tile in shared memory: its buffer, and the descriptor that moves it. ``split``: each consumer has rows of its own."""

    name: str
    descriptor: str
    index: Index
    split: bool
    operand: Operand | None = None


@dataclass(frozen=True)
class Ring:
    """The tiles that one product reads in each step, with their barriers."""

    tiles: tuple[Tile, ...]
    ready: str
    free: str


@dataclass
class Shared:
    """Every buffer of one module. ``row``: the axis that consumers share out."""

    kernel: ir.Kernel
    axes: LaidOutAxes
    memory: Memory
    plan: Pipeline
    row: ir.Axis
    consumers: int
    slots: int
    persistent: bool
    descriptors: dict[object, Descriptor] = field(default_factory=dict)
    layouts: dict[str, str] = field(default_factory=dict)
    """The layouts of shared tiles: name -> text."""

    def __post_init__(self) -> None:
        new = self.axes.names.new
        self.link = self._ring(self.plan.link)
        self.product = self._ring(self.plan.product)
        self.held: Tile | None = None
        self.held_ready, self.held_free = "", ""
        if self.plan.held is not None:
            load = self.plan.held.value
            assert isinstance(load, ir.Load)
            self.held = self._tile(load.tensor, load.index, "tile")
            self.held_ready, self.held_free = new(f"{load.tensor}_ready"), new(f"{load.tensor}_free")
        self.staged = {s: self._staged(s) for s in self.plan.after if isinstance(s, ir.Store) and self._is_tile(s)}

    def allocate(self, out: Writer) -> None:
        """Write the buffers and barriers, barriers ready for use."""
        barriers = {}
        each = {t.name: t for t in self.staged.values()}
        if self.held is not None:
            each.pop(self.held.name, None)
            count = "AHEAD * CONSUMERS" if self.persistent else "CONSUMERS"
            self._buffer(self.held, count, out)
            barriers[self.held_ready] = (count, "1")
            if self.persistent:
                barriers[self.held_free] = (count, "1")
        for tile in each.values():
            self._buffer(tile, "CONSUMERS", out)
        for ring in (self.link, self.product):
            if ring is not None:
                for tile in ring.tiles:
                    self._buffer(tile, "SLOTS * CONSUMERS" if tile.split else "SLOTS", out)
                barriers |= {ring.ready: ("SLOTS", "1"), ring.free: ("SLOTS", "CONSUMERS")}
        for name, (count, _) in barriers.items():
            out.line(f"{name} = gl.allocate_shared_memory(gl.int64, [{count}, 1], mbarrier.MBarrierLayout())")
        for name, (count, arrivals) in barriers.items():
            with out.block(f"for i in gl.static_range({count}):"):
                out.line(f"mbarrier.init({name}.index(i), count={arrivals})")
        out.line("fence_async_shared()")

    def taken(self, load: ir.Load) -> str:
        """What a consumer calls the tile that it took into registers."""
        return self.axes.names.of(("taken", load.tensor, load.index), f"{load.tensor}_tile")

    def corner(self, tile: Tile, consumer: str = "") -> str:
        """Where a tile's block starts in its tensor; the producer says which ``consumer`` it is for."""
        strides = self.axes.facts.tensors[self._tensor_of(tile).name].strides
        places = zip(tile.index, strides, strict=True)
        return f"[{', '.join('0' if s.zero else self._first(i, consumer) for i, s in places)}]"

    # ------------------------------------------------------------------ the pieces
    def _ring(self, operands: tuple[Operand, ...]) -> Ring | None:
        if not operands:
            return None
        tiles = tuple(self._tile(o.load.tensor, o.load.index, "ring", o) for o in operands)
        first, new = operands[0].load.tensor, self.axes.names.new
        return Ring(tiles, new(f"{first}_ready"), new(f"{first}_free"))

    def _tile(self, tensor: str, index: Index, what: str, operand: Operand | None = None) -> Tile:
        name = self.axes.names.new(f"{tensor}_{what}")
        return Tile(name, self._descriptor(tensor, index), index, self.row in index, operand)

    def _staged(self, store: ir.Store) -> Tile:
        """Room for a tile on its way out: that of the held one, which nobody reads any more by then, where it fits; in a
        persistent program others are on their way there."""
        if self.held is not None and self.plan.held is not None and not self.persistent:
            load = self.plan.held.value
            lanes, room = ([self.axes.width(a) for a in axes] for axes in (ir.kept(store.index), load.type.shape))
            if lanes == room and self.kernel.tensor(store.tensor).dtype == load.type.dtype:
                return Tile(self.held.name, self._descriptor(store.tensor, store.index), store.index, True)
        return self._tile(store.tensor, store.index, "tile")

    def _is_tile(self, store: ir.Store) -> bool:
        """Whether a store is of whole blocks: rows beyond a group are others', to which a descriptor would write as well."""
        return len(ir.kept(store.index)) == 2 and self.row.tile not in ir.groups(self.kernel)

    def _buffer(self, tile: Tile, count: str, out: Writer) -> None:
        axes = ir.kept(tile.index)
        tensor = self._tensor_of(tile)
        dtype = self.memory.expressions.dtype(tensor.dtype)
        shape = ", ".join(self.axes.lanes(a) for a in axes)
        layout = self._layout(tensor, axes)
        out.line(f"{tile.name} = gl.allocate_shared_memory({dtype}, [{count}, {shape}], {layout})")

    def _tensor_of(self, tile: Tile) -> ir.Tensor:
        described = next(d for d in self.descriptors.values() if d.name == tile.descriptor)
        return self.kernel.tensor(described.tensor)

    def _descriptor(self, tensor: str, index: Index) -> str:
        block = tuple(self.axes.width(i) if isinstance(i, ir.Axis) else 1 for i in index)
        key = ("descriptor", tensor, block)
        name = self.axes.names.of(key, f"{tensor}_desc")
        declared = self.kernel.tensor(tensor)
        layout = self._text(declared, ir.kept(index), len(index))
        self.descriptors[key] = Descriptor(name, tensor, declared.dtype.name, block, layout)
        return name

    def _layout(self, tensor: ir.Tensor, axes: tuple[ir.Axis, ...]) -> str:
        name = layout_name(tensor.dtype.bits, self._swizzle(tensor, axes))
        self.layouts[name] = f"gl.{self._text(tensor, axes, len(axes))}"
        return name

    def _text(self, tensor: ir.Tensor, axes: tuple[ir.Axis, ...], rank: int) -> str:
        swizzle, bits = self._swizzle(tensor, axes), tensor.dtype.bits
        return f"NVMMASharedLayout(swizzle_byte_width={swizzle}, element_bitwidth={bits}, rank={rank})"

    def _swizzle(self, tensor: ir.Tensor, axes: tuple[ir.Axis, ...]) -> int:
        row = self.axes.width(axes[-1]) * tensor.dtype.bytes
        return next(s for s in SWIZZLES if row % s == 0)

    def _first(self, entry: ir.Axis | ir.Expr, consumer: str) -> str:
        if isinstance(entry, ir.Expr):
            return self.memory.expressions.text(entry)
        if entry.tile is None:
            return "0"
        start = self.axes.start(entry.tile)
        return f"{start} + {consumer} * {self.axes.lanes(entry)}" if consumer and entry == self.row else start
