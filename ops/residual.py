"""What the kernels of norms have for a residual stream, beside the norm alone."""

from typing import Any

import kpt_dsl as kd

ABSENT: Any = None
"""What an argument is that a call does not have."""


@kd.function
def summed(x: kd.Value, residual: kd.Value, dtype: Any) -> kd.Value:
    """The sum of two parts of tensors of a type, rounded to it, in float32."""
    return (x.to(kd.f32) + residual).to(dtype).to(kd.f32)
