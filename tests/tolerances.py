"""The one table of tolerances: how far a kernel may be from the same computation in float64.

Two things make an error, and the tolerance is their sum, relative to the scale of what was computed:

- rounding the result (and, for products, the operands that were rounded on the way, such as the probabilities of
  attention): a few units in the last place of the narrowest type involved, whatever the length;
- summing ``length`` terms in float32: at worst length * eps, in practice near sqrt(length) * eps, because the
  errors of single additions have either sign. The factor leaves room for the order in which a machine sums.

Compare with ``assert_close``, which measures against the *scale* of the result, not element by element: an element that
cancels to nearly zero carries the rounding errors of its large terms.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

EPS_F32 = 2.0**-23
"""Spacing of float32 numbers near one; products and sums accumulate in float32 everywhere."""

SUM_FACTOR = 4.0
"""Room above sqrt(length) * eps for the order of summation: a serial sum of normal numbers stays under 2."""


@dataclass(frozen=True)
class Rounding:
    """One element type: the spacing of its numbers near one, and how many such spacings a result may be off."""

    eps: float
    units: float


ROUNDING: dict[str, Rounding] = {
    "f32": Rounding(EPS_F32, 16.0),  # exp, erf and rsqrt of the backends differ by a few units
    "f16": Rounding(2.0**-10, 2.0),  # one rounding of the result, one of an operand on the way
    "bf16": Rounding(2.0**-7, 2.0),
    "tf32": Rounding(2.0**-10, 2.0),  # float32 products when the user allowed TF32
    "f8e4m3": Rounding(2.0**-3, 1.0),  # half a unit by rounding to nearest; the other half for ties that f32 error tips
    "f8e5m2": Rounding(2.0**-2, 1.0),
    "i32": Rounding(0.0, 0.0),
}


def tolerance(dtype: str, length: int = 1) -> float:
    """Largest error allowed, as a part of the scale of the result.

    ``dtype`` is the narrowest type that values are rounded to on the way (short name, as in ``kpt_dsl.dtypes``);
    ``length`` is how many terms the longest sum has.
    """
    rounding = ROUNDING[dtype]
    return rounding.units * rounding.eps + (SUM_FACTOR * EPS_F32 * sqrt(max(1, length)) if rounding.eps else 0.0)


def as_float64(array: object) -> NDArray[np.float64]:
    """A torch tensor, JAX array, NumPy array or number as float64 NumPy; bfloat16 and float8 included."""
    if hasattr(array, "detach"):
        array = array.detach().double().cpu().numpy()
    return np.asarray(array).astype(np.float64)


def assert_close(got: object, expected: object, dtype: str, length: int = 1, scale: float | None = None) -> None:
    """Fails unless ``got`` equals ``expected`` within ``tolerance(dtype, length)`` of the scale.

    ``scale`` is the size of the terms that were summed; by default the largest finite magnitude of ``expected``.
    Infinities and NaN must stand in the same places. Shapes must be equal.
    """
    a, b = as_float64(got), as_float64(expected)
    assert a.shape == b.shape, f"shape {a.shape}, expected {b.shape}"
    if a.size == 0:
        return
    finite = np.isfinite(b)
    np.testing.assert_array_equal(a[~finite], b[~finite], err_msg="where the expected result is not finite")
    if not finite.any():
        return
    size = float(np.max(np.abs(b[finite]))) if scale is None else scale
    allowed = tolerance(dtype, length) * size
    error = np.where(finite, np.abs(a - np.where(finite, b, 0.0)), 0.0)
    worst = float(np.max(error)) if not np.isnan(error).any() else float("nan")
    assert worst <= allowed, (
        f"worst error {worst:.3g} at {tuple(int(i) for i in np.unravel_index(np.argmax(error), error.shape))}, "
        f"allowed {allowed:.3g} ({dtype}, sums of {length}, scale {size:.3g})"
    )
