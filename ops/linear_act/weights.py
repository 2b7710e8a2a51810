"""How the weight of a linear layer lies in memory: as (N, K), or as its transpose, which is how GPT-2's ``Conv1D`` keeps it."""

import torch

from kpt.ops.backends import unit_last_stride
from kpt.ops.linear_act.alignment import aligned


def is_transposed(weight: torch.Tensor) -> bool:
    """Whether it is its transpose whose rows are dense, each in memory of its own."""
    (features, inner), (row, column) = weight.shape, weight.stride()
    return inner > 1 and column != 1 and row == 1 and column >= features


def as_it_lies(weight: torch.Tensor, rows: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What kernels take for ``weight`` and ``weight_t``; one is None. A weight that has neither's dense rows is copied, and one
    whose rows should be ``aligned``, for so many rows that it is multiplied with."""
    if is_transposed(weight):
        return None, aligned(weight.mT, rows)
    return aligned(unit_last_stride(weight), rows), None


def gradient_room(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """For the gradient of weight, in its order where it is known: autograd would copy one of another."""
    features, inner = dy.shape[-1], x.shape[-1]
    if weight is not None and is_transposed(weight):
        return dy.new_empty((inner, features)).mT
    return dy.new_empty((features, inner))
