"""Kernels in programs that XLA partitions: each device runs them on its part, where the op's ``shardings`` say how.

Within ``jax.shard_map`` arrays are parts already, and with one device there is nothing to partition.
"""

from collections.abc import Hashable, Sequence
from functools import lru_cache, partial
from itertools import count
from typing import Any, NamedTuple

import jax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding

from kpt.jax import kernels
from kpt.jax.interpreter import Serve
from kpt.jax.memory import tensor_like
from kpt.jax.static import Static, split
from kpt.ops.choice import Holding, preferred
from kpt.ops.registry import SUM, Op, Sharding
from kpt_dsl.configs import generation


def partitioned(serve: Serve, op: Op, *arguments: Any) -> Any:
    """The op by its kernels, on each device for its part of the arrays."""
    if jax.device_count() == 1 or jax.sharding.get_abstract_mesh().manual_axes:
        return kernels.run(serve, op, arguments)
    arrays, static = split(arguments)
    types = tuple([(a.shape, a.dtype) for a in arrays])
    return _program(serve, op, static, types, preferred(), generation())(*arrays)


@lru_cache(maxsize=512)
def _program(
    serve: Serve, op: Op, static: Static, types: tuple[Any, ...], preference: str | None, _: Hashable
) -> Any:
    """A function of the arrays alone, of these types; the last says of which configs."""

    def whole(*arrays: Any) -> Any:
        with Holding(preference):
            return kernels.run(serve, op, static.filled(arrays))

    example = [jax.ShapeDtypeStruct(*known) for known in types]
    outputs = jax.tree.leaves(jax.eval_shape(whole, *example))
    rule = _Rule.of(op, static, example, outputs)
    by_parts = custom_partitioning(whole)
    by_parts.def_partition(
        partial(_partition, whole, rule),
        sharding_rule=rule.text,
        need_replication_factors=rule.whole,
        reduction_factors=tuple([way.name for way in rule.ways if way.is_reduction]),
    )
    batched = custom_vmap(by_parts)

    def of_batches(_: int, axes: Sequence[bool], *arrays: Any) -> tuple[Any, Any]:
        found = jax.vmap(whole, [0 if axis else None for axis in axes])(*arrays)
        return found, jax.tree.map(lambda _: True, found)

    batched.def_vmap(of_batches)
    return jax.jit(batched)


class _Way(NamedTuple):
    """One way to deal arrays out: by which dim of each, None where it is whole to all."""

    name: str
    inputs: Sequence[int | None]
    outputs: Sequence[int | None]
    sums: Sequence[bool]

    @property
    def is_reduction(self) -> bool:
        """Whether no output is dealt out."""
        return any(self.sums) and all(dim is None for dim in self.outputs)


class _Rule(NamedTuple):
    """The ways of a call, and how they are written for XLA's partitioner (Shardy): a name for each dim of each array, the same
    for those that a way deals out together. ``whole``: names of dims that no way deals out."""

    ways: Sequence[_Way]
    text: str
    whole: tuple[str, ...]

    @staticmethod
    def of(op: Op, static: Static, inputs: Sequence[Any], outputs: Sequence[Any]) -> "_Rule":
        """From the op's shardings."""
        given = static.filled([tensor_like(a) for a in inputs])
        ways = []
        for n, sharding in enumerate(op.shardings(jax.device_count(), *given)):
            way = _way(f"i{n}", sharding, static, len(inputs), len(outputs))
            dealt = (*zip(inputs, way.inputs, strict=True), *zip(outputs, way.outputs, strict=True))
            if len({array.shape[dim] for array, dim in dealt if dim is not None}) == 1:
                ways.append(way)
        fresh, whole = count(), []

        def named(array: Any, dims: Sequence[int | None]) -> str:
            names = []
            for axis in range(len(array.shape)):
                name = next((way.name for way, dim in zip(ways, dims, strict=True) if dim == axis), None)
                if name is None:
                    name = f"j{next(fresh)}"
                    whole.append(name)
                names.append(name)
            return " ".join(names)

        left = [named(a, [way.inputs[n] for way in ways]) for n, a in enumerate(inputs)]
        right = [named(a, [way.outputs[n] for way in ways]) for n, a in enumerate(outputs)]
        return _Rule(ways, f"{', '.join(left)} -> {', '.join(right)}", tuple(whole))


def _way(name: str, sharding: Sharding, static: Static, inputs: int, outputs: int) -> _Way:
    placed: list[int | None] = [None] * inputs
    for position, place in enumerate(sharding.inputs):
        number = static.number(position)
        if number is not None and isinstance(place, int):
            placed[number] = place
    given = sharding.outputs[:outputs]
    return _Way(name, placed, [p if isinstance(p, int) else None for p in given], [p == SUM for p in given])


def _partition(whole: Any, rule: _Rule, mesh: Any, inputs: Sequence[Any], outputs: Any) -> Any:
    """What each device runs, and how arrays lie."""
    leaves, tree = jax.tree.flatten(outputs)
    by_way = [_axes(way, inputs, leaves) for way in rule.ways]

    def sharding(array: Any, dims: Sequence[int | None]) -> NamedSharding:
        spec: list[Any] = [None] * len(array.shape)
        for axes, dim in zip(by_way, dims, strict=True):
            if dim is not None:
                spec[dim] = axes
        return NamedSharding(mesh, jax.P(*spec))

    def part(*arrays: Any) -> Any:
        found = jax.tree.leaves(whole(*arrays))
        for axes, way in zip(by_way, rule.ways, strict=True):
            if axes:
                found = [jax.lax.psum(f, axes) if is_sum else f for f, is_sum in zip(found, way.sums, strict=True)]
        return jax.tree.unflatten(tree, found)

    placed = [sharding(a, [way.inputs[n] for way in rule.ways]) for n, a in enumerate(inputs)]
    made = [sharding(a, [way.outputs[n] for way in rule.ways]) for n, a in enumerate(leaves)]
    return mesh, part, jax.tree.unflatten(tree, made), tuple(placed)


def _axes(way: _Way, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """The mesh's axes over which a way is dealt out: as the first array lies that has them."""
    for array, dim in (*zip(inputs, way.inputs, strict=True), *zip(outputs, way.outputs, strict=True)):
        spec = array.sharding.spec
        if dim is not None and dim < len(spec) and spec[dim]:
            return spec[dim]
    return None
