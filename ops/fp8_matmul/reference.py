"""The FP8 product in native PyTorch: contract, oracle (float64 scales in, float64 arithmetic) and last fallback.

Written with plain products, which every device has; ``torch._scaled_mm`` wants certain extents, layouts and chips.
"""

import torch


def fp8_matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """``(a @ b) * scale_a * scale_b + bias``; float32 arithmetic, float64 where the scales are."""
    compute = scale_a.dtype
    product = (a.to(compute) @ b.to(compute)) * scale_a * scale_b
    return (product if bias is None else product + bias.to(compute)).to(out_dtype)
