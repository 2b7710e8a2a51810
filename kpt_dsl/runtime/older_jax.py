"""Generated Pallas text under JAX 0.7 to 0.9, which PyTorch/XLA needs: what these name otherwise, or have not for TPUs."""

from typing import Any

RENAMED = (
    ("manual_axis_type.varying", "vma"),
    ("jax.sharding.ManualAxisType(varying=frozenset().union(*varying))", "frozenset().union(*varying)"),
    ("manual_axis_type=axes", "vma=axes"),
    ("lax.erf(", "older_erf("),
    ("jnp.full(", "older_full("),
)

HELPERS = '''

def older_full(shape, value, dtype):
    """jnp.full, which copies an array to a device; a kernel cannot."""
    return jnp.broadcast_to(value, shape).astype(dtype) if isinstance(value, jax.Array) else jnp.full(shape, value, dtype)


def older_erf(x):
    """lax.erf as XLA computes it, after Eigen: a fraction of polynomials, which is 1 in float32 where x is cut off."""
    x = jnp.clip(x, -3.832506856900711, 3.832506856900711)
    xx = x * x
    above, below = jnp.zeros_like(x), jnp.zeros_like(x)
    for factor in (0.00022905065861350646, 0.0034082910107109506, 0.050955695062380861, 0.18520832239976145, 1.128379143519084):
        above = above * xx + factor
    for factor in (-1.1791602954361697e-7, 0.000023547966471313185, 0.0010179625278914885, 0.014070470171167667,
                   0.11098505178285362, 0.49746925110067538, 1.0):
        below = below * xx + factor
    return x * above / below
'''
"""JAX before 0.10 has no error function for TPUs, and ``jnp.full`` of an array asks for a copy."""


def is_older(jax: Any) -> bool:
    """Whether the package is a release before 0.10."""
    return not hasattr(jax.sharding, "ManualAxisType")


def adapted(text: str) -> str:
    """Text for JAX 0.10 as older ones take it."""
    for name, older in RENAMED:
        text = text.replace(name, older)
    return text + HELPERS
