"""Generated functions as one primitive of JAX: what traces, maps and checks a program sees an operation, not what is in it.

Under ``jax.vmap`` it is Pallas's batched kernel; within ``jax.shard_map`` its outputs vary over the axes that any input varies
over. It has no derivative: who calls it gives one (``jax.custom_vjp``).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from kpt_dsl.errors import InputError


class Output(NamedTuple):
    """What a generated function gives at one place."""

    shape: tuple[int, ...]
    dtype: str


def launch(function: Callable[..., Any], outputs: Sequence[Output], *arguments: Any) -> tuple[Any, ...]:
    """Run a generated function, of arrays and numbers, that is the same object for equal texts. Gives its outputs."""
    found: list[Any] = _launch.bind(*map(jax.numpy.asarray, arguments), function=function, outputs=tuple(outputs))
    return tuple(found)


def alike(arrays: Sequence[Any], *others: Any) -> list[Any]:
    """Arrays that vary over the axes of a mesh over which any of the others does, within ``jax.shard_map``: what is one for all
    of an axis gets the sum of their gradients."""
    axes = frozenset[Any]().union(*[jax.typeof(other).manual_axis_type.varying for other in others])
    missing = [tuple(axes - jax.typeof(array).manual_axis_type.varying) for array in arrays]
    return [jax.lax.pcast(a, m, to="varying") if m else a for a, m in zip(arrays, missing, strict=True)]


_launch = Primitive("kpt_launch")
_launch.multiple_results = True


def _types(*arguments: Any, function: Any, outputs: tuple[Output, ...]) -> list[Any]:
    varying = frozenset[Any]().union(*[a.manual_axis_type.varying for a in arguments])
    axes, mesh = jax.sharding.ManualAxisType(varying=varying), jax.sharding.get_abstract_mesh()
    placed = [jax.sharding.NamedSharding(mesh, jax.P(*[None] * len(output.shape))) for output in outputs]
    return [jax.core.ShapedArray(*o, sharding=p, manual_axis_type=axes) for o, p in zip(outputs, placed, strict=True)]


def _run(*arguments: Any, function: Any, outputs: tuple[Output, ...]) -> list[Any]:
    return list(_compiled(function)(*arguments))


@lru_cache(maxsize=256)
def _compiled(function: Any) -> Any:
    return jax.jit(lambda *arguments: _listed(function, arguments))


def _listed(function: Any, arguments: Sequence[Any]) -> list[Any]:
    found = function(*arguments)
    return list(found) if isinstance(found, (tuple, list)) else [found]


def _lower(context: Any, *arguments: Any, function: Any, outputs: tuple[Output, ...]) -> Any:
    """What is inside knows of no mesh: the steps of an interpreted kernel are not written for ``jax.shard_map``'s checks."""
    given, inside = (
        [jax.core.ShapedArray(a.shape, a.dtype) for a in types] for types in (context.avals_in, context.avals_out)
    )
    context = context.replace(avals_in=given, avals_out=inside)
    return mlir.lower_fun(lambda *arrays: _listed(function, arrays))(context, *arguments)


@lru_cache(maxsize=256)
def _mapped(function: Any, axes: tuple[int | None, ...]) -> Any:
    return jax.vmap(function, axes)


def _batched(arguments: Sequence[Any], axes: Sequence[int | None], *, function: Any, outputs: tuple[Output, ...]) -> Any:
    size = next(a.shape[axis] for a, axis in zip(arguments, axes, strict=True) if axis is not None)
    rows = tuple(Output((size, *output.shape), output.dtype) for output in outputs)
    if size == 0:  # no grid of Pallas has that many programs
        return [jax.numpy.zeros(*row) for row in rows], [0] * len(rows)
    found = _launch.bind(*arguments, function=_mapped(function, tuple(axes)), outputs=rows)
    return found, [0] * len(found)


def _refuse(*_: Any, function: Any, outputs: Any) -> NoReturn:
    raise InputError(
        "a generated kernel has no derivative of its own, and what gives its gradient cannot be differentiated again: let "
        'XLA\'s operations serve (kpt.ops.prefer("reference")), or give the kernel a gradient (kernel.gradient)'
    )


_launch.def_abstract_eval(_types)
_launch.def_impl(_run)
mlir.register_lowering(_launch, _lower)
batching.primitive_batchers[_launch] = _batched
ad.primitive_jvps[_launch] = _refuse
