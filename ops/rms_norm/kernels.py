"""The RMS-norm kernels, written once for every device."""

import kpt_dsl as kd
from kpt.ops.residual import ABSENT, summed


@kd.function
def gained(normal: kd.Value, weight: kd.Value, offset: kd.Value) -> kd.Value:
    """Rows times a gain that is ``offset`` more than the weight."""
    return normal * (weight.to(kd.f32) + offset)[None, :]


@kd.kernel(x="M N", weight="N", y="M N", residual="M N", new_residual="M N")
def rms_norm_fwd(
    x: kd.In, weight: kd.In, y: kd.Out, eps: kd.Float,
    offset: kd.Float = ABSENT, residual: kd.In = ABSENT, new_residual: kd.Out = ABSENT,
) -> None:  # fmt: skip
    """y = x / sqrt(mean(x * x) + eps) * (offset + weight), a row at a time, statistics in float32; with a
    ``residual`` that of ``new_residual`` = x + residual, rounded as x is.

    Zhang & Sennrich 2019, arXiv:1910.07467.
    """
    for m in kd.parallel(kd.tile("M")):
        if kd.choice("whole_row", True, False):
            row = x[m, :].to(kd.f32) if residual is None else summed(x[m, :], residual[m, :], x.dtype)
            if residual is not None:
                new_residual[m, :] = row
            rstd = kd.rsqrt(kd.sum(row * row, axis=1) / kd.size("N") + eps)
            normal = row * rstd[:, None]
            if weight is not None:
                normal = normal * weight[:][None, :] if offset is None else gained(normal, weight[:], offset)
            y[m, :] = normal
        else:
            squares = kd.zeros([m])
            for n in kd.sequential(kd.tile("N")):
                part = x[m, n].to(kd.f32) if residual is None else summed(x[m, n], residual[m, n], x.dtype)
                if residual is not None:
                    new_residual[m, n] = part
                squares += kd.sum(part * part, axis=1)
            rstd = kd.rsqrt(squares / kd.size("N") + eps)
            for n2 in kd.sequential(kd.tile("N")):
                scaled = (x[m, n2] if residual is None else summed(x[m, n2], residual[m, n2], x.dtype)) * rstd[:, None]
                if weight is not None:
                    scaled = scaled * weight[n2][None, :] if offset is None else gained(scaled, weight[n2], offset)
                y[m, n2] = scaled
