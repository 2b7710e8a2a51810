"""What PyTorch's user allows float32 products to be rounded to. Imports torch: only what runs on its tensors asks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch


def _by_the_old_setting() -> str:
    """Where PyTorch has no other."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


_getter: Any = getattr(torch._C, "_get_fp32_precision_getter", None)

float32_products: Callable[[], str] = _by_the_old_setting if _getter is None else partial(_getter, "cuda", "matmul")
"""The word "tf32" where PyTorch's own matrix products on GPUs round float32 to TF32, else another one.

It is what they ask themselves: the last word of ``torch.set_float32_matmul_precision``, ``allow_tf32``,
``torch.backends.cuda.matmul.fp32_precision`` and ``torch.backends.fp32_precision``. ``torch.get_float32_matmul_precision``
knows the first only, and raises once it was mixed with others. To ask is part of every warm call that multiplies.
"""
