"""torch dtypes by the short names that kernels, keys and the command line use."""

import torch

from kpt_dsl import dtypes
from kpt_dsl.errors import InputError

TORCH = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f8e4m3": torch.float8_e4m3fn,
    "f8e5m2": torch.float8_e5m2,
}

KERNEL_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""Element types that generated kernels compute on; float64 is served by PyTorch."""

FLOATS = (*KERNEL_FLOATS, torch.float64)
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a short name. Raises InputError for one that tensors of an op cannot have."""
    known = TORCH.get(dtypes.dtype(name).name)
    if known is None:
        raise InputError(f"dtype {name!r} is not one that ops take; accepted are {', '.join(TORCH)}")
    return known
