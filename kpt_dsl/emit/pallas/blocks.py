"""The blocks of a Pallas kernel: which part of which tensor a step sees, and how tensors enter and leave the kernel.

A TPU register is 8 sublanes by 128 lanes, so the last two dims of a block are multiples of (8, 128) or the whole dim, and dims
that are indexed one element at a time lie in front of them. Tensors that are laid out otherwise are transposed or reshaped
outside the kernel, where XLA does it at the speed of memory or for nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kpt_dsl import ir
from kpt_dsl.emit.pallas.expressions import JAX_DTYPES, Text
from kpt_dsl.emit.pallas.gathers import held
from kpt_dsl.emit.pallas.plan import LANES, STEP, SUBLANES, Phase, Plan
from kpt_dsl.errors import ConfigError, TargetError
from kpt_dsl.ir import Axis, Expr

Index = tuple[Axis | Expr, ...]


@dataclass(frozen=True)
class Block:
    """A tile of a tensor as the kernel sees it: a ref named ``name`` whose place in the tensor follows from the step. Along the
    dim at ``parts``, if there is one, it has all tiles, which are stored one by one."""

    name: str
    tensor: ir.Tensor
    index: Index
    parts: int | None = None

    @property
    def axes(self) -> tuple[Axis, ...]:
        return tuple(i for at, i in enumerate(self.index) if isinstance(i, Axis) and at != self.parts)

    @property
    def order(self) -> tuple[int, ...]:
        """The tensor's dims in the order that the kernel wants: single elements first, tiles last."""
        return tuple(sorted(range(len(self.index)), key=lambda i: (isinstance(self.index[i], Axis), i != self.parts)))


def canonical(index: Index, plan: Plan) -> Index:
    """What two loads share when one block serves both."""
    return tuple(plan.resolved(i) if isinstance(i, Expr) else plan.place(i) for i in index)


class Blocks:
    """The blocks of a plan, inputs and outputs, and their text."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._inputs: dict[tuple[str, Index], Block] = {}
        self._outputs: dict[str, Block] = {}
        self._stored: dict[str, dict[Index, set[tuple[int | None, int]]]] = {}
        """Of each output, by which indices it is stored, in which phases and on which lines."""
        self.scalars: list[ir.Tensor] = []
        self.phases: dict[str, list[int]] = {}
        for segment in plan.segments:
            number = plan.phases.index(segment.phase) if segment.phase else None
            for stmt in segment.body:
                for load in (e for top in ir.expressions(stmt) for e in ir.walk(top) if isinstance(e, ir.Read)):
                    self._input(load, number)
                if isinstance(stmt, ir.Store):
                    self._output(stmt, number)
        self._outputs = {name: self._in_parts(block) for name, block in self._outputs.items()}
        for phase in plan.phases:
            for bound in (phase.loop.start, phase.loop.stop):
                for load in (e for e in ir.walk(bound) if isinstance(e, ir.Read)):
                    self._input(load, None)
        for tensor in (t for t in plan.kernel.tensors if t.role == "out" and t.name not in self._outputs):
            raise TargetError(f"{plan.kernel.name} never stores to {tensor.name}; a TPU kernel writes each of its outputs")
        for tensor in self.scalars:
            if any(tensor.name == name for name, _ in self._inputs):
                raise TargetError(
                    f"{plan.kernel.name} reads {tensor.name} both in tiles and one element at a time; a TPU holds it in "
                    f"vector or in scalar memory, so pass it twice"
                )

    def _input(self, load: ir.Read, phase: int | None) -> None:
        tensor = self.plan.kernel.tensor(load.tensor)
        if not load.type.shape:
            if tensor not in self.scalars:
                self.scalars.append(tensor)
            return
        key = (tensor.name, canonical(held(self.plan, load), self.plan))
        if key not in self._inputs:
            count = sum(name == tensor.name for name, _ in self._inputs)
            name = f"{tensor.name}_ref" if not count else f"{tensor.name}_{count + 1}_ref"
            self._inputs[key] = self._checked(Block(name, tensor, key[1]))
        self._seen(self._inputs[key], phase)

    def _output(self, store: ir.Store, phase: int | None) -> None:
        if store.add:
            raise TargetError(
                f"{self.plan.kernel.name} adds to {store.tensor} (line {store.loc.line}); on a TPU an output has one writer"
            )
        tensor = self.plan.kernel.tensor(store.tensor)
        block = Block(f"{tensor.name}_ref", tensor, canonical(store.index, self.plan))
        loop = None if phase is None or not self.plan.phases[phase].bounded else self.plan.phases[phase].loop
        if loop is not None and loop.over.name in _stepped(store.index) and not loop.deals_dim:
            raise TargetError(
                f"{self.plan.kernel.name} stores {tensor.name} in a loop with bounds of its own (line {store.loc.line}); a TPU "
                f"writes whole blocks, so loop over all of {loop.over.dim}, or over a share of it"
            )
        self._stored.setdefault(tensor.name, {}).setdefault(block.index, set()).add((phase, store.loc.line))
        self._outputs[tensor.name] = block
        self._seen(self._checked(block), phase)

    def _in_parts(self, block: Block) -> Block:
        """The block of an output, of which parts may be stored one by one."""
        stored, tensor = self._stored[block.tensor.name], block.tensor
        if len(stored) == 1:
            return block
        at, *more = [i for i, entries in enumerate(zip(*stored, strict=True)) if len(set(entries)) > 1]
        phases = {phase for places in stored.values() for phase, _ in places}
        line = max(line for places in stored.values() for _, line in places)
        if more or not all(isinstance(index[at], ir.Const) for index in stored):
            raise TargetError(
                f"{self.plan.kernel.name} stores {tensor.name} by two different indices (line {line}); a TPU kernel has one "
                f"block of each output"
            )
        if len(stored) < (count := self.plan.dims[tensor.dims[at]]) or len(phases) > 1:
            raise TargetError(
                f"{self.plan.kernel.name} stores {tensor.name} at {len(stored)} indices of {tensor.dims[at]} (line {line}); a "
                f"TPU writes whole blocks, so store at all {count} of them, together in a loop or outside all"
            )
        return replace(block, index=(*block.index[:at], Axis(tensor.dims[at]), *block.index[at + 1 :]), parts=at)

    def _seen(self, block: Block, phase: int | None) -> None:
        known = self.phases.setdefault(block.name, [])
        if phase is not None and phase not in known:
            known.append(phase)

    @property
    def read(self) -> list[Block]:
        """The inputs in the order of the kernel's arguments."""
        order = [t.name for t in self.plan.kernel.tensors]
        return sorted(self._inputs.values(), key=lambda block: order.index(block.tensor.name))

    @property
    def written(self) -> list[Block]:
        """The outputs in the order of the kernel's arguments."""
        return [self._outputs[t.name] for t in self.plan.kernel.tensors if t.role == "out"]

    def output(self, tensor: str) -> Block:
        """The block that a tensor is stored through."""
        return self._outputs[tensor]

    def of(self, load: ir.Read) -> str:
        """How the block behind a load is read."""
        return self._at(self._inputs[load.tensor, canonical(held(self.plan, load), self.plan)], "...")

    def stored(self, store: ir.Store) -> str:
        """How the block behind a store is written to."""
        block = self._outputs[store.tensor]
        part = None if block.parts is None else store.index[block.parts]
        return self._at(block, str(part.value) if isinstance(part, ir.Const) else "...")

    def _at(self, block: Block, part: str) -> str:
        """A block's ref, subscripted by one of its parts and, where it has several tiles, by the number of one."""
        if self.plan.unroll > 1 and any(a.tile == STEP for a in block.axes):
            places = [f"part * block_{a.dim}:(part + 1) * block_{a.dim}" if a.tile == STEP else ":" for a in block.axes]
            part = ", ".join([part] * (part != "...") + self._two(places, block, ":"))
        return f"{block.name}[{part}]"

    @property
    def kept(self) -> list[Block]:
        """The outputs that programs may store a part of only: the rest keeps what was there."""
        return [block for block in self.written if not self._covered(block)]

    def _covered(self, block: Block) -> bool:
        """Whether the programs together store every element."""
        loops = {g.name: g.dim for g in self.plan.kernel.grid} | {p.name: p.dim for p in self.plan.phases if not p.bounded}
        entries = zip(block.index, block.tensor.dims, strict=True)
        return all(isinstance(i, Axis) or (isinstance(i, ir.Index) and loops.get(i.name) == dim) for i, dim in entries)

    # -------------------------------------------------------------- legality
    def _checked(self, block: Block) -> Block:
        """Raises ConfigError where the last two dims are neither whole nor multiples of a register's."""
        units = [SUBLANES, LANES]
        axes = block.axes
        if len(axes) == 1:
            units = [SUBLANES if self.column(block) else LANES]
        for axis, unit in zip(axes[-2:], units, strict=False):
            if axis.tile is None:
                continue
            lanes, extent = self.plan.lanes[axis.dim], self.plan.dims[axis.dim]
            if lanes != extent and lanes % unit:
                raise ConfigError(
                    f"block_{axis.dim}={lanes}: tiles of {block.tensor.name}[{', '.join(block.tensor.dims)}] along {axis.dim} "
                    f"must be multiples of {unit} on a TPU, or all of its {extent} elements"
                )
        return block

    # -------------------------------------------------------------- text
    def column(self, block: Block) -> bool:
        """Whether a tile with one axis lies along sublanes in memory."""
        return self.plan.stored(block.axes[0]) == "column"

    def shape(self, block: Block, text: Text) -> str:
        """The block's extents: None for a dim that is indexed one element at a time."""
        single = ["None"] * (len(block.index) - len(block.axes))
        if block.parts is not None:
            single[-1] = block.tensor.dims[block.parts]
        return f"({', '.join(single + self._two([self._length(a, text) for a in block.axes], block, '1'))})"

    def _length(self, axis: Axis, text: Text) -> str:
        several = self.plan.unroll > 1 and axis.tile == STEP
        return f"{self.plan.unroll} * {text.length(axis)}" if several else text.length(axis)

    def place(self, block: Block, text: Text, calls: Mapping[str, str]) -> str:
        """What an index map returns: the block's place in the tensor, counted in blocks; ``calls`` as in ``tile_number``."""
        seen = self.phases[block.name]
        steps = {p.name: f"({_step_number(self.plan, [p], calls, text.tiles)})" for p in self.plan.phases if not p.tiled}
        single = [text.placed(i, steps) for i in block.index if isinstance(i, Expr)] + ["0"] * (block.parts is not None)
        places = ["0" if a.tile is None else tile_number(self.plan, a, seen, calls, text.tiles) for a in block.axes]
        return f"({', '.join(single + self._two(places, block, '0'))})"

    def _two(self, entries: list[str], block: Block, unit: str) -> list[str]:
        """Entries for the axes of a tile, with a unit one where it has fewer than two."""
        if len(entries) > 1:
            return entries
        if not entries:
            return [unit, unit]
        return [*entries, unit] if self.column(block) else [unit, *entries]

    def array(self, block: Block, name: str) -> str:
        """The tensor as the kernel takes it."""
        text = name
        if block.order != tuple(range(len(block.order))):
            text += f".transpose({', '.join(map(str, block.order))})"
        if len(block.axes) == 1:
            text += "[..., None]" if self.column(block) else "[..., None, :]"
        elif not block.axes:
            text += "[..., None, None]"
        return text + (".astype(jnp.float32)" if block.tensor.dtype.name == "f16" else "")

    def out_shape(self, block: Block) -> str:
        """The shape in which the kernel gives an output."""
        dims = [block.tensor.dims[i] for i in block.order]
        single = len(dims) - len(block.axes)
        sizes = dims[:single] + self._two(dims[single:], block, "1")
        return f"jax.ShapeDtypeStruct(({', '.join(sizes)}), {JAX_DTYPES[block.tensor.dtype.name]}, manual_axis_type=axes)"

    def restored(self, block: Block, name: str) -> str:
        """An output as the caller wants it."""
        text = name
        if len(block.axes) == 1:
            text += "[..., 0]" if self.column(block) else "[..., 0, :]"
        elif not block.axes:
            text += "[..., 0, 0]"
        if block.order != tuple(range(len(block.order))):
            text += f".transpose({', '.join(str(block.order.index(i)) for i in range(len(block.order)))})"
        return text + (".astype(jnp.float16)" if block.tensor.dtype.name == "f16" else "")


def _stepped(index: Index) -> set[str | None]:
    """The loop variables that an index follows."""
    axes = {i.tile for i in index if isinstance(i, Axis)}
    return axes | {e.name for i in index if isinstance(i, Expr) for e in ir.walk(i) if isinstance(e, ir.Index)}


def tile_number(plan: Plan, axis: Axis, seen: Sequence[int], calls: Mapping[str, str], names: Mapping[str, str]) -> str:
    """Which tile along an axis a step is at, as an index map needs it; the rest as in ``step_number``."""
    if axis.tile != STEP:
        return names[axis.tile or ""]
    phases = [plan.phases[i] for i in sorted(seen) if plan.phases[i].dim == axis.dim and plan.phases[i].tiled]
    return _step_number(plan, phases, calls, names)


def _step_number(plan: Plan, phases: Sequence[Phase], calls: Mapping[str, str], names: Mapping[str, str]) -> str:
    """Which tile or index these successive loops over one dim are at.

    Before its loop the number is that of the first tile, after it that of the last, so nothing useless is fetched. ``calls``
    gives the text of the bounds of each bounded loop, ``names`` that of each tile's number.
    """
    step = plan.step(names)
    text = ""
    for i in reversed(range(len(phases))):
        phase = phases[i]
        number = step if phase.first == 0 else f"{step} - {phase.first}"
        if phase.bounded:
            width = f"block_{phase.dim}" if phase.tiled else "1"
            width = f"{plan.unroll} * {width}" if plan.unroll > 1 else width
            number = f"nearest({number}, {calls[phase.name]}, {width}, {phase.steps})"
        else:
            early = phase.first > (phases[i - 1].last + 1 if i else 0)
            late = phase.last + 1 < (phases[i + 1].first if i + 1 < len(phases) else plan.steps)
            number = f"jnp.maximum({number}, 0)" if early else number
            number = f"jnp.minimum({number}, {phase.steps - 1})" if late else number
        text = f"jnp.where({step} < {phases[i + 1].first}, {number}, {text})" if text else number
    return text
