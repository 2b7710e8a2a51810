"""Inputs and outputs that share memory, on the CPU: a load sees what was there before the kernel ran (docs/language.md)."""

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

from kpt_dsl.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from kpt_dsl.definition import Definition

    Array = np.ndarray[Any, np.dtype[Any]]

_WORK = 100_000
"""How long NumPy looks for a common element of two outputs (its ``max_work``), far below a second."""


def refuse_shared_outputs(kernel: "Definition", views: Mapping[str, "Array"]) -> None:
    """Raises InputError where two outputs have an element in common. ``views``: NumPy views of tensors by argument name."""
    import numpy as np

    for one, other in combinations((name for name in views if kernel.roles[name] == "out"), 2):
        try:
            shared = np.shares_memory(views[one], views[other], max_work=_WORK)  # type: ignore[arg-type]  # NumPy's stubs know 0 and -1
        except np.exceptions.TooHardError:
            shared = True
        if shared:
            raise InputError(
                f"{kernel.name}: outputs {one} and {other} share memory, so that chance would tell which of the two is kept; "
                "give each memory of its own"
            )


def overwritten(kernel: "Definition", views: Mapping[str, "Array"]) -> tuple[str, ...]:
    """The inputs that may share memory with an output: a run reads copies of them."""
    import numpy as np

    outputs = [view for name, view in views.items() if kernel.roles[name] == "out"]
    inputs = [name for name in views if kernel.roles[name] == "in"]
    return tuple(name for name in inputs if any(np.may_share_memory(views[name], output) for output in outputs))


def copied(tensor: Any) -> Any:
    """A torch tensor with the same strides in memory of its own, stride 0 included."""
    length = 1 + sum((extent - 1) * step for extent, step in zip(tensor.shape, tensor.stride(), strict=True))
    flat = tensor.detach().as_strided((length if tensor.numel() else 0,), (1,)).clone()
    return flat.as_strided(tensor.shape, tensor.stride(), 0)
