"""From a kernel's tile IR to a Pallas module for TPUs: a function that takes JAX arrays and returns the outputs.

Parallel loops are the leading axes of the grid, sequential loops its last; Pallas's own pipeline fetches blocks a step ahead.
Float16, which TPUs do not have, crosses the kernel's boundary as float32: slower, but a result is rounded once, as elsewhere.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kpt_dsl import arithmetic, ir
from kpt_dsl.dtypes import i32, i64
from kpt_dsl.emit import Source
from kpt_dsl.emit.pallas.counts import flops, moved_bytes, programs
from kpt_dsl.emit.pallas.helpers import HELPERS
from kpt_dsl.emit.pallas.host import host
from kpt_dsl.emit.pallas.kernel import KernelText, words
from kpt_dsl.emit.pallas.names import renamed
from kpt_dsl.emit.pallas.plan import plan, settled, unrollable, unrolled
from kpt_dsl.errors import ConfigError, TargetError
from kpt_dsl.passes.halves import apart
from kpt_dsl.passes.padding import guard, whole

if TYPE_CHECKING:
    from kpt_dsl.extents import Extents
    from kpt_dsl.space import Config
    from kpt_dsl.targets import Target

_IMPORTS = """\
import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu"""


@dataclass(frozen=True)
class Array:
    """An argument or a result of a generated function."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Abi:
    """How a generated function is called: ``function(*inputs, *scalars)`` gives the outputs, a tuple where there are several.
    Last among the inputs are what the outputs hold of which only a part is stored.

    For estimates: ``steps`` is how often the kernel's body runs, ``visits`` how often each part of it that runs under a
    condition, in order; ``moved_bytes`` what the pipeline copies between HBM and VMEM; ``flops`` those of products, by dtype.
    """

    inputs: tuple[Array, ...]
    scalars: tuple[Array, ...]
    outputs: tuple[Array, ...]
    steps: int
    visits: tuple[int, ...]
    moved_bytes: int
    flops: tuple[tuple[str, float], ...]


Dims = tuple[tuple[str, int], ...]
"""Dim -> extent."""


def facts(kernel: ir.Kernel, extents: "Extents", config: "Config") -> Dims:
    """How long dims are: blocks may be as long as they are (``Target.exact_blocks``), and a grid follows from both."""
    return extents.dims


def emit(kernel: ir.Kernel, known: Dims, target: "Target", config: "Config") -> Source:
    """The Pallas source of a kernel for a TPU target, at one shape.

    Raises ConfigError for block sizes that no TPU takes, TargetError for a loop inside a loop, for tiles of groups, for indices
    and bounds that depend on what a loop computes, and for int64 numbers that 32 bits might not hold.
    """
    dims: Mapping[str, int] = dict(known)
    for node in ir.every_expr(kernel.body):
        _check_width(kernel.name, node)
    for name, groups in ir.groups(kernel).items():
        raise TargetError(
            f"{kernel.name}: tiles {name} begin where {groups.tensor} says, but blocks of a TPU at multiples of their size. One"
            f" group after the other: kd.sequential(kd.tile(…), start={groups.tensor}[b], stop={groups.tensor}[b + 1])"
        )
    if empty := [d for t in kernel.tensors for d in t.dims if not dims[d]]:
        raise ConfigError(f"{kernel.name}: dim {empty[0]} is empty; a Pallas kernel needs an element of each dim")
    named = renamed(apart(kernel))
    lanes = named.dims({t.dim: min(_block(t, config), dims[t.dim]) for t in ir.tiles(kernel)})
    unroll = _unroll(kernel, config, dims)
    kernel, dims = named.kernel, named.dims(dims)

    def single(loop: ir.For) -> bool:
        return isinstance(loop.over, ir.Tile) and whole(loop) and lanes[loop.tile.dim] == dims[loop.tile.dim]

    def padded(axis: ir.Axis) -> bool:
        return axis.tile is not None and dims[axis.dim] % lanes[axis.dim] != 0

    tiles = {t.name: t for t in ir.tiles(kernel)}
    kernel = guard(replace(kernel, body=unrolled(settled(kernel.body, dims), single)), padded)
    made = KernelText(plan(kernel, dims, lanes, tiles, unroll), target.dtypes)
    return Source("pallas", kernel.name, _module(made, target.vmem_bytes), _abi(made, named.arguments))


def _block(tile: ir.Tile, config: Mapping[str, Any]) -> int:
    size = config.get(tile.block)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ConfigError(f"{tile.block} is {size!r}; it must be a positive integer, the length of tiles of {tile.dim}")
    return size


def _unroll(kernel: ir.Kernel, config: Mapping[str, Any], dims: Mapping[str, int]) -> int:
    """How many tiles of its only loop a step goes through."""
    loop = unrollable(kernel)
    knob = f"unroll_{loop.tile.dim}" if loop else ""
    if loop is None or knob not in config:
        return 1
    several, tiles = config[knob], -(-dims[loop.tile.dim] // _block(loop.tile, config))
    if type(several) is not int or several < 1 or tiles % several:
        raise ConfigError(f"{knob} is {several!r}; it must divide the {tiles} tiles of {loop.tile.dim}")
    return several


def _check_width(name: str, node: ir.Expr) -> None:
    """Raises TargetError for an int64 that may be more than the int32 that a TPU computes with. What is loaded, chosen or made
    of an int32 is not: tensors are checked when they are handed over."""
    if node.type.dtype != i64:
        return
    match node:
        case ir.Const(value=value):
            fits = arithmetic.converted(value, i32) == value
        case ir.Cast(x=x):
            fits = not x.type.dtype.is_float
        case ir.Binary(op=op) | ir.Reduce(op=op):
            fits = op in ("max", "min", "mod")
        case _:
            fits = not isinstance(node, ir.Unary)
    if not fits:
        what = node.loc.text.strip() or str(node.type)
        raise TargetError(
            f"{name} computes with int64 (line {node.loc.line}: {what}); a TPU has integers of 32 bits: convert what is loaded "
            f"with .to(kd.i32) first, which wraps, or pass int32 tensors"
        )


def _module(made: KernelText, vmem_bytes: int) -> str:
    code = "\n\n\n".join([*made.bounds, made.function, host(made, vmem_bytes)])
    helpers = [text for name, text in HELPERS.items() if re.search(rf"\b{name}\(", code)]
    used = words(code)
    constants = [f"{dim} = {extent}" for dim, extent in made.plan.dims.items() if dim in used]
    constants += [f"block_{dim} = {lanes}" for dim, lanes in made.plan.lanes.items() if f"block_{dim}" in used]
    title = f'"""{made.kernel.name} for TPUs, at one shape: a function of JAX arrays."""'
    head = "\n\n".join([title, _IMPORTS, "\n".join(constants)])
    return "\n\n\n".join([head, *helpers, code]) + "\n"


def _abi(made: KernelText, authors: Mapping[str, str]) -> Abi:
    """``authors``: the author's name of each argument."""
    kernel, plan = made.kernel, made.plan
    arrays = {t: Array(authors[t.name], tuple(plan.dims[d] for d in t.dims), t.dtype.name) for t in kernel.tensors}
    return Abi(
        inputs=(
            *(a for t, a in arrays.items() if t.role == "in"),
            *(arrays[block.tensor] for block in made.blocks.kept),
        ),
        scalars=tuple(Array(authors[s.name], (), s.dtype.name) for s in kernel.scalars),
        outputs=tuple(a for t, a in arrays.items() if t.role == "out"),
        steps=programs(plan) * max(1, plan.steps),
        visits=tuple(made.visits),
        moved_bytes=moved_bytes(plan, made.blocks),
        flops=flops(plan),
    )
