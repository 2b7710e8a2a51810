"""Gluon source from tile IR, for chips that reward a schedule of their own: one warp that loads, warpgroups that multiply.

The module has the kernel's entry, which says who gets what, and a function for each part: ``load_tiles``, ``multiply``, and the
work between products (``partitions``). What a function needs from outside is read off its text. Imports no Triton.
"""

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from kpt_dsl import ir
from kpt_dsl.emit import Source
from kpt_dsl.emit.gluon import vocabulary
from kpt_dsl.emit.gluon.functions import define
from kpt_dsl.emit.gluon.layouts import GROUP_WARPS
from kpt_dsl.emit.gluon.partitions import Partitions
from kpt_dsl.emit.gluon.program import Program
from kpt_dsl.emit.text import Writer
from kpt_dsl.emit.triton import outline
from kpt_dsl.emit.triton.abi import TritonAbi
from kpt_dsl.emit.triton.facts import Facts, row_tile
from kpt_dsl.emit.triton.grid import Grid
from kpt_dsl.emit.triton.helpers import HELPERS
from kpt_dsl.errors import ConfigError
from kpt_dsl.passes.padding import guard
from kpt_dsl.passes.pipeline import Unfit, hidden, pipeline
from kpt_dsl.passes.starts import at_loaded_starts

if TYPE_CHECKING:
    from kpt_dsl.space import Config
    from kpt_dsl.targets import Target

PRODUCER_REGISTERS = 24
"""Registers of a thread that loads: the least that setmaxnreg takes (PTX ISA)."""


def emit(kernel: ir.Kernel, known: Facts, target: "Target", config: "Config") -> Source:
    """Gluon source of a kernel for a GPU and a config with ``schedule=warp_specialised``.

    Raises ConfigError where the kernel cannot be cut into producer and consumers.
    """
    row = row_tile(kernel)
    try:
        plan = pipeline(guard(hidden(at_loaded_starts(kernel)), known.padded, known.level))
    except Unfit as reason:
        raise ConfigError(f"{kernel.name} has no warp-specialised schedule: {reason}") from None
    assert row is not None, "a pipeline has a product with rows"
    return Module(kernel, plan, row, known, target, config).source()


def in_gluon(helper: str) -> str:
    """A function of a Triton module for one of Gluon, whose loops are plain and whose vectors lie along the default warps."""
    text = helper.replace("@triton.", "@gluon.").replace("tl.range", "range")
    text = re.sub(r"\btl\.(?!PropagateNan)", "gl.", text)
    return re.sub(r"(gl\.arange\(0, (\d+))\)", rf"\1, layout=gl.BlockedLayout([\2 // 128], [32], [{GROUP_WARPS}], [0]))", text)


class Module(Program):
    """Writes the module: its functions, and the entry that says who runs which."""

    def source(self) -> Source:
        partitions = Partitions(self)
        entry = Writer(depth=1)
        self._begin(partitions, entry)
        functions = partitions.functions()
        self.shared.allocate(entry)
        self._roles(partitions, entry)
        used = (*self.shared.descriptors.values(), *self.memory.arguments.values())
        arguments = outline.arguments(self.kernel, self.axes, used)
        layouts = {str(p): p.definition for p in sorted(self.expressions.layouts, key=lambda p: p.columns)}
        out = Writer()
        for constants in (self.axes.constants, layouts, self.shared.layouts, partitions.layouts):
            for name, value in constants.items():
                out.line(f"{name} = gl.constexpr({value})")
        for helper in HELPERS:
            if helper in self.expressions.helpers:
                out.line("\n\n" + in_gluon(HELPERS[helper]))
        for function in functions:
            function.write(out)
        out.line("\n\n@gluon.jit")
        out.call(f"def {self.name}(", [a.name for a in arguments], tail="):", packed=True)
        out.paste(entry)
        grid = tuple(outline.counted(g, self.block(g) if isinstance(g, ir.Tile) else 1) for g in self.kernel.grid)
        options = (("num_warps", GROUP_WARPS), ("enable_fp_fusion", True))
        head = Writer()
        imports = (*vocabulary.IMPORTS, *[vocabulary.NAN_IMPORT] * ("tl.PropagateNan" in out.text()), "")
        outline.begin(head, self.kernel, self.target.arch, self.config, imports)
        head.paste(out)
        return Source("triton", self.name, head.text(), TritonAbi(arguments, grid, self.persistent, options, "gluon"))

    # ------------------------------------------------------------------ the entry
    def _begin(self, partitions: Partitions, out: Writer) -> None:
        """Where the program stands; or, where it has one tile after another, which these are."""
        out.line("program = gl.program_id(0)")
        grid = Grid(self.kernel, self.memory, int(self.config.get("group", 1)), self.persistent)
        wide = replace(self.row, block=f"tile_{self.row.dim}")
        with self.axes.widened(wide, self.block(wide)):
            if not self.persistent:
                self._place(grid, wide, "program", partitions, out)
                return
            out.line("programs = gl.num_programs(0)")
            out.line(f"{partitions.walk.tiles} = {grid.total(out)}")
            self._place(grid, wide, partitions.walk.number, partitions, partitions.walk.place)

    def _place(self, grid: Grid, wide: ir.Tile, number: str, partitions: Partitions, out: Writer) -> None:
        """Write where the tile of a ``number`` is, and the bounds of its loop."""
        grid.write(number, out)
        body, walk = Writer(out.depth), partitions.walk
        with self.tiles(wide) as scopes:
            partitions.statements.limits(body)
            loop, block = self.plan.loop, self.axes.lanes(self.plan.loop.tile.axis)
            low = self.low if not isinstance(loop.start, ir.Const) else str(loop.start.value)
            body.line(f"{walk.begin} = {low if low == '0' or loop.at_start else f'{low} // {block} * {block}'}", loop.loc)
            body.line(f"{walk.end} = {self.steps_end(walk.begin, self.persistent)}")
            if self.plan.foreign:
                body.line(f"{walk.beyond} = {self.high}")
        for scope in scopes:
            define(scope, out)
        out.paste(body)

    def _roles(self, partitions: Partitions, out: Writer) -> None:
        consumer, producer = partitions.consumer, partitions.producer
        warps = [*[str(GROUP_WARPS)] * (self.consumers - 1), "1"]
        registers = [*["REGISTERS"] * (self.consumers - 1), str(PRODUCER_REGISTERS)]
        with out.block("gl.warp_specialize("):
            with out.block("["):
                for i in range(self.consumers):
                    values = consumer.arguments(f"gl.to_tensor({i})", *partitions.given)
                    out.call(f"({consumer.name}, (", values, tail=")),", packed=True)
                out.call(f"({producer.name}, (", producer.arguments(), tail=")),", packed=True)
            out.line("],")
            out.line(f"[{', '.join(warps)}],")
            out.line(f"[{', '.join(registers)}],")
        out.line(")")
