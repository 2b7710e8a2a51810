"""Functions that a generated Triton module carries when it uses them: what Triton lacks, or rounds otherwise than tile IR."""

from kpt_dsl.emit.ndtr import ndtr

HELPERS = {
    "max_or_nan": '''
@triton.jit
def max_or_nan(a, b):
    """The larger of two, NaN where one is NaN; tl.maximum and tl.max would drop it."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
''',
    "min_or_nan": '''
@triton.jit
def min_or_nan(a, b):
    """The smaller of two, NaN where one is NaN; tl.minimum and tl.min would drop it."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
''',
    "sigmoid": '''
@triton.jit
def sigmoid(x):
    """Gluon has none of its own."""
    return 1.0 / (1.0 + tl.exp(-x))
''',
    "tanh": '''
@triton.jit
def tanh(x):
    """A polynomial near zero, where the exponentials would cancel (Cephes, tanhf): error below 2 ulp."""
    a = tl.abs(x)
    z = x * x
    near = (((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z
    near = (near - 3.33332819422e-1) * z * x + x
    far = 1.0 - 2.0 / (tl.exp(2.0 * a) + 1.0)
    return tl.where(a < 0.625, near, tl.where(x < 0.0, -far, far))
''',
    "ndtr": f"\n@triton.jit\n{ndtr('tl')}",
    "round": '''
@triton.jit
def round(x):
    """To nearest even: added to 2**23, a smaller number loses what lies behind its point."""
    a = tl.abs(x)
    near = (a + 8388608.0) - 8388608.0
    return tl.where((a > 0.0) & (a < 8388608.0), tl.where(x < 0.0, -near, near), x)
''',
    "f32_to_i32": '''
@triton.jit
def f32_to_i32(x):
    """Towards zero; what is too large saturates, and NaN becomes 0. Compilers leave that open."""
    inside = (x >= -2147483648.0) & (x < 2147483648.0)
    beyond = tl.where(x > 0.0, 2147483647, tl.where(x < 0.0, -2147483648, 0))
    return tl.where(inside, tl.cast(tl.where(inside, x, 0.0), tl.int32), beyond)
''',
    "f32_to_i64": '''
@triton.jit
def f32_to_i64(x):
    """Towards zero; what is too large saturates, and NaN becomes 0. Compilers leave that open."""
    inside = (x >= -9223372036854775808.0) & (x < 9223372036854775808.0)
    beyond = tl.where(x > 0.0, 9223372036854775807, tl.where(x < 0.0, -9223372036854775807 - 1, 0))
    return tl.where(inside, tl.cast(tl.where(inside, x, 0.0), tl.int64), beyond)
''',
    "tile_of_group": '''
@triton.jit
def tile_of_group(slot, starts, stride, groups, extent, block: tl.constexpr):
    """The group, the start and the end of the tile in a slot; there is none where these are no more than each other.

    The slots of group g begin at starts[g] // block + g, which never falls, and are one more than it has tiles, at most.
    """
    before = tl.full([], 0, tl.int32)
    for first in tl.range(0, groups, 1024):
        g = first + tl.arange(0, 1024)
        start = tl.load(starts + g.to(tl.int64) * stride, mask=g < groups, other=0)
        before += tl.sum(((start // block + g <= slot) & (g < groups)).to(tl.int32), axis=0)
    group = tl.maximum(before - 1, 0)
    low = tl.load(starts + tl.cast(group, tl.int64) * stride)
    high = tl.minimum(tl.load(starts + (tl.cast(group, tl.int64) + 1) * stride), extent)
    start = low + (slot - low // block - group) * block
    return group, start, tl.where((low >= 0) & (start >= low), high, start)
''',
    "floor_div": '''
@triton.jit
def floor_div(a, b):
    """Integer division that rounds towards minus infinity; Triton's // rounds towards zero, except of numbers it knows."""
    q = a // b
    r = a - q * b
    return tl.where((r != 0) & ((r < 0) != (b < 0)), q - 1, q)
''',
    "floor_mod": '''
@triton.jit
def floor_mod(a, b):
    """The remainder of floor division; Triton's % has the sign of the dividend."""
    r = a - a // b * b
    return tl.where((r != 0) & ((r < 0) != (b < 0)), r + b, r)
''',
    "shift_left": '''
@triton.jit
def shift_left(x, count, bits):
    """By a negative count, or one of all bits or more, none is left."""
    inside = (count >= 0) & (count < bits)
    return tl.where(inside, x << tl.where(inside, count, 0), 0)
''',
    "shift_right": '''
@triton.jit
def shift_right(x, count, bits):
    """By a negative count, or one of all bits or more, the sign is left."""
    return x >> tl.where((count >= 0) & (count < bits), count, bits - 1)
''',
    "f8e4m3_to_f16": '''
@triton.jit
def f8e4m3_to_f16(bits):
    """From the bits of an e4m3 float: exponent and mantissa moved in place, the bias corrected by 2**8."""
    wide = bits.to(tl.uint16)
    half = (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).to(tl.float16, bitcast=True) * 256.0
    return tl.where((wide & 0x7F) == 0x7F, float("nan"), half).to(tl.float16)
''',
    "f32_to_f8e4m3": '''
@triton.jit
def f32_to_f8e4m3(x):
    """To the bits of an e4m3 float, to nearest even, saturating at 448; NaN stays NaN."""
    bits = x.to(tl.uint32, bitcast=True)
    size = tl.minimum(tl.abs(x), 448.0)
    mantissa = size.to(tl.uint32, bitcast=True)
    normal = (mantissa + 0x7FFFF + ((mantissa >> 20) & 1) - (120 << 23)) >> 20
    # Below 2**-6 steps are 2**-9: adding 2**14 leaves the rounded number of steps in the low bits.
    subnormal = (size + 16384.0).to(tl.uint32, bitcast=True) - 0x46800000
    found = tl.where(size < 0.015625, subnormal, normal)
    found = tl.where(x != x, 0x7F, found)
    return (((bits >> 24) & 0x80) | found).to(tl.uint8)
''',
}
"""Name -> text of the function."""
