"""Generated kernels as implementations: one an emitter, all from the same ``run`` function of an op.

``run(launch, *arguments)`` allocates outputs and hands kernels with their arguments to ``launch``, each kernel once. What
``launch`` is makes the difference: a backend that runs them, or a recorder that notes them (for the tuner and ``explain``).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from kpt.ops.dtypes import KERNEL_FLOATS
from kpt.ops.registry import Implementation, KernelChoice, Ready
from kpt_dsl.kernel import Kernel
from kpt_dsl.problem import Problem

Launch = Callable[..., None]
Run = Callable[..., Any]


class Backend(NamedTuple):
    """An emitter, the torch device types whose tensors it serves unasked, and the package that it needs."""

    name: str
    devices: frozenset[str]
    package: str


BACKENDS = (
    Backend("triton", frozenset({"cuda"}), "triton"),
    Backend("pallas", frozenset(), "jax"),
    Backend("numpy", frozenset(), "numpy"),
)


def kernel_implementations(run: Run, why_not: Callable[..., str | None]) -> tuple[Implementation, ...]:
    """The op's generated implementations. ``why_not(*arguments)`` says what the kernels themselves cannot do."""

    def not_served(*arguments: Any) -> str | None:
        if any(isinstance(a, torch.Tensor) and a.numel() == 0 for a in arguments):
            return "a tensor is empty"
        return why_not(*arguments)

    return tuple(
        Implementation(
            backend.name,
            prepare=partial(_prepare, run, backend.name),
            devices=backend.devices,
            why_not=not_served,
            describe=partial(_describe, run, backend.name),
            package=backend.package,
        )
        for backend in BACKENDS
    )


def record(run: Run, arguments: tuple[Any, ...]) -> list[Problem]:
    """The kernel problems of a call, without running anything; tensors may be on the meta device."""
    return [Problem.bind(kernel, kernel.bind(*given)) for kernel, given in _recorded(run, arguments)]


def wide_dtype(*tensors: torch.Tensor | None) -> str | None:
    """Why kernels pass over tensors of these dtypes, or None."""
    found = next((t.dtype for t in tensors if t is not None and t.dtype not in KERNEL_FLOATS), None)
    return None if found is None else f"kernels do not compute on {found}"


def unit_last_stride(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where its last dim is dense, as kernels want it; else a contiguous copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def as_matrix(tensor: torch.Tensor, columns: int) -> torch.Tensor:
    """The tensor as (rows, columns) with dense rows: a view where its strides allow one, else a copy."""
    matrix = tensor if tensor.ndim == 2 and tensor.shape[1] == columns else tensor.reshape(-1, columns)
    return unit_last_stride(matrix)


def _prepare(run: Run, backend: str, _: tuple[Any, ...]) -> Ready:
    return partial(run, Launches(backend))


class Launches:
    """Launches the kernels of one kind of call, each prepared when it first comes by and only started from then on."""

    __slots__ = ("_backend", "_prepared")

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._prepared: dict[Kernel, Callable[..., Any]] = {}

    def __call__(self, kernel: Kernel, *arguments: Any) -> None:
        prepared = self._prepared.get(kernel)
        if prepared is None:
            prepared = self._prepared[kernel] = _prepared(kernel, arguments, self._backend)
        prepared(*arguments)


def _prepared(kernel: Kernel, arguments: tuple[Any, ...], backend: str) -> Callable[..., Any]:
    """What runs the kernel on any arguments of the same dtypes, shapes, strides and alignment."""
    from kpt_dsl import runtime

    bound = kernel.bind(*arguments)
    problem = Problem.bind(kernel, bound)
    config, _ = runtime.chosen(problem, bound, backend)
    device = next(a.device for a in arguments if isinstance(a, torch.Tensor))
    if device.type == "cuda":
        ready: Callable[..., Any] = runtime.runtime(backend).prepare(problem, config, device.index)
        return ready
    return lambda *given: runtime.run(problem, kernel.bind(*given), config, backend)


def _recorded(run: Run, arguments: tuple[Any, ...]) -> list[tuple[Kernel, tuple[Any, ...]]]:
    launched: list[tuple[Kernel, tuple[Any, ...]]] = []
    run(lambda kernel, *given: launched.append((kernel, given)), *arguments)
    return launched


def _describe(run: Run, backend: str, arguments: tuple[Any, ...]) -> tuple[KernelChoice, ...]:
    from kpt_dsl import runtime

    described = []
    for kernel, given in _recorded(run, arguments):
        bound = kernel.bind(*given)
        config, provenance = runtime.chosen(Problem.bind(kernel, bound), bound, backend)
        described.append(KernelChoice(kernel.name, str(config), provenance))
    return tuple(described)
