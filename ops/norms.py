"""What layer norm and RMS norm check alike."""

from collections.abc import Sequence
from typing import Any

import torch

from kpt.ops import checks
from kpt.ops.dtypes import FLOATS


def as_shape(normalized_shape: Any) -> Any:
    """A sequence as a tuple, which can be remembered; what is no sequence is left for ``check_norm`` to refuse."""
    return tuple(normalized_shape) if isinstance(normalized_shape, Sequence) else normalized_shape


def check_norm(op: str, x: Any, normalized_shape: Any, **parameters: Any) -> None:
    """Raises InputError unless the trailing dims of x are ``normalized_shape`` and the parameters have that shape.

    Parameters have the dtype of x, or are float32 beside half-precision x.
    """
    checks.tensor(op, "input", x)
    checks.dtype(op, "input", x.dtype, FLOATS)
    if not isinstance(normalized_shape, Sequence) or isinstance(normalized_shape, str) or not normalized_shape:
        checks.reject(
            op, "normalized_shape", repr(normalized_shape), "a sequence of one or more extents, such as (768,)"
        )
    if tuple(x.shape[-len(normalized_shape) :]) != tuple(normalized_shape):
        checks.reject(
            op, "input", checks.shape_of(x), f"a shape that ends with normalized_shape {tuple(normalized_shape)}"
        )
    for name, parameter in parameters.items():
        if parameter is None:
            continue
        checks.shape(op, name, parameter, normalized_shape, "normalized_shape")
        half = x.dtype in (torch.float16, torch.bfloat16)
        checks.dtype(op, name, parameter.dtype, (x.dtype, torch.float32) if half else (x.dtype,))
        checks.same_device(op, "input", x, **{name: parameter})
