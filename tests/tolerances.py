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
    """One element type: the spacing of its numbers near one, how many such spacings a result may be off, and the spacing
    near zero (of its subnormal numbers, where devices keep them)."""

    eps: float
    units: float
    smallest: float


ROUNDING: dict[str, Rounding] = {
    "f32": Rounding(EPS_F32, 16.0, 2.0**-126),  # exp, erf and rsqrt of the backends differ by a few units
    "f16": Rounding(2.0**-10, 2.0, 2.0**-24),  # one rounding of the result, one of an operand on the way
    "bf16": Rounding(2.0**-7, 2.0, 2.0**-126),
    "tf32": Rounding(2.0**-10, 2.0, 2.0**-126),  # float32 products when the user allowed TF32
    "f8e4m3": Rounding(
        2.0**-3, 1.0, 2.0**-9
    ),  # half a unit by rounding to nearest; the other half for ties that f32 error tips
    "f8e5m2": Rounding(2.0**-2, 1.0, 2.0**-16),
    "i32": Rounding(0.0, 0.0, 0.0),
}


def tolerance(dtype: str, length: int = 1) -> float:
    """Largest error allowed, as a part of the scale of the result.

    ``dtype`` is the narrowest type that values are rounded to on the way (short name, as in ``kpt_dsl.dtypes``);
    ``length`` is how many terms the longest sum has.
    """
    kind = ROUNDING[dtype]
    return kind.units * kind.eps + (SUM_FACTOR * EPS_F32 * sqrt(max(1, length)) if kind.eps else 0.0)


def rounding(dtype: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest error allowed for rounding each of these values to ``dtype``, small ones included."""
    kind = ROUNDING[dtype]
    return kind.units * (kind.eps * np.abs(values) + kind.smallest)


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
    b = as_float64(expected)
    finite = b[np.isfinite(b)]
    size = float(np.max(np.abs(finite), initial=0.0)) if scale is None else scale
    assert_within(got, b, tolerance(dtype, length) * size, f"{dtype}, sums of {length}, scale {size:.3g}")


def assert_within(got: object, expected: object, allowed: float | NDArray[np.float64], why: str = "") -> None:
    """Fails unless each element of ``got`` is at most ``allowed`` (one number, or one that broadcasts) from ``expected``.

    Infinities and NaN must stand in the same places. Shapes must be equal.
    """
    a, b = as_float64(got), as_float64(expected)
    assert a.shape == b.shape, f"shape {a.shape}, expected {b.shape}"
    finite = np.isfinite(b)
    np.testing.assert_array_equal(a[~finite], b[~finite], err_msg="where the expected result is not finite")
    error = np.abs(np.where(finite, a, 0.0) - np.where(finite, b, 0.0))
    wrong = ~(error <= allowed)  # NaN is wrong too
    if wrong.any():
        most = np.where(np.isnan(error), np.inf, error - allowed)
        worst = tuple(int(i) for i in np.unravel_index(np.argmax(np.where(wrong, most, -np.inf)), error.shape))
        limit = float(np.broadcast_to(allowed, error.shape)[worst])
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.size} elements are off, the worst at {worst}: {a[worst]:.7g}, "
            f"expected {b[worst]:.7g}, error {error[worst]:.3g}, allowed {limit:.3g}" + (f" ({why})" if why else "")
        )
