"""How long PyTorch's operations take on a target, by what they move and multiply, at the shares of its rates that they get."""

from typing import TYPE_CHECKING

import torch

from kpt_dsl.dtypes import dtype as named

if TYPE_CHECKING:
    from kpt_dsl.targets import Target

BANDWIDTH_SHARE = 0.6
"""Of a device's bandwidth: the most that PyTorch's norms reached on an H200 (benchmarks/results)."""

PRODUCT_SHARE = 0.7
"""Of a device's rate of products, likewise."""


def microseconds(target: "Target", moved: int, flops: int, dtype: torch.dtype) -> float:
    """Of operations that move so many bytes and do so many floating-point operations in products of a type."""
    rate = target.peak(named(str(dtype).removeprefix("torch.")).name)
    return 1e6 * (moved / (BANDWIDTH_SHARE * target.bandwidth_bytes_per_s) + flops / (PRODUCT_SHARE * rate))
