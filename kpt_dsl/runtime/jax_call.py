"""Calls of kernels as functions of JAX arrays, which give their outputs: ``Kernel.jax``."""

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kpt_dsl import runtime
from kpt_dsl.arrays import library, why_unfit
from kpt_dsl.dtypes import dtype
from kpt_dsl.errors import InputError
from kpt_dsl.runtime.made import only_or_all, with_dtypes, without_extent
from kpt_dsl.runtime.pallas import jax_dtype, jax_package, known_shape

if TYPE_CHECKING:
    from kpt_dsl.definition import Definition


def outputs(kernel: "Definition", args: tuple[Any, ...], named: Mapping[str, Any], config: Any) -> Any:
    """Run a kernel and give its outputs, new arrays; JAX differentiates the call where the kernel has a gradient."""
    arguments = with_dtypes(kernel, args, dict(named), "jax", _is_dtype, partial(_dtype, kernel))
    if kernel.backward is None:
        return only_or_all(_run(kernel, arguments, config).values())
    return only_or_all(_followed(kernel, arguments, config).values())


def _is_dtype(value: Any) -> bool:
    return isinstance(value, (np.dtype, type, str))


def _known(value: Any) -> Any:
    """JAX's dtype. Raises InputError for one that kernels cannot hold."""
    with suppress(TypeError):
        value = np.dtype(value)
    return jax_dtype(dtype(value).name)


def _dtype(kernel: "Definition", arguments: Mapping[str, Any]) -> Any:
    """That of the first input of floating point, or of any type where there is none."""
    given = [arguments[name] for name, role in kernel.roles.items() if role == "in"]
    arrays = [array for array in given if library(array) == "jax"]
    if not arrays:
        raise InputError(f"{kernel.name}.jax: no input is a JAX array, so that nothing says how outputs are made")
    inexact = jax_package().numpy.inexact
    return next((a.dtype for a in arrays if jax_package().dtypes.issubdtype(a.dtype, inexact)), arrays[0].dtype)


def _run(kernel: "Definition", arguments: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """The outputs by name."""
    jax = jax_package()
    wanted = {name: arguments[name] for name in kernel.outputs if arguments[name] is not None}
    inputs = {name: arguments[name] for name, role in kernel.roles.items() if role == "in" and arguments[name] is not None}
    for name, array in inputs.items():
        if trouble := why_unfit(name, array, kernel.tensors[name], written=False):
            raise InputError(f"{kernel.name}: {name} {trouble}")
    sizes = {d: n for name, a in inputs.items() for d, n in zip(kernel.tensors[name], known_shape(a), strict=True)}
    made = {}
    for name, known in wanted.items():
        if unknown := [dim for dim in kernel.tensors[name] if dim not in sizes]:
            raise without_extent(kernel, name, unknown[0])
        made[name] = jax.ShapeDtypeStruct([sizes[dim] for dim in kernel.tensors[name]], _known(known))
    found = runtime.call(kernel, {**arguments, **made}, config, "pallas") or {}
    return {name: found[name] for name in wanted}


def _followed(kernel: "Definition", arguments: dict[str, Any], config: Any) -> dict[str, Any]:
    """The outputs by name, with the gradient that the kernel's author gave."""
    from kpt_dsl.runtime.jax_primitive import alike

    jax, gradient = jax_package(), kernel.backward
    arrays = {name: arguments[name] for name, role in kernel.roles.items() if role == "in" and arguments[name] is not None}

    def whole(inputs: dict[str, Any]) -> dict[str, Any]:
        return _run(kernel, {**arguments, **inputs}, config)

    def forward(inputs: dict[str, Any]) -> Any:
        made = whole(inputs)
        return made, (inputs, made)

    def backward(saved: Any, arriving: dict[str, Any]) -> Any:
        inputs, made = saved
        values = {**arguments, **inputs, **made}
        inexact = {n: a.dtype for n, a in inputs.items() if jax.dtypes.issubdtype(a.dtype, jax.numpy.inexact)}
        dtypes = {name: inexact[name] for name in gradient.gives if name in inexact}
        found = gradient.run({n: values[n] for n in gradient.saves}, arriving, dtypes, by_kernel)
        return ({name: _like(found.get(name), array) for name, array in inputs.items()},)

    def by_kernel(other: "Definition", given: dict[str, Any], dtypes: dict[str, Any]) -> Any:
        return outputs(other, (), {**given, **dtypes}, None)

    def _like(found: Any, array: Any) -> Any:
        return None if found is None else alike([found.astype(array.dtype)], array)[0]

    function = jax.custom_vjp(whole)
    function.defvjp(forward, backward)
    together = alike([*arrays.values()], *arrays.values())
    found = function(dict(zip(arrays, together, strict=True)))
    return {name: found[name] for name in kernel.outputs if name in found}  # JAX sorts the keys of a dict
