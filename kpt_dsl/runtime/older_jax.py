"""What names in generated text mean under JAX 0.7 to 0.9, which PyTorch/XLA needs. Text is written for JAX 0.10; what these
releases call otherwise, or have not for TPUs, is here."""

from functools import reduce
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

ABOVE = (0.00022905065861350646, 0.0034082910107109506, 0.050955695062380861, 0.18520832239976145, 1.128379143519084)
BELOW = (-1.1791602954361697e-7, 0.000023547966471313185, 0.0010179625278914885, 0.014070470171167667, 0.11098505178285362,
         0.49746925110067538, 1.0)  # fmt: skip
"""The polynomials whose fraction XLA computes the error function by, after Eigen: factors, of the highest power first."""


def erf(x: Any) -> Any:
    """``lax.erf``, which is not lowered for TPUs: a fraction of polynomials, which is 1 in float32 where x is cut off."""
    x = jnp.clip(x, -3.832506856900711, 3.832506856900711)
    above, below = (reduce(lambda found, factor: found * (x * x) + factor, p, jnp.zeros_like(x)) for p in (ABOVE, BELOW))
    return x * above / below


def full(shape: Any, value: Any, dtype: Any) -> Any:
    """``jnp.full``, which copies an array to a device; a kernel cannot."""
    return jnp.broadcast_to(value, shape).astype(dtype) if isinstance(value, jax.Array) else jnp.full(shape, value, dtype)


def array_type(shape: Any, dtype: Any, manual_axis_type: Any) -> Any:
    """``jax.ShapeDtypeStruct``."""
    return jax.ShapeDtypeStruct(shape, dtype, vma=manual_axis_type)


def manual_axes(*arrays: Any) -> Any:
    """The text's own function: the axes of a mesh over which any of the arrays varies."""
    return frozenset().union(*[jax.typeof(array).vma for array in arrays])


def _but(module: ModuleType, **others: Any) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(module), **others})


NAMES = {
    "jax": _but(jax, ShapeDtypeStruct=array_type),
    "jnp": _but(jnp, full=full),
    "lax": _but(lax, erf=erf),
    "manual_axes": manual_axes,
}
"""A generated module's names, where they mean something else."""
