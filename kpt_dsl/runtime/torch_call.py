"""Calls of kernels that PyTorch follows: by the kernel's operator. torch.compile traces these functions as any Python.

What a call gives that makes its outputs is here too: such calls have gradients.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import forward_ad

from kpt_dsl import runtime
from kpt_dsl.errors import InputError
from kpt_dsl.frontend.outside import Helper
from kpt_dsl.runtime.made import only_or_all, with_dtypes
from kpt_dsl.runtime.torch_op import NAMESPACE, first_input, new_outputs, operator_name

if TYPE_CHECKING:
    from kpt_dsl.definition import Definition

_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._functorch.maybe_current_level
_tracing = torch._C._get_tracing_state


def is_followed(arguments: Mapping[str, Any]) -> bool:
    """Whether somebody sees operators on tensors: a mode (fake tensors, make_fx, counters), torch.func, torch.jit.trace,
    forward-mode differentiation. Autograd asks the tensors themselves; torch.compile does not come by here."""
    seen = _modes() or _transforms() is not None or _tracing() is not None or forward_ad._current_level >= 0
    return bool(seen) and any(isinstance(value, torch.Tensor) for value in arguments.values())


def operator(kernel: "Definition", arguments: Mapping[str, Any], config: Any, backend: str | None) -> tuple[Any, list[Any]]:
    """The operator for arguments by name, outputs to be made as their ``torch.dtype``; and what it is called on.

    Raises InputError where some outputs are given, and some to be made.
    """
    fixed: list[Any] = []
    helpers: list[tuple[str, int]] = []
    given: list[Any] = []
    for name, value in arguments.items():
        if isinstance(value, Helper):
            helpers.append((name, id(value)))
        elif name in kernel.statics:
            fixed += [name, _known(value)]
        elif value is None or isinstance(value, torch.dtype):
            fixed += [name, value]
        else:
            given.append(value)
    if len({isinstance(arguments[name], torch.dtype) for name in kernel.outputs if arguments[name] is not None}) > 1:
        raise InputError(f"{kernel.name}: of outputs {', '.join(kernel.outputs)} give either all as tensors or all as dtypes")
    knobs = tuple([(name, _known(value)) for name, value in (config or {}).items()])
    name = operator_name(id(kernel), tuple(helpers), backend, knobs, *fixed)
    return getattr(getattr(torch.ops, NAMESPACE), name).default, given


def by_operator(kernel: "Definition", arguments: Mapping[str, Any], config: Any, backend: str | None) -> Any:
    """Call the operator. Raises InputError for tensors that carry tangents of forward-mode differentiation."""
    if not torch.compiler.is_dynamo_compiling():
        _refuse_tangents(kernel, arguments)
    overload, given = operator(kernel, arguments, config, backend)
    return overload(*given)


def outputs(kernel: "Definition", args: tuple[Any, ...], named: dict[str, Any], config: Any, backend: str | None) -> Any:
    """Run a kernel and give its outputs, new tensors: ``Kernel.torch``."""
    arguments = with_dtypes(kernel, args, named, "torch", _is_dtype, lambda given: first_input(kernel, given).dtype)
    if (
        torch.compiler.is_dynamo_compiling()
        or is_followed(arguments)
        or (torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in arguments.values()))
    ):
        return by_operator(kernel, arguments, config, backend)
    made = new_outputs(kernel, arguments)
    runtime.call(kernel, {**arguments, **made}, config, backend)
    return only_or_all(made.values())


def _is_dtype(value: Any) -> bool:
    return isinstance(value, torch.dtype)


def _known(value: Any) -> Any:
    """A value that specialises: a number that is symbolic while a program is traced becomes the one that it stands for."""
    if isinstance(value, torch.SymInt):
        return int(value)
    if isinstance(value, torch.SymFloat):
        return float(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        (value,) = {value}  # torch.compile does not keep numbers in sets symbolic
    return value


def _refuse_tangents(kernel: "Definition", arguments: Mapping[str, Any]) -> None:
    if forward_ad._current_level < 0:
        return
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor) and forward_ad.unpack_dual(value).tangent is not None:
            raise InputError(
                f"{kernel.name}: {name} carries a tangent, and a kernel has no forward-mode derivative; give its primal, or "
                f"write what is to be differentiated with PyTorch's operations"
            )
