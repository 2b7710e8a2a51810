"""``@kd.kernel`` and ``@kd.function``: what a decorated function becomes, and how it is called."""

import importlib
from collections.abc import Callable
from typing import Any, Never, cast

from kpt_dsl import runtime
from kpt_dsl.definition import Definition
from kpt_dsl.errors import InputError, KernelError
from kpt_dsl.frontend.outside import Helper
from kpt_dsl.frontend.source import place, read


def function(fn: Callable[..., Any] | None = None) -> Helper:
    """A helper for kernels: inlined where a kernel calls it, so one GELU serves every kernel. It ends with ``return``."""
    return Helper(read(fn, "@kd.function"))


def kernel(*misplaced: Never, **dims: str) -> Callable[[Callable[..., Any]], "Kernel"]:
    """Make a kernel of a function; each keyword names the dims of one tensor argument: ``@kd.kernel(x="M N", out="M N")``.

    Arguments are annotated kd.In, kd.Out, kd.Float and so on. Raises KernelError where the declaration is wrong;
    the body is read when the kernel is first used.
    """
    for given in cast(tuple[Any, ...], misplaced):
        what = "without parentheses" if callable(given) else f"with {given!r}, which names no argument"
        raise KernelError(
            f"{place(given)}@kd.kernel is written {what}; name the dims of each tensor argument: "
            '@kd.kernel(x="M N", out="M N")'
        )

    def decorate(fn: Callable[..., Any]) -> "Kernel":
        return Kernel(fn, dims)

    return decorate


class Kernel(Definition):
    """A kernel: call it on tensors, or hand it to ``kpt_dsl.source`` / ``kpt_dsl.compile`` / the tuner."""

    def __call__(self, *args: Any, config: Any = None, backend: str | None = None, **kwargs: Any) -> Any:
        """Run the kernel: torch tensors on their device (CUDA: Triton; CPU: NumPy), JAX arrays through Pallas.

        Outputs are written in place into the given tensors; JAX outputs are given as ``jax.ShapeDtypeStruct`` and returned.
        ``config`` overrides what the config database knows; ``backend`` is "triton", "pallas" or "numpy".
        Raises InputError for arguments that do not fit, CompileError where the compiler or the device refuses.
        """
        return runtime.call(self, self.bind(*args, **kwargs), config, backend)

    def __reduce__(self) -> tuple[Callable[[str], "Kernel"], tuple[str]]:
        """By name: another process reads the kernel from its own source."""
        return from_name, (self.qualname,)


def from_name(name: str) -> Kernel:
    """The kernel behind ``package.module:kernel``. Raises InputError where there is none."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise InputError(f"kernel {name!r} is not of the form package.module:kernel")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"kernel {name!r} cannot be imported: {error}") from error
    if not isinstance(found, Kernel):
        raise InputError(f"{name!r} is {type(found).__name__}, not a function decorated with @kd.kernel")
    return found


__all__ = ["Kernel", "KernelError", "from_name", "function", "kernel"]
