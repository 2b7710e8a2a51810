"""What a generated Triton module is specialised on: lanes of each axis, which axes are padded, what is known of each argument.

Extents come no further than here, and none is among the facts but those of whole dims: instances with equal facts share source
and binary. Of the extents that vary within a class it is told whether all are level with the tiles of the grid, and with those
of loops, or any may be ragged.
"""

from collections.abc import Container, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

from kpt_dsl import ir
from kpt_dsl.buckets import fixed_dims
from kpt_dsl.dtypes import bool_
from kpt_dsl.errors import ConfigError, InputError
from kpt_dsl.passes.bounds import settle
from kpt_dsl.passes.level import level_loops
from kpt_dsl.same import remembered

if TYPE_CHECKING:
    from kpt_dsl.extents import Extents
    from kpt_dsl.space import Config

INT32_MAX = 2**31 - 1

WARP_SPECIALISED = "warp_specialised"
"""The schedule of a config that shares a loop out among a producer and consumers; others leave the schedule to Triton."""

DIVISOR = 16
"""Triton's compiler tells multiples of 16 apart: bytes of an address, values of a stride or an extent."""

MIN_DOT = 16
"""Least extent of a dot's axis; products of 8-bit operands need twice that along k."""

TMA_BYTES = 16
"""Granularity of addresses and strides in a tensor map (CUDA driver API, cuTensorMapEncodeTiled)."""

TMA_RANK = 5
"""Most dims of a tensor map."""

TMA_ROWS = 256
"""Most rows that one copy moves."""


@dataclass(frozen=True, slots=True)
class StrideFacts:
    """Of one dim of a tensor: strides of one (``unit``) and ``zero`` are left out, ``wide`` ones do not fit in 32 bits.

    ``far``: even the lanes of one tile lie further apart than 32 bits can count.
    """

    unit: bool
    zero: bool
    wide: bool
    far: bool
    divisible: bool


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """``large``: offsets into it need 64 bits. ``describable``: tensor descriptors can move its tiles."""

    large: bool
    aligned: bool
    ranged: bool
    describable: bool
    strides: tuple[StrideFacts, ...]


@dataclass(frozen=True, eq=False)
class Facts:
    """All that the text of a module depends on, beside the kernel's IR."""

    lanes: Mapping[ir.Axis, int]
    ragged: frozenset[ir.Axis]
    level: frozenset[ir.Axis]
    """Of loops with bounds of their own that visit whole tiles only."""
    baked: Mapping[str, int]
    divisible: frozenset[str]
    tensors: Mapping[str, TensorFacts]

    @cached_property
    def _all(self) -> Hashable:
        known = (tuple(m.items()) for m in (self.lanes, self.baked, self.tensors))
        return self.ragged, self.level, self.divisible, *known

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Facts) and self._all == other._all

    def __hash__(self) -> int:
        return hash(self._all)

    def padded(self, axis: ir.Axis) -> bool:
        """Whether tiles can have lanes beyond the dim's end."""
        return axis in self.ragged


@remembered(1024)
def tiles(kernel: ir.Kernel) -> dict[str, ir.Tile]:
    """Every tile variable of a kernel by name."""
    return {t.name: t for t in ir.tiles(kernel)}


@remembered(1024)
def whole_axes(kernel: ir.Kernel) -> tuple[ir.Axis, ...]:
    """The axes that span a whole dim, in order of first use."""
    found: dict[ir.Axis, None] = {}
    for stmt in ir.statements(kernel.body):
        tops = ir.expressions(stmt)
        shapes = [e.type.shape for top in tops for e in ir.walk(top)]
        if isinstance(stmt, ir.Store):
            shapes.append(tuple(i for i in stmt.index if isinstance(i, ir.Axis)))
        found |= dict.fromkeys(a for shape in shapes for a in shape if a.tile is None and a != ir.UNIT)
    return tuple(found)


@remembered(1024)
def _dot_minima(kernel: ir.Kernel) -> dict[ir.Axis, int]:
    """Least lanes of the axes that products use."""
    minima: dict[ir.Axis, int] = {}
    for e in ir.every_expr(kernel.body):
        if isinstance(e, ir.Dot):
            k = MIN_DOT * 2 if e.a.type.dtype.bits == 8 else MIN_DOT
            for axis, least in ((e.a.type.shape[0], MIN_DOT), (e.a.type.shape[1], k), (e.b.type.shape[1], MIN_DOT)):
                minima[axis] = max(least, minima.get(axis, 1))
    return minima


@remembered(1024)
def row_tile(kernel: ir.Kernel) -> ir.Tile | None:
    """The tile of the grid whose rows consumers share out: that of the last product."""
    dots = [e for e in ir.every_expr(kernel.body) if isinstance(e, ir.Dot)]
    rows = dots[-1].type.shape[0] if dots else None
    return next((g for g in kernel.grid if isinstance(g, ir.Tile) and g.axis == rows), None)


def facts(kernel: ir.Kernel, extents: "Extents", config: "Config") -> Facts:
    """The facts of a kernel, as it was lowered, at extents under a config.

    Raises ConfigError where a block is missing, is no power of two, or is too small for a product; InputError for a dim that
    32 bits cannot count.
    """
    fixed, kernel, dims = fixed_dims(kernel), settle(kernel), dict(extents.dims)
    if long := {dim: n for dim, n in dims.items() if n > INT32_MAX}:
        raise InputError(f"{kernel.name}: dims {long} are too long; Triton kernels count to {INT32_MAX} along a dim")
    minima = _dot_minima(kernel)
    lanes: dict[ir.Axis, int] = {ir.UNIT: 1}
    for tile in tiles(kernel).values():
        block = config.get(tile.block)
        least = minima.get(tile.axis, 1)
        if not isinstance(block, int) or block < least or block & (block - 1):
            raise ConfigError(
                f"{kernel.name}: {tile.block} is {block!r}; it must be a power of two"
                + (f" of at least {least}, for a product uses it" if least > 1 else "")
            )
        lanes[tile.axis] = block
    baked = {axis.dim: dims[axis.dim] for axis in whole_axes(kernel)}
    for axis in whole_axes(kernel):
        lanes[axis] = max(1 << (dims[axis.dim] - 1).bit_length(), minima.get(axis, 1))
    unit = {a: n for a, n in lanes.items() if a != ir.UNIT}
    if config.get("schedule") == WARP_SPECIALISED and (row := row_tile(kernel)) is not None:
        unit[row.axis] *= int(config["consumers"])
    grouped = ir.groups(kernel)
    ragged = frozenset(a for a, n in unit.items() if dims[a.dim] % n or dims[a.dim] == 0 or a.tile in grouped)
    varying = {a for a in unit if a.tile is not None and a.dim not in fixed}
    along_grid = {loop.axis for loop in kernel.grid if isinstance(loop, ir.Tile)}
    # A dim that is neither tiled nor stepped over, as of the shares of a sum, only counts: what divides it is told in vain.
    addressed = {a.dim for a in unit}.union(*(t.dims[1:] for t in kernel.tensors))
    told = {d for d in fixed & addressed if dims.get(d, 1) % DIVISOR == 0}
    for group in (varying & along_grid, varying - along_grid):
        if not group.isdisjoint(ragged) or (minima and varying <= along_grid):
            # Rows of products cost the same with and without masks where no loop visits them (H200: 0.1 to 0.5% of linear and
            # FP8 products of 32 to 8192 rows), which spares those kernels every other binary.
            ragged |= group
        else:  # and what follows from that, whatever else divides an extent: without, attention's dk and dv took 7% longer
            told |= {a.dim for a in group if unit[a] % DIVISOR == 0}
    blocks = {tile.name: lanes[tile.axis] for tile in tiles(kernel).values()}
    return Facts(
        lanes,
        ragged,
        level_loops(kernel, dims, blocks) if ragged.isdisjoint(varying - along_grid) else frozenset(),
        baked,
        frozenset(told),
        {t.name: _tensor_facts(t, extents, lanes, fixed | told) for t in kernel.tensors},
    )


def _tensor_facts(
    tensor: ir.Tensor, extents: "Extents", lanes: Mapping[ir.Axis, int], known: frozenset[str]
) -> TensorFacts:
    shape = extents.shape(tensor.dims)
    strides = effective_strides(shape, extents.stride(tensor.name))
    most = {dim: max((n for a, n in lanes.items() if a.dim == dim), default=1) for dim in tensor.dims}
    reach = sum((extent + most[dim]) * abs(s) for dim, extent, s in zip(tensor.dims, shape, strides, strict=True))
    size = tensor.dtype.bytes
    last = len(strides) - 1
    return TensorFacts(
        large=reach > INT32_MAX,
        aligned=tensor.name in extents.aligned,
        ranged=reach * size <= INT32_MAX,
        describable=describable(tensor, extents),
        strides=tuple(
            StrideFacts(
                unit=i == last and s == 1,
                zero=s == 0,
                wide=abs(s) > INT32_MAX,
                far=most[dim] * abs(s) > INT32_MAX,
                divisible=s // _varying_part(s, tensor.dims, shape, strides, known) % DIVISOR == 0,
            )
            for i, (dim, s) in enumerate(zip(tensor.dims, strides, strict=True))
        ),
    )


def _varying_part(
    stride: int, dims: Sequence[str], extents: Sequence[int], strides: Sequence[int], known: frozenset[str]
) -> int:
    """Of a stride over all of smaller axes, the extents of which it is not ``known`` what divides them: it is chance."""
    inner = prod(n for dim, n, s in zip(dims, extents, strides, strict=True) if dim not in known and s < stride)
    return inner if inner and stride % inner == 0 else 1


def describable(tensor: ir.Tensor, extents: "Extents", repeated: Container[str] = ()) -> bool:
    """Whether a tensor descriptor can hold a tensor: aligned, with a unit last stride and aligned strides before it, and of
    elements that one has a type for, which conditions are not. It may be the same all along a ``repeated`` dim."""
    shape, size = extents.shape(tensor.dims), tensor.dtype.bytes
    strides = effective_strides(shape, extents.stride(tensor.name))
    if tensor.dtype == bool_ or tensor.name not in extents.aligned or len(strides) > TMA_RANK:
        return False
    steps = [(s, dim in repeated) for s, dim in zip(strides, tensor.dims, strict=True)]
    described = strides[-1] == 1 and all((s > 0 or (s == 0 and may)) and s * size % TMA_BYTES == 0 for s, may in steps[:-1])
    return described and 0 not in shape


def effective_strides(shape: Sequence[int], given: Sequence[int]) -> tuple[int, ...]:
    """A tensor's strides, with those of dims of one element made regular: they are never stepped along, whatever a library says
    of them."""
    strides, step = list(given), 1
    for i in reversed(range(len(strides))):
        if shape[i] == 1:
            strides[i] = step
        step = max(step, strides[i] * shape[i])
    return tuple(strides)
