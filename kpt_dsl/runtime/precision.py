"""What PyTorch's user allows float32 products to be rounded to. Imports torch: only what runs on its tensors asks."""

from collections.abc import Callable
from typing import Any

import torch

_getter: Callable[[str, str], str] | None = getattr(torch._C, "_get_fp32_precision_getter", None)


def float32_products() -> Any:
    """The word "tf32" where PyTorch's own matrix products on GPUs round float32 to TF32, else another word.

    It is what they ask themselves: the last word of ``torch.set_float32_matmul_precision``, ``allow_tf32``,
    ``torch.backends.cuda.matmul.fp32_precision`` and ``torch.backends.fp32_precision``. ``torch.get_float32_matmul_precision``
    knows the first only, and raises once it was mixed with others.
    """
    if _getter is not None:
        return _getter("cuda", "matmul")
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
