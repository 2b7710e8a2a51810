"""What type a module's own code gives under autocast on a GPU, found without one: on tensors that have no values.

Autocast there computes some operations in float32 whatever they are given, ``pow`` among them, and what they give stays so.
"""

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from kpt.ops.replace import proof

CASE = proof.Case(torch.bfloat16, 1.0, 1.0)

PLACE = torch.device("cuda", 0)


def widens(trial: proof.Trial) -> bool:
    """Whether a module's own forward gives another type than it is given, bfloat16, under autocast on a GPU, or may."""

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.empty(shape, dtype=CASE.dtype, device=PLACE)

    on, dtype = torch.is_autocast_enabled(PLACE.type), torch.get_autocast_dtype(PLACE.type)
    torch.set_autocast_enabled(PLACE.type, True)  # which torch.autocast does not do where there is no GPU
    torch.set_autocast_dtype(PLACE.type, CASE.dtype)
    try:
        with proof.undisturbed(torch.device("cpu")), torch.no_grad(), FakeTensorMode():
            y: Any = trial(CASE, draw).forward()
    except Exception:  # whatever a stranger's code raises, or PyTorch without a GPU
        return True
    finally:
        torch.set_autocast_enabled(PLACE.type, on)
        torch.set_autocast_dtype(PLACE.type, dtype)
    return y.dtype is not CASE.dtype
