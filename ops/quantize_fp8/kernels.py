"""The FP8 quantisation kernels, written once for every device.

A scale maps the largest magnitude of its row (or tensor) to the largest finite number of the FP8 type; an all-zero row gets
the scale of the smallest magnitude, so that nothing divides by zero.
"""

import kpt_dsl as kd

SMALLEST = 1e-12
"""Magnitudes below this quantise as if they were this large."""


@kd.kernel(x="M N", y="M N", scale="M")
def quantize_rows(x: kd.In, y: kd.Out, scale: kd.Out, largest: kd.Float) -> None:
    """Row-wise: scale[m] = max |x[m]| / largest, y = x / scale."""
    for m in kd.parallel(kd.tile("M")):
        if kd.choice("whole_row", True, False):
            row = x[m, :].to(kd.f32)
            size = kd.maximum(kd.max(kd.abs(row), axis=1), SMALLEST)
            y[m, :] = row * (largest / size)[:, None]
            scale[m] = size / largest
        else:
            seen = kd.full([m], SMALLEST)
            for n in kd.sequential(kd.tile("N")):
                seen = kd.maximum(seen, kd.max(kd.abs(x[m, n]), axis=1))
            factor = largest / seen
            for n2 in kd.sequential(kd.tile("N")):
                y[m, n2] = x[m, n2] * factor[:, None]
            scale[m] = seen / largest


@kd.kernel(x="M N", amax="M")
def row_amax(x: kd.In, amax: kd.Out) -> None:
    """amax[m] = max |x[m]|: the first half of tensor-wise quantisation."""
    for m in kd.parallel(kd.tile("M")):
        seen = kd.zeros([m])
        for n in kd.sequential(kd.tile("N")):
            seen = kd.maximum(seen, kd.max(kd.abs(x[m, n]), axis=1))
        amax[m] = seen


@kd.kernel(x="M N", scale="ONE", y="M N")
def quantize_with_scale(x: kd.In, scale: kd.In, y: kd.Out) -> None:
    """Tensor-wise: y = x / scale[0]."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        y[m, n] = x[m, n] / scale[0]
