"""Functions that the text of a Pallas module may call: what JAX says at length, or not quite as a kernel means it."""

from kpt_dsl.emit.ndtr import ndtr
from kpt_dsl.emit.pallas import gathers

HELPERS: dict[str, str] = gathers.HELPERS | {
    "column": '''\
def column(tile, length):
    """The indices of a tile, one a row: (length, 1)."""
    return tile * length + lax.broadcasted_iota(jnp.int32, (length, 1), 0)''',
    "row": '''\
def row(tile, length):
    """The indices of a tile, one a column: (1, length)."""
    return tile * length + lax.broadcasted_iota(jnp.int32, (1, length), 1)''',
    "across": '''\
def across(x, length):
    """A column that all lanes have, (rows, 128), along as many lanes as a tile has."""
    return jnp.concatenate([x] * -(-length // 128), axis=1)[:, :length]''',
    "dot": '''\
def dot(a, b, contract=(1, 0), precision=None):
    """The product of two tiles along one axis of each, in float32."""
    axes = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)''',
    "nearest": '''\
def nearest(tile, bounds, length, count):
    """The tile itself where it holds indices within the bounds, else the nearest that does: nothing useless is fetched."""
    start, stop = bounds
    return jnp.clip(jnp.clip(tile, lax.div(start, length), lax.div(stop - 1, length)), 0, count - 1)''',
    "ndtr": ndtr("jnp").strip(),
    "shift_left": '''\
def shift_left(x, count):
    """By a negative count, or one of all bits or more, none is left."""
    inside = (count >= 0) & (count < 32)
    return jnp.where(inside, jnp.int32(x) << jnp.where(inside, count, 0), 0)''',
    "shift_right": '''\
def shift_right(x, count):
    """By a negative count, or one of all bits or more, the sign is left."""
    return jnp.int32(x) >> jnp.where((count >= 0) & (count < 32), count, 31)''',
    "to_int": '''\
def to_int(x):
    """Towards zero; what is too large saturates, and NaN becomes 0."""
    inside = (x >= -2147483648.0) & (x < 2147483648.0)
    beyond = jnp.where(x > 0.0, 2147483647, jnp.where(x < 0.0, -2147483648, 0)).astype(jnp.int32)
    return jnp.where(inside, jnp.where(inside, x, 0.0).astype(jnp.int32), beyond)''',
    "to_f16": '''\
def to_f16(x):
    """The nearest number of float16, which a TPU does not have: added to 2**13 times its exponent, its lower bits are lost."""
    size = jnp.abs(x)
    exponent = jnp.maximum(lax.bitcast_convert_type(size, jnp.int32) & 0x7F800000, 113 << 23)
    unit = lax.bitcast_convert_type(exponent + (13 << 23), jnp.float32)
    return jnp.sign(x) * jnp.where(size < 65520.0, (size + unit) - unit, jnp.inf)''',
    "saturated": '''\
def saturated(x, largest, dtype):
    """Rounded to a float8 dtype; what is too large becomes its largest number."""
    return jnp.clip(x, -largest, largest).astype(dtype)''',
    "manual_axes": '''\
def manual_axes(*arrays):
    """The axes of a mesh over which any of the arrays varies within jax.shard_map: over them outputs do."""
    varying = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    return jax.sharding.ManualAxisType(varying=frozenset().union(*varying))''',
}
"""Functions that generated text may call; a module carries those that it uses."""
