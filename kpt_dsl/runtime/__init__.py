"""Running kernels: which backend serves a call, which config it takes, and the door to each backend's own runtime.

A runtime module has ``target(arrays)``, whose configs it takes; ``run(problem, arrays, config)``, which gives the outputs by
name where arrays cannot be written in place; ``launcher(problem, arrays, config, target)``. Ours are
``kpt_dsl.runtime.<backend>``; a package adds its own through an entry point of the group ``kpt.runtimes``.
"""

from collections.abc import Callable, Hashable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from kpt_dsl import configs
from kpt_dsl.errors import InputError
from kpt_dsl.problem import ALIGNMENT, Problem
from kpt_dsl.space import Config

if TYPE_CHECKING:
    from kpt_dsl.kernel import Kernel
    from kpt_dsl.targets import Target

OWN = ("triton", "pallas", "numpy")

Outputs = dict[str, Any] | None
"""The outputs by name, where the arrays given cannot be written in place."""

_PROBLEMS_KEPT = 4096
_problems: dict[Hashable, Problem] = {}


def call(
    kernel: "Kernel",
    arguments: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    backend: str | None = None,
) -> Outputs:
    """Run a kernel on its arguments by name. ``config``: knobs over those that the database or the rule gives.

    Raises InputError for arguments or a backend that do not fit and for numbers that int32 arithmetic would wrap, CompileError
    where a compiler or device refuses.
    """
    backend = backend or backend_of(arguments)
    problem = _problem(kernel, arguments)
    if kernel.integers:
        problem.check_integers(arguments)
    found, _ = chosen(problem, arguments, backend)
    return run(problem, arguments, found | config if config else found, backend)


def run(problem: Problem, arrays: Mapping[str, Any], config: Config, backend: str) -> Outputs:
    """Run a problem on its arguments by name. Outputs are written in place; for arrays that cannot be, they are returned.

    "triton": CUDA and ROCm tensors on their device, CPU tensors under Triton's interpreter; "pallas": JAX arrays on their TPU,
    else in interpret mode; "numpy": NumPy arrays and CPU tensors.
    """
    outputs: Outputs = runtime(backend).run(problem, arrays, config)
    return outputs


def chosen(problem: Problem, arrays: Mapping[str, Any], backend: str) -> tuple[Config, str]:
    """The config that a call would take, and where it comes from ("measured", "shipped", …, "rule")."""
    return configs.choose(problem, runtime(backend).target(arrays))


def launcher(problem: Problem, arrays: Mapping[str, Any], config: Config, target: "Target") -> Callable[[], None]:
    """A launch with everything bound, for measuring: calling it starts the kernel and does not wait."""
    launch: Callable[[], None] = runtime(target.backend).launcher(problem, arrays, config, target)
    return launch


@cache
def runtime(backend: str) -> Any:
    """The runtime module of a backend. Raises InputError for one that nobody offers."""
    if backend in OWN:
        return import_module(f"kpt_dsl.runtime.{backend}")
    for found in entry_points(group="kpt.runtimes", name=backend):
        return found.load()
    raise InputError(f"backend is {backend!r}; accepted are {', '.join(OWN)}, and what installed packages add")


def backend_of(arguments: Mapping[str, Any]) -> str:
    """The backend that serves arrays where they are: GPU tensors "triton", JAX arrays "pallas", the rest "numpy"."""
    for array in arguments.values():
        library = type(array).__module__.partition(".")[0]
        if library == "torch" and hasattr(array, "device"):
            return "triton" if array.device.type == "cuda" else "numpy"
        if library in ("jax", "jaxlib"):
            return "pallas"
    return "numpy"


def _problem(kernel: "Kernel", arguments: Mapping[str, Any]) -> Problem:
    """``Problem.bind``, remembered: binding anew on each call would cost more than launching."""
    key = (
        kernel,
        tuple(_layout(arguments[name]) for name in kernel.tensors),
        tuple(arguments[name] is None for name in kernel.scalars),
        tuple(arguments[name] for name in kernel.statics),
    )
    try:
        known = _problems.get(key)
    except TypeError:  # an unhashable argument; binding says which
        return Problem.bind(kernel, arguments)
    if known is None:
        if len(_problems) >= _PROBLEMS_KEPT:
            _problems.clear()
        known = _problems[key] = Problem.bind(kernel, arguments)
    return known


def _layout(array: Any) -> Hashable:
    """All that a problem keeps of an array."""
    address = getattr(array, "data_ptr", None)
    if address is not None:
        return array.dtype, array.shape, array.stride(), address() % ALIGNMENT
    if array is None:
        return None
    interface = getattr(array, "__array_interface__", {"data": (0,)})
    return str(array.dtype), tuple(array.shape), getattr(array, "strides", None), interface["data"][0] % ALIGNMENT
