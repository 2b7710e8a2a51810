"""From a call's arguments to an instance, remembered: binding anew on each call would cost more than launching.

What is remembered is asked of each argument's layout, type and kind; values are looked at by nobody.
"""

import threading
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from kpt_dsl import arrays
from kpt_dsl.errors import InputError
from kpt_dsl.frontend.outside import Helper
from kpt_dsl.instance import Instance
from kpt_dsl.values import told_apart

if TYPE_CHECKING:
    from kpt_dsl.definition import Definition

_KEPT = 4096


class _Bound(NamedTuple):
    """An instance, and which tensors it was bound to are not what they seem: ``negated`` mean the negative of what their memory
    holds, ``graded`` need gradients."""

    instance: Instance
    negated: tuple[str, ...]
    graded: tuple[str, ...]


_known: dict[Hashable, _Bound] = {}
_lock = threading.Lock()


def bind(kernel: "Definition", arguments: Mapping[str, Any]) -> tuple[Instance, Mapping[str, Any]]:
    """The instance of a call, and its arguments by name, with inputs whose memory holds their values.

    Raises InputError for arguments that do not fit, outputs that are negated views, tensors without memory, and, where
    gradients are recorded, tensors that need them.
    """
    try:
        key = (
            kernel,
            tuple([arrays.layout(arguments[name]) for name in kernel.tensors]),
            tuple([arguments[name] is None for name in kernel.scalars]),
            kernel.now().hash,
            tuple([_static(arguments[name]) for name in kernel.statics]),
        )
        known = _known.get(key)
    except (
        AttributeError,
        RuntimeError,
        TypeError,
    ):  # no array, one without memory, or an argument that cannot be a key
        return _first(kernel, arguments).instance, arguments
    if known is None:
        known = _first(kernel, arguments)
        with _lock:
            while len(_known) >= _KEPT:
                _known.pop(next(iter(_known)))
            _known[key] = known
    if known.graded:
        _refuse_gradients(kernel, known.graded)
    if known.negated:
        arguments = {**arguments, **_resolved(arguments, known.negated)}
    return known.instance, arguments


def _static(value: Any) -> Hashable:
    """All that an instance keeps of a static argument."""
    return value.now() if isinstance(value, Helper) else told_apart(value)


def _first(kernel: "Definition", arguments: Mapping[str, Any]) -> _Bound:
    present = {name: arguments[name] for name in kernel.tensors if arguments[name] is not None}
    torch = {name: tensor for name, tensor in present.items() if arrays.library(tensor) == "torch"}
    negated = tuple(name for name, tensor in torch.items() if tensor.is_neg())
    if outputs := [name for name in negated if kernel.roles[name] == "out"]:
        raise InputError(
            f"{kernel.name}: output {outputs[0]} is a negated view, as of a conjugated tensor: what a kernel writes to its "
            f"memory would be read with the other sign; give a tensor of its own, and copy"
        )
    instance = Instance.bind(kernel, {**arguments, **_resolved(arguments, negated)})
    for name, array in present.items():
        if trouble := arrays.why_no_memory(array):
            raise InputError(f"{kernel.name}: {name} {trouble}")
    return _Bound(instance, negated, tuple(name for name, tensor in torch.items() if tensor.requires_grad))


def _resolved(arguments: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: arguments[name].resolve_neg() for name in names}


def _refuse_gradients(kernel: "Definition", names: tuple[str, ...]) -> None:
    import torch

    if torch.is_grad_enabled():
        raise without_gradient(kernel, names[0])


def without_gradient(kernel: "Definition", name: str) -> InputError:
    """For a tensor that requires grad in a call that autograd could not follow."""
    if kernel.roles[name] == "in" and kernel.backward is not None:
        if name in kernel.backward.gives:
            return InputError(
                f"{kernel.name}: {name} requires grad, and a call that writes into tensors it is given has no gradient: "
                f"{kernel.name}.torch(...), which gives new ones, has"
            )
        return InputError(
            f"{kernel.name}: {name} requires grad, and {kernel.backward.name} gives no gradient of it: let it give one, or "
            f"give {name}.detach()"
        )
    gradient = f", or give it a gradient ({kernel.name}.gradient)" if kernel.roles[name] == "in" else ""
    return InputError(
        f"{kernel.name}: {name} requires grad, and a kernel has no gradient of its own: call it under torch.no_grad() "
        f"or in a torch.autograd.Function, or give {name}.detach(){gradient}"
    )
