"""One small call of every op, for tests that hold for all of them."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kpt.ops.registry import get

DIMS = {
    "flash_attention": {"B": 2, "H": 4, "G": 2, "M": 5, "N": 7, "D": 16},
    "flash_attention_backward": {"B": 2, "H": 4, "G": 2, "M": 5, "N": 7, "D": 16},
    "linear_act": {"M": 5, "N": 7, "K": 9},
    "linear_act_saving": {"M": 5, "N": 7, "K": 9},
    "linear_act_backward": {"M": 5, "N": 7, "K": 9},
    "add_layer_norm": {"M": 3, "N": 8},
    "add_rms_norm": {"M": 3, "N": 8},
    "gated_act": {"M": 5, "N": 7},
    "gated_act_backward": {"M": 5, "N": 7},
    "linear_cross_entropy": {"M": 5, "N": 7, "K": 9},
    "linear_cross_entropy_backward": {"M": 5, "N": 7, "K": 9},
    "layer_norm": {"M": 3, "N": 8},
    "layer_norm_backward": {"M": 3, "N": 8},
    "rms_norm": {"M": 3, "N": 8},
    "rms_norm_backward": {"M": 3, "N": 8},
    "cross_entropy": {"M": 3, "N": 8},
    "cross_entropy_backward": {"M": 3, "N": 8},
    "rotary": {"B": 2, "H": 4, "G": 2, "T": 5, "D": 16, "R": 12},
    "rotary_backward": {"B": 2, "H": 4, "G": 2, "T": 5, "D": 16, "R": 12},
    "fp8_matmul": {"M": 16, "N": 32, "K": 48},
    "quantize_fp8": {"M": 4, "N": 9},
}
OPS = tuple(DIMS)


def arguments(op: str, dtype: str = "f32", **flags: Any) -> tuple[Any, ...]:
    """Random arguments, in the order of the op's schema; FP8 for the product whatever the dtype."""
    torch.manual_seed(20)
    return get(op).arguments(DIMS[op], "f8e4m3" if op == "fp8_matmul" else dtype, "cpu", **flags)


def through_torch(op: str) -> Any:
    """The op as torch.library knows it."""
    return getattr(torch.ops.kpt, op).default


def served(op: str) -> dict[str, int]:
    """Calls of an op by implementation so far."""
    from kpt.ops import counters

    return counters()[op]["served"]


class Asked(TorchDispatchMode):
    """Notes the names of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))
