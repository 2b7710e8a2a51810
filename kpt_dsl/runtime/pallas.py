"""Running generated Pallas source: on the TPU that holds the arrays, elsewhere in Pallas's interpret mode.

JAX arrays cannot be written in place, so for them the outputs are returned. Tensors of torch (on the CPU) and NumPy arrays are
handed to JAX and their outputs copied back; what is done with tensors of PyTorch/XLA is in ``xla``.
"""

import linecache
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import lru_cache, partial, wraps
from inspect import signature
from typing import TYPE_CHECKING, Any

from kpt_dsl import targets
from kpt_dsl.arithmetic import converted
from kpt_dsl.arrays import library
from kpt_dsl.dtypes import dtype, i32, i64
from kpt_dsl.emit import Source, emit
from kpt_dsl.errors import InputError, MissingPackageError, TargetError
from kpt_dsl.runtime import xla
from kpt_dsl.runtime.memory import refuse_shared_outputs
from kpt_dsl.runtime.numpy import as_numpy

if TYPE_CHECKING:
    from kpt_dsl.instance import Instance
    from kpt_dsl.space import Config
    from kpt_dsl.targets import Target

STAND_IN = "tpu-v6e"
"""Whose code is interpreted where there is no TPU."""

INTERPRETING = {"xla_disable_hlo_passes": "algsimp,constant_folding", "xla_backend_optimization_level": 0}
"""How XLA compiles what is interpreted: without algebraic simplification, which turns (x/n)(x/n) into xx/(nn), infinite for
large x; without constant folding, which makes a constant of a step that keeps single numbers and leaves it to the simplifier to
take apart: without that, XLA ends the process (shape_util.cc, "pointer_size > 0"; so JAX 0.10.2 and 0.11.2); and without much
optimisation, since such runs are short and compiling takes most of their time."""

WHERE_XLA_HAS_IT: tuple[dict[str, Any], ...] = (
    {"xla_cpu_experimental_ynn_fusion_type": ""},
    {"xla_cpu_use_fusion_emitters": False},
)
"""Options of some versions of XLA, on CPUs. YNNPACK, to which it hands fusions, drops NaN in maxima, minima and clips (so
JAX 0.10.2). The older emitters compile in a quarter of the time of those that fuse (attention in tiles: 0.17 s for 0.63 s)."""

JaxFunction = Callable[..., Any]


def jax_package() -> Any:
    """The ``jax`` package with ``jax.export``. Raises MissingPackageError where it is not installed."""
    xla.guard_import()
    try:
        import jax
        import jax.export
    except ImportError as error:
        raise MissingPackageError("backend pallas needs the package 'jax': pip install 'kpt-dsl[tpu]'") from error
    return jax


def target(arrays: Mapping[Any, Any]) -> "Target":
    """The target of the TPU that holds the arrays; elsewhere the one that stands in.

    Raises TargetError for a TPU that no target describes.
    """
    kind = xla.kind(arrays)
    if kind is None and (device := tpu(arrays)) is not None:
        kind = device.device_kind
    if kind in (None, xla.CPU):
        return targets.get(STAND_IN)
    found = targets.of_device(kind)
    if found is None or found.backend != "pallas":
        known = [name for name in targets.names() if targets.get(name).backend == "pallas"]
        raise TargetError(f"no target describes the TPU {kind!r}; known are {', '.join(known)}")
    return found


def run(
    instance: "Instance", arrays: Mapping[str, Any], config: "Config", interpret: Any = None
) -> dict[str, Any] | None:
    """Run an instance on its arguments by name; the outputs by name where they are JAX's, else they are written in place.

    ``interpret``: True or ``pltpu.InterpretParams(...)``; by default only where there is no TPU.
    Raises InputError for arrays that are neither JAX's, NumPy's nor tensors of the CPU, and for outputs that share memory.
    """
    if (kind := xla.kind(arrays)) is not None:
        source = emit(instance, target(arrays), config)
        interpret = kind == xla.CPU if interpret is None else interpret
        xla.run(source, _generated(source, interpret), interpret, arrays)
        return None
    if 0 in dict(instance.extents.dims).values():
        return _run_empty(instance, arrays, config)
    written = {name: arrays[name] for name, role in instance.kernel.roles.items() if role == "out"}
    in_place = {name: a for name, a in written.items() if a is not None and not _is_jax(a)}
    refuse_shared_outputs(instance.kernel, {name: as_numpy(name, array) for name, array in in_place.items()})
    found = _call(instance, arrays, config, target(arrays), interpret)()
    if in_place:
        jax_package().block_until_ready(found)  # inputs, which may share memory with outputs, have been read
    for name, array in in_place.items():
        as_numpy(name, array)[...] = found[name]
    return {name: array for name, array in found.items() if name not in in_place} or None


def _run_empty(instance: "Instance", arrays: Mapping[str, Any], config: "Config") -> dict[str, Any] | None:
    """An instance with an empty dim, of which no block can be made: on NumPy, since there is next to nothing to compute; what
    is traced has values when the program runs, and is computed then."""
    import numpy as np

    from kpt_dsl.runtime import numpy
    from kpt_dsl.runtime.jax_primitive import Output, launch

    jax, roles = jax_package(), instance.kernel.roles
    held = {name: array for name, array in arrays.items() if _is_jax(array) and roles.get(name) == "in"}
    made = {n: Output(instance.shape(n), a.dtype) for n, a in arrays.items() if _is_jax(a) and roles.get(n) == "out"}

    def compute(*values: Any) -> list[Any]:
        outputs = {name: np.zeros(*output) for name, output in made.items()}
        numpy.run(instance, {**arrays, **dict(zip(held, map(np.asarray, values), strict=True)), **outputs}, config)
        return [*outputs.values()]

    def later(*values: Any) -> Any:
        return jax.pure_callback(compute, [jax.ShapeDtypeStruct(*o) for o in made.values()], *values, vmap_method="sequential")

    traced = any(isinstance(array, jax.core.Tracer) for array in held.values())
    found = launch(later, [*made.values()], *held.values()) if traced else map(jax.numpy.asarray, compute(*held.values()))
    return dict(zip(made, found, strict=True)) or None


def launcher(instance: "Instance", arrays: Mapping[str, Any], config: "Config", target: "Target") -> Callable[[], Any]:
    """A launch with all arguments bound; it does not wait for the device."""
    return _call(instance, arrays, config, target, None)


def jax_function(instance: "Instance", config: "Config", target: "Target", interpret: Any = False) -> JaxFunction:
    """The generated function: the kernel's inputs in order, then its scalars, to its outputs (a tuple where there are several).

    An ordinary JAX function: it can be jitted, mapped over devices and exported.
    """
    return _generated(emit(instance, target, config), interpret)


def traceable(source: Source, interpret: Any) -> JaxFunction:
    """The generated function as an operation of JAX (``jax_primitive``), which gives a tuple: for programs that are traced."""
    from kpt_dsl.runtime.jax_primitive import Output, launch

    return partial(launch, _generated(source, interpret), [Output(a.shape, jax_dtype(a.dtype)) for a in source.abi.outputs])


def _call(
    instance: "Instance", arrays: Mapping[str, Any], config: "Config", target: "Target", interpret: Any
) -> Callable[[], dict[str, Any]]:
    """A run with its arguments bound, which gives the outputs by name."""
    source = emit(instance, target, config)
    if interpret is None:
        interpret = tpu(arrays) is None
    abi = source.abi
    roles = instance.kernel.roles
    arguments = [_as_jax(a.name, arrays[a.name], roles[a.name] == "out") for a in abi.inputs]
    arguments += [arrays[a.name] for a in abi.scalars]
    jax = jax_package()
    traced = any(isinstance(a, jax.core.Tracer) for a in (*arguments, jax.numpy.zeros(())))  # a program may have constants only
    names = [a.name for a in abi.outputs]
    wide = {n for n in names if dtype(arrays[n].dtype) == i64 and _is_jax(arrays[n])}
    if wide and not jax.config.jax_enable_x64:
        raise TargetError(f"output {min(wide)} is int64, which JAX has only with jax_enable_x64; declare it int32")

    def call() -> dict[str, Any]:
        results = traceable(source, interpret)(*arguments) if traced else _jitted(source, interpret)(*arguments)
        found = dict(zip(names, results if traced or len(names) > 1 else [results], strict=True))
        return found | {name: found[name].astype("int64") for name in wide}

    return call


@lru_cache(maxsize=256)
def _jitted(source: Source, interpret: Any) -> JaxFunction:
    options = dict(_interpreting()) if interpret else None
    if options and " / " not in source.text:
        options.pop("xla_disable_hlo_passes")
    function: JaxFunction = jax_package().jit(_generated(source, interpret), compiler_options=options)
    return function


@lru_cache(maxsize=1)
def _interpreting() -> dict[str, Any]:
    """``INTERPRETING``, and what else this version of XLA takes on the device that JAX has."""
    jax, options = jax_package(), dict(INTERPRETING)
    for more in WHERE_XLA_HAS_IT:
        try:
            jax.jit(lambda x: x, compiler_options=more).lower(0.0).compile()
        except jax.errors.JaxRuntimeError:
            continue
        options |= more
    return options


@lru_cache(maxsize=256)
def _generated(source: Source, interpret: Any) -> JaxFunction:
    return partial(define(source.name, source.text), interpret=interpret)


def define(name: str, text: str) -> JaxFunction:
    """The function ``name`` that generated text defines; tracebacks show the text.

    Numbers in the text are 32 bits wide, as a TPU's are, also where the user's own default is 64.
    """
    jax = jax_package()
    file = f"<kpt pallas {name} {hash(text) & 0xFFFFFFFF:08x}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    module: dict[str, Any] = {"__name__": f"kpt_pallas_{name}"}
    exec(compile(text, file, "exec"), module)
    if not hasattr(jax.sharding, "ManualAxisType"):  # before JAX 0.10
        from kpt_dsl.runtime.older_jax import NAMES

        module |= NAMES
    function: JaxFunction = module[name]
    in_64_bits = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64  # before JAX 0.8

    @wraps(function)
    def narrow(*arguments: Any, **options: Any) -> Any:
        with in_64_bits(False):
            return function(*arguments, **options)

    return narrow


def specs(arguments: Iterable[tuple[tuple[int, ...], str]], sharding: Any = None) -> list[Any]:
    """``jax.ShapeDtypeStruct`` of arguments given by shape and dtype name."""
    jax = jax_package()
    return [jax.ShapeDtypeStruct(tuple(shape), jax_dtype(name), sharding=sharding) for shape, name in arguments]


def on_abstract_tpu(kind: str, cores: int) -> AbstractContextManager[Any]:
    """A context in which JAX lowers for a kind of TPU that need not be there: how integers are divided depends on it."""
    sharding = jax_package().sharding
    newer = (
        {"platform": "tpu"} if "platform" in signature(sharding.AbstractDevice).parameters else {}
    )  # not in JAX 0.10.0
    device = sharding.AbstractDevice(device_kind=kind, num_cores=cores, **newer)
    context: AbstractContextManager[Any] = sharding.use_abstract_mesh(
        sharding.AbstractMesh((), (), abstract_device=device)
    )
    return context


# ------------------------------------------------------------------ arrays in and out
def jax_dtype(name: str) -> Any:
    """JAX's dtype of a short name, 32 bits wide where it would be 64."""
    import jax.numpy as jnp

    return {
        "f32": jnp.float32, "f16": jnp.float16, "bf16": jnp.bfloat16, "f8e4m3": jnp.float8_e4m3fn,
        "f8e5m2": jnp.float8_e5m2, "i8": jnp.int8, "u8": jnp.uint8, "i32": jnp.int32, "i64": jnp.int32, "bool": jnp.bool_,
    }[name]  # fmt: skip


def known_shape(array: Any) -> tuple[int, ...]:
    """The shape of a JAX array. Raises InputError for one whose lengths ``jax.export`` leaves open."""
    if not all(isinstance(extent, int) for extent in array.shape):
        raise InputError(f"an array is traced as {array}; kernels are made for known lengths: export one program for each")
    return tuple(array.shape)


def _is_jax(array: Any) -> bool:
    return library(array) == "jax"


def tpu(arrays: Mapping[Any, Any]) -> Any:
    """The TPU that JAX arrays lie on (for traced ones: that which is traced for, else JAX's default device), or None."""
    held = [a for a in arrays.values() if _is_jax(a)]
    if not held:
        return None
    jax = jax_package()
    values = [array for array in held if isinstance(array, jax.Array)]
    traced = not values or any(isinstance(array, jax.core.Tracer) for array in values)
    there = None if traced else next(iter(values[0].devices()))
    device = jax.sharding.get_abstract_mesh().abstract_device or there or jax.devices()[0]
    return device if getattr(device, "platform", "tpu") == "tpu" else None


def _as_jax(name: str, array: Any, written: bool) -> Any:
    """An array as JAX has it; ``written``: it is an output, whose elements are kept where the kernel stores none."""
    jax = jax_package()
    if isinstance(array, jax.ShapeDtypeStruct):
        if not written:
            raise InputError(f"{name} is a ShapeDtypeStruct, which holds no values; only outputs may be given so")
        return jax.numpy.zeros(array.shape, array.dtype)  # an output of which a part is stored
    if dtype(array.dtype) == i64:
        array = _narrowed(name, array)
    if _is_jax(array):
        return array
    if library(array) == "torch" and array.device.type != "cpu":
        raise InputError(
            f"{name} is on {array.device}; backend pallas takes JAX arrays and tensors of the CPU: {name}.cpu()"
        )
    return jax.numpy.asarray(as_numpy(name, array))


def _narrowed(name: str, array: Any) -> Any:
    """An int64 array as int32, which TPUs compute with. Raises InputError where a number does not fit, TargetError where a
    traced array does not tell."""
    if isinstance(array, jax_package().core.Tracer):
        raise TargetError(
            f"{name} is a traced int64 array; a TPU has integers of 32 bits, and whether its numbers fit is not known: "
            f"pass {name}.astype(jnp.int32)"
        )
    if array.size if isinstance(array.size, int) else array.numel():
        for number in (int(array.min()), int(array.max())):
            if converted(number, i32) != number:
                raise InputError(f"{name} holds {number}; backend pallas takes int64 tensors whose numbers fit int32")
    if library(array) != "torch":
        return array.astype("int32")
    import torch

    return array.to(torch.int32)
