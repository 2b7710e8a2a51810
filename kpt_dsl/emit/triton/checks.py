"""Checks of indices in a generated Triton module: each is compared with its dim, and the first that is none of it is reported.

A device cannot raise. A bad index is not followed, and goes with the number of its place to a word in memory, for whoever
launched the kernel to read; ``device_assert`` would end the whole program's use of the device.
"""

from dataclasses import dataclass, field

from kpt_dsl import ir
from kpt_dsl.emit.text import Writer
from kpt_dsl.emit.triton.abi import Place, Report
from kpt_dsl.emit.triton.axes import spread
from kpt_dsl.emit.triton.expressions import ATOM, LOOSE, Expressions
from kpt_dsl.passes import indices

HELPERS = {
    "is_inside": '''\
@triton.jit
def is_inside(index, extent, asked, place: tl.constexpr, report):
    """Whether an index is one of its dim. The first that is not, where it is asked for, is reported."""
    if ((index < 0) | (index >= extent)) & asked:
        word = (tl.cast(place, tl.int64) << 32) | (tl.cast(index, tl.int64) & 0xFFFFFFFF)
        tl.atomic_cas(report, tl.cast(0, tl.int64), word)
    return (index >= 0) & (index < extent)''',
    "are_inside": '''\
@triton.jit
def are_inside(index, extent, asked, place: tl.constexpr, report):
    """Which indices are of their dim. Of those that are not, where they are asked for, one is reported."""
    inside = (index >= 0) & (index < extent)
    shown = tl.minimum(tl.maximum(tl.cast(index, tl.int64), -2147483648), 2147483647)
    word = (tl.cast(place, tl.int64) << 32) | (shown & 0xFFFFFFFF)
    found = tl.max(tl.where(asked & (inside == 0), word, 0))
    if found != 0:
        tl.atomic_cas(report, tl.cast(0, tl.int64), found)
    return inside''',
}
"""What checks a number, and a tile of them."""


@dataclass
class Checks:
    """Writes the checks of one kernel, and numbers their places."""

    kernel: ir.Kernel
    expressions: Expressions
    report: str
    places: dict[tuple[str, str, ir.Loc], Place] = field(default_factory=dict)
    helpers: dict[str, str] = field(default_factory=dict)
    """The functions that are called, by name."""

    @classmethod
    def of(cls, kernel: ir.Kernel, expressions: Expressions) -> "Checks":
        return cls(kernel, expressions, expressions.axes.names.new("report"))

    def write(
        self, index: tuple[ir.Axis | ir.Expr, ...], when: str, apart: bool, out: Writer, loc: ir.Loc
    ) -> list[str]:
        """Write the checks of an index that is used where ``when`` holds (empty: always); the names of their outcomes.

        ``apart``: that is told of each element of a tile.
        """
        axes, outcomes, kept = self.expressions.axes, [], ir.kept(index)
        for position, entry in enumerate(index):
            if isinstance(entry, ir.Checked):
                name = axes.names.of(("inside", entry.tensor, position, out.depth), f"{entry.tensor}_inside")
                own = entry.type.shape
                text = self.expressions.text(entry.x, ATOM if own else LOOSE)
                given = [spread(text, own, kept) if own else text, axes.extent(entry.dim), when or "True", self._number(entry)]
                which = "are_inside" if apart or own else "is_inside"
                helper = axes.names.of(("check", which), which)
                self.helpers[helper] = HELPERS[which].replace(which, helper)
                out.call(f"{name} = {helper}(", [*given, self.report], loc)
                outcomes.append(name)
        return outcomes

    def _number(self, entry: ir.Checked) -> str:
        key = (entry.tensor, entry.dim, entry.loc)
        self.places.setdefault(key, Place(entry.dim, indices.place(self.kernel, entry)))
        return str(list(self.places).index(key) + 1)

    @property
    def argument(self) -> tuple[Report, ...]:
        """The kernel's last argument, where there is anything to report."""
        return (Report(self.report),) if self.places else ()

    @property
    def text(self) -> str:
        """What the module needs for it."""
        return "\n\n\n".join(self.helpers.values())
