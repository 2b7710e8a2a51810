"""How many of PyTorch's operations a module's own code is, each of which reads and writes what it is given once more."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from kpt.ops.eager import QuickMode
from kpt.ops.replace import proof

CASE = proof.Case(torch.float32, 1.0, 1.0)

STAND_INS = torch.ops.aten.neg.default
"""What those make that stand for the layers around."""


def count(trial: proof.Trial) -> int:
    """Those of a module's own forward, beside views: one at least."""

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.full(shape, scale, dtype=CASE.dtype, device="cpu")

    counted = _Counted()  # type: ignore[no-untyped-call]
    with proof.undisturbed(torch.device("cpu")), torch.no_grad():
        forward = trial(CASE, draw).forward
        with counted:
            forward()
    return max(1, counted.number)


class _Counted(QuickMode):
    number = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.number += func is not STAND_INS and not func.is_view
        operation: Callable[..., Any] = func
        return operation(*args, **(kwargs or {}))
