"""Names that can stand side by side in a Pallas module: the author's, but where one would mean something else there.

The module makes names of its own of what it is given (``x_ref`` for a block of x, ``n_stop`` for where a loop ends), and
Python, JAX and helpers have theirs. So a kernel is given names for which all of these differ before any text is written.
"""

import builtins
import keyword
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

from kpt_dsl import ir
from kpt_dsl.dtypes import DType
from kpt_dsl.emit.pallas.helpers import HELPERS

Kind = Literal["dim", "argument", "kernel", "loop", "variable"]

_RESERVED = frozenset({
    "jax", "jnp", "lax", "pl", "pltpu", "step", "axes", "clear", "interpret", "part", "begin", "finish", "scalars", "_",
    *HELPERS, *keyword.kwlist, *dir(builtins),
})  # fmt: skip

_MADE: Mapping[Kind, tuple[str, ...]] = {
    "dim": ("block_{}",),
    "argument": ("{}_ref", "{}_kept_ref"),
    "kernel": ("{}_kernel",),
    "loop": (
        "{}_start", "{}_stop", "{}_bounds", "{}_clear_start", "{}_clear_stop", "{}_valid_row", "{}_valid_column", "visit_{}",
        "interior_{}", "edge_{}",
    ),
    "variable": ("{}_scratch",),
}  # fmt: skip
"""What the text makes of each kind of name, beside the name itself."""

_NUMBERED: Mapping[Kind, str] = {"argument": "{}_{}_ref", "variable": "{}{}"}
"""And where there are several: the blocks of one tensor, the values of one variable; counted from two."""

_OWNERS: dict[type, Kind] = {
    ir.Var: "variable", ir.Assign: "variable", ir.Param: "argument", ir.Tensor: "argument", ir.Scalar: "argument",
    ir.Tile: "loop", ir.Each: "loop", ir.Index: "loop", ir.Kernel: "kernel",
}  # fmt: skip
"""What the ``name`` of a node is the name of."""

_FIELDS: Mapping[str, Kind] = {"dim": "dim", "dims": "dim", "tile": "loop", "tensor": "argument", "carried": "variable"}
"""What other fields hold names of."""


@dataclass(frozen=True)
class Renamed:
    """A kernel under names that go together, and these names: kind and the author's name -> the one in the text."""

    kernel: ir.Kernel
    names: Mapping[tuple[Kind, str], str]

    def dims(self, by_dim: Mapping[str, int]) -> dict[str, int]:
        """Numbers by dim, under the names that dims have in the text."""
        return {self.names.get(("dim", dim), dim): n for dim, n in by_dim.items()}

    @property
    def arguments(self) -> dict[str, str]:
        """The name of each argument in the text -> the author's."""
        return {new: name for (kind, name), new in self.names.items() if kind == "argument"}


def renamed(kernel: ir.Kernel) -> Renamed:
    """``kernel`` with names that mean one thing each in a Pallas module."""
    taken: set[str] = set(_RESERVED)
    names: dict[tuple[Kind, str], str] = {}
    counts = _counts(kernel)
    for kind, name in counts:
        new, count = name, counts[kind, name]
        while not taken.isdisjoint(_made(kind, new, count)):
            new += "_"
        taken.update(_made(kind, new, count))
        names[kind, name] = new
    return Renamed(_rebuilt(kernel, names), names)


def _counts(kernel: ir.Kernel) -> Counter[tuple[Kind, str]]:
    """Every name of a kernel, those first that keep theirs: how often a tensor is loaded, how often a variable assigned."""
    found: Counter[tuple[Kind, str]] = Counter()
    found.update(("dim", d) for t in kernel.tensors for d in t.dims)
    found.update(("argument", t.name) for t in kernel.tensors)
    found.update(("argument", s.name) for s in kernel.scalars)
    found["kernel", kernel.name] += 1
    found.update(("loop", g.name) for g in kernel.grid)
    for stmt in ir.statements(kernel.body):
        if isinstance(stmt, ir.For):
            found["loop", stmt.over.name] += 1
        elif isinstance(stmt, ir.Assign):
            found["variable", stmt.name] += 1
    found.update(("argument", e.tensor) for e in ir.every_expr(kernel.body) if isinstance(e, ir.Read))
    return found


def _made(kind: Kind, name: str, count: int) -> Iterator[str]:
    """A name and what the text makes of it."""
    yield name
    yield from (pattern.format(name) for pattern in _MADE[kind])
    if kind in _NUMBERED:
        yield from (_NUMBERED[kind].format(name, i) for i in range(2, count + 1))


def _rebuilt(node: Any, names: Mapping[tuple[Kind, str], str]) -> Any:
    """A node with all the names in it changed."""
    if isinstance(node, tuple):
        return tuple(_rebuilt(x, names) for x in node)
    if not is_dataclass(node) or isinstance(node, type | ir.Loc | DType):
        return node
    changed: dict[str, Any] = {}
    for f in fields(node):
        value = getattr(node, f.name)
        kind = _OWNERS.get(type(node)) if f.name == "name" else _FIELDS.get(f.name)
        if isinstance(value, str) and kind is not None:
            changed[f.name] = names.get((kind, value), value)
        elif isinstance(value, tuple) and kind is not None:
            changed[f.name] = tuple(names.get((kind, x), x) for x in value)
        else:
            changed[f.name] = _rebuilt(value, names)
    if isinstance(node, ir.Tile):
        changed["block"] = f"block_{changed['dim']}"
    return replace(node, **changed)
