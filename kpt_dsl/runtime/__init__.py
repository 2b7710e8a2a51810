"""Running kernels: which backend serves a call, which config it takes, and the door to each backend's own runtime.

A runtime module has ``target(arrays)``, whose configs it takes; ``run(instance, arrays, config)``, which gives the outputs by
name where arrays cannot be written in place; ``launcher(instance, arrays, config, target)``. Ours are
``kpt_dsl.runtime.<backend>``; a package adds its own through an entry point of the group ``kpt.runtimes``.
"""

from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from importlib import import_module
from sys import modules
from typing import TYPE_CHECKING, Any

from kpt_dsl import configs
from kpt_dsl.arrays import library
from kpt_dsl.classes import options
from kpt_dsl.errors import InputError
from kpt_dsl.extensions import entry_points
from kpt_dsl.instance import Instance
from kpt_dsl.runtime.binding import bind
from kpt_dsl.space import Config

if TYPE_CHECKING:
    from kpt_dsl.definition import Definition
    from kpt_dsl.targets import Target

OWN = ("triton", "pallas", "numpy")

Outputs = dict[str, Any] | None
"""The outputs by name, where the arrays given cannot be written in place."""


def call(
    kernel: "Definition",
    arguments: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    backend: str | None = None,
) -> Outputs:
    """Run a kernel on its arguments by name. ``config``: knobs over those that the database or the rule gives.

    Raises InputError for arguments or a backend that do not fit and for numbers that int32 arithmetic would wrap, ConfigError
    for knobs that there are none of or values that they cannot have, CompileError where a compiler or device refuses.
    """
    backend = backend_of(arguments) if backend is None else backend
    if not isinstance(backend, str):
        raise InputError(f"backend is {backend!r}; it is a string, one of {', '.join(OWN)}")
    if backend == "triton" and not config and (launch := runtime(backend).again(kernel, arguments)) is not None:
        launch(*arguments.values())
        _note_written(kernel, arguments)
        return None
    instance, arguments = bind(kernel, arguments)
    if kernel.integers:
        instance.check_integers(arguments)
    found, _ = chosen(instance, arguments, backend)
    if config is not None and config != {}:
        found = _overridden(instance, runtime(backend).target(arguments), found, Config(config))
    outputs = run(instance, arguments, found, backend)
    _note_written(kernel, arguments)
    return outputs


def _note_written(kernel: "Definition", arguments: Mapping[str, Any]) -> None:
    """Tell autograd, which otherwise computes gradients from what it saved before and a kernel has written over since."""
    written = [a for name in kernel.outputs if (a := arguments[name]) is not None and library(a) == "torch"]
    if written:
        modules["torch"].autograd.graph.increment_version(written)


@lru_cache(maxsize=512)
def _overridden(instance: Instance, target: "Target", found: Config, knobs: Config) -> Config:
    return options(instance, target).overridden(found, knobs)


def run(instance: Instance, arrays: Mapping[str, Any], config: Config, backend: str) -> Outputs:
    """Run an instance on its arguments by name. Outputs are written in place; for arrays that cannot be, they are returned.

    "triton": CUDA and ROCm tensors on their device, CPU tensors under Triton's interpreter; "pallas": JAX arrays and
    tensors of PyTorch/XLA on their TPU, else in interpret mode; "numpy": NumPy arrays and CPU tensors.
    """
    outputs: Outputs = runtime(backend).run(instance, arrays, config)
    return outputs


def chosen(instance: Instance, arrays: Mapping[str, Any], backend: str) -> tuple[Config, str]:
    """The config that a call would take, and where it comes from ("measured", "shipped", …, "rule")."""
    return configs.choose(instance, runtime(backend).target(arrays))


def launcher(instance: Instance, arrays: Mapping[str, Any], config: Config, target: "Target") -> Callable[[], None]:
    """A launch with everything bound, for measuring: calling it starts the kernel and does not wait."""
    launch: Callable[[], None] = runtime(target.backend).launcher(instance, arrays, config, target)
    return launch


@cache
def runtime(backend: str) -> Any:
    """The runtime module of a backend. Raises InputError for one that nobody offers."""
    if backend in OWN:
        return import_module(f"kpt_dsl.runtime.{backend}")
    for found in entry_points(group="kpt.runtimes", name=backend):
        return found.load()
    cuda = "; CUDA and ROCm tensors run by triton" if backend in ("cuda", "gpu", "rocm", "hip") else ""
    raise InputError(f"backend is {backend!r}; accepted are {', '.join(OWN)}, and what installed packages add{cuda}")


def backend_of(arguments: Mapping[str, Any]) -> str:
    """The backend that serves arrays where they are: GPU tensors "triton", JAX arrays and tensors of
    PyTorch/XLA "pallas", the rest "numpy"."""
    for array in arguments.values():
        kind = library(array)
        if kind == "torch" and hasattr(array, "device"):
            return {"cuda": "triton", "xla": "pallas", "tpu": "pallas"}.get(array.device.type, "numpy")
        if kind == "jax":
            return "pallas"
    return "numpy"
