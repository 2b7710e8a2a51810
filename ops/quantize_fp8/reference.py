"""FP8 quantisation in native PyTorch: contract, oracle (float64 in, float64 arithmetic) and last fallback."""

import torch

from kpt.ops.quantize_fp8.kernels import SMALLEST


def quantize_fp8(x: torch.Tensor, granularity: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, scale) such that y * scale is about x."""
    largest = torch.finfo(dtype).max
    wide = x if x.dtype == torch.float64 else x.float()
    scale = largest_magnitude(wide, granularity).clamp_min(SMALLEST) / largest
    return (wide / scale).clamp(-largest, largest).to(dtype).contiguous(), scale.float()


def largest_magnitude(x: torch.Tensor, granularity: str) -> torch.Tensor:
    """max |x|: of the whole tensor, shape (); or of each row, shape (..., 1). Zero where there are no elements."""
    if granularity == "row":
        return x.abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_zeros((*x.shape[:-1], 1))
    return x.abs().amax() if x.numel() else x.new_zeros(())
