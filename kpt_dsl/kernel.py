"""``@kd.kernel`` and ``@kd.function``: what a decorated function becomes, and how it is called."""

import importlib
from collections.abc import Callable, Mapping
from functools import cache
from sys import modules
from typing import Any, Never, TypeVar, cast

from kpt_dsl import runtime
from kpt_dsl.definition import Definition
from kpt_dsl.errors import InputError, KernelError, KptError
from kpt_dsl.frontend.outside import Helper
from kpt_dsl.frontend.source import place, read

F = TypeVar("F", bound=Callable[..., Any])


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


@cache
def _watcher() -> Callable[[Mapping[str, Any]], bool]:
    """Says of a call's arguments whether PyTorch follows it. Asked for where PyTorch is there."""
    from kpt_dsl.runtime.torch_call import is_followed

    return is_followed


def _compiled_as(traced: Callable[..., Any]) -> Callable[[F], F]:
    """A decorator: torch.compile follows ``traced`` instead, and whoever runs the function pays nothing for that."""

    def decorate(function: F) -> F:
        function.__dict__["_torchdynamo_inline"] = traced
        return function

    return decorate


def _traced(kernel: "Kernel", *args: Any, config: Any = None, backend: str | None = None, **kwargs: Any) -> Any:
    from kpt_dsl.runtime.torch_call import by_operator

    return by_operator(kernel, kernel.bind(*args, **kwargs), config, backend)


class Kernel(Definition):
    """A kernel: call it on tensors, or hand it to ``kpt_dsl.source`` / ``kpt_dsl.compile`` / the tuner."""

    @_compiled_as(_traced)
    def __call__(self, *args: Any, config: Any = None, backend: str | None = None, **kwargs: Any) -> Any:
        """Run the kernel: torch tensors on their device (CUDA: Triton; CPU: NumPy), JAX arrays through Pallas.

        Outputs are written in place into the given tensors; JAX outputs are given as ``jax.ShapeDtypeStruct`` and returned.
        ``config`` overrides what the config database knows; ``backend`` is "triton", "pallas" or "numpy".
        Under torch.compile, export, fake tensors and other modes it is an operator (``torch_op``).
        Raises InputError for arguments that do not fit, CompileError where the compiler or the device refuses.
        """
        arguments = self.bind(*args, **kwargs)
        if "torch" in modules and _watcher()(arguments):
            return _traced(self, config=config, backend=backend, **arguments)
        return runtime.call(self, arguments, config, backend)

    def torch(self, *args: Any, config: Any = None, backend: str | None = None, **kwargs: Any) -> Any:
        """Run the kernel on torch tensors without its outputs, and give those: a tensor, or a tuple in the order of arguments.

        They are new, on the device of the inputs, and hold zeros where no program stores. An output has the dtype of the first
        input of floating point (of the first, where there is none) or that which is given for it by name, and is absent where
        None is given or its default. Autograd follows the call where the kernel has a ``gradient``.
        Raises InputError as a call, for an output with a dim that no input has, and for inputs that require grad where there
        is no gradient of them.
        """
        from kpt_dsl.runtime.torch_call import outputs

        return outputs(self, args, kwargs, config, backend)

    def jax(self, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """Run the kernel on JAX arrays without its outputs, and give those: an array, or a tuple in the order of arguments.

        A function of JAX: in jit, vmap and shard_map, and in grad where the kernel has a ``gradient``, whose function is then
        called with arrays. Outputs are as those of ``torch``, whose other arguments these are; dtypes are JAX's. On TPUs the
        kernel runs through Mosaic, elsewhere interpreted, by XLA's operations. Raises InputError as ``torch`` does.
        """
        from kpt_dsl.runtime.jax_call import outputs

        return outputs(self, args, kwargs, config)

    def torch_op(self, *args: Any, config: Any = None, backend: str | None = None, **kwargs: Any) -> Any:
        """The operator of PyTorch, a ``torch._ops.OpOverload``, that a call with these arguments is under torch.compile.

        An output is a tensor that is written, or a ``torch.dtype`` where the operator makes it, as that of a call of ``torch``
        does. Of tensors only their presence counts; they may be on the device meta. Raises InputError as a call.
        """
        from kpt_dsl.runtime.torch_call import operator

        return operator(self, self.bind(*args, **kwargs), config, backend)[0]

    def gradient(self, backward: F) -> F:
        """Give the kernel a gradient: a function, or another kernel, that takes what it needs by name and gives gradients.

        Its arguments are arguments of this kernel, outputs among them, as they were in the forward, and ``d`` before the name
        of an output: the gradient that arrives there. A function gives a tensor for each tensor that this kernel reads, in
        order (None: no gradient); of a kernel, the outputs are called ``d`` and the name of the input. Can decorate.
        Raises InputError for arguments and outputs of other names.
        """
        from kpt_dsl.runtime.torch_gradient import Gradient

        self.backward = Gradient(self, backward)
        return backward

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
    except KptError:
        raise
    except (Exception, SystemExit) as error:  # of a module that a stranger wrote
        kind = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
        raise InputError(f"kernel {name!r} cannot be imported: {kind}{error}") from error
    if not isinstance(found, Kernel):
        raise InputError(f"{name!r} is {type(found).__name__}, not a function decorated with @kd.kernel")
    return found


__all__ = ["Kernel", "KernelError", "from_name", "function", "kernel"]
