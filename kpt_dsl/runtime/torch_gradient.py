"""The gradient that an author gives a kernel: a function or another kernel, whose arguments say by their names what they are.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch._functorch.utils import enable_single_level_autograd_function

from kpt_dsl.definition import Definition
from kpt_dsl.errors import InputError
from kpt_dsl.runtime.torch_call import outputs


class Gradient:
    """What gives the gradients of a kernel's inputs.

    ``saves``: the arguments and outputs of the kernel that it names; ``gives``: the inputs that it gives a gradient of.
    Raises InputError for names that are neither, and where no input gets a gradient.
    """

    def __init__(self, kernel: Definition, backward: Any) -> None:
        self.kernel = kernel
        self.backward = backward
        inputs = [name for name, role in kernel.roles.items() if role == "in"]
        by_kernel = isinstance(backward, Definition)
        if by_kernel:
            taken = [name for name in backward.names if name not in backward.outputs]
            made = list(backward.outputs)
        else:
            taken, made = list(inspect.signature(backward).parameters), [f"d{name}" for name in inputs]
        self.name = backward.name if by_kernel else getattr(backward, "__name__", repr(backward))
        self.saves = tuple(name for name in taken if name in kernel.names)
        self.arriving = {f"d{name}": name for name in kernel.outputs if f"d{name}" in taken and f"d{name}" not in kernel.names}
        self.gives = tuple(name for name in inputs if f"d{name}" in made)
        if unknown := [name for name in taken if name not in (*self.saves, *self.arriving)]:
            arriving = ", ".join(f"d{name}" for name in kernel.outputs)
            raise InputError(
                f"{kernel.name}.gradient: {self.name} takes {unknown[0]!r}; a gradient takes arguments of the kernel by their "
                f"names ({', '.join(kernel.names)}) and gradients of its outputs ({arriving})"
            )
        if unknown := [name for name in made if name not in [f"d{given}" for given in self.gives]]:
            wanted = ", ".join(f"d{name}" for name in inputs)
            raise InputError(
                f"{kernel.name}.gradient: {self.name} writes {unknown[0]!r}; outputs of a gradient are called {wanted}"
            )

    def run(
        self,
        saved: Mapping[str, Any],
        arriving: Mapping[str, Any],
        dtypes: Mapping[str, Any],
        by_kernel: "Callable[[Definition, dict[str, Any], dict[str, Any]], Any] | None" = None,
    ) -> dict[str, Any]:
        """The gradients by input. ``arriving``: those of outputs by their names; ``dtypes``: of the inputs that need one;
        ``by_kernel``: how a kernel is called, of its inputs and the dtypes of its outputs, unless on tensors.

        Raises InputError where a function gives another number of them than the kernel has inputs.
        """
        given = {**saved, **{name: arriving.get(output) for name, output in self.arriving.items()}}
        if isinstance(self.backward, Definition):
            found = (by_kernel or _by_kernel)(self.backward, given, {f"d{name}": dtypes.get(name) for name in self.gives})
            wanted = [name for name in self.gives if name in dtypes]
        else:
            found = self.backward(**given)
            wanted = list(self.gives)
        found = found if isinstance(found, (tuple, list)) else (found,)
        if len(found) != len(wanted):
            raise InputError(
                f"{self.kernel.name}: {self.name} gave {len(found)} gradients; it gives one for each tensor that the kernel "
                f"reads, in order, None where there is none: {', '.join(wanted)}"
            )
        return dict(zip(wanted, found, strict=True))


def _by_kernel(kernel: Definition, given: dict[str, Any], dtypes: dict[str, Any]) -> Any:
    """What the kernel gives. Where a graph is asked for and it has no gradient itself, that refuses to be differentiated."""
    if kernel.backward is not None or not torch.is_grad_enabled():
        return outputs(kernel, (), {**given, **dtypes}, None, None)
    with torch.no_grad():
        found = outputs(kernel, (), {**given, **dtypes}, None, None)
    sources = [v for v in given.values() if isinstance(v, torch.Tensor) and v.requires_grad]
    if not sources:
        return found
    with enable_single_level_autograd_function():
        return _refuse(kernel, found, *sources)


class _Refusal(torch.autograd.Function):
    """Gradients that a graph was asked for: usable, and an error once differentiated."""

    @staticmethod
    def forward(ctx: Any, kernel: Definition, gradients: Any, *_: torch.Tensor) -> Any:
        ctx.kernel = kernel
        return gradients

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> NoReturn:
        name = ctx.kernel.name
        raise InputError(f"{name} gave a gradient that is to be differentiated, and has none itself: {name}.gradient")


_refuse: Callable[..., Any] = super(torch.autograd.Function, _Refusal).apply
"""As in ``torch_op``."""
