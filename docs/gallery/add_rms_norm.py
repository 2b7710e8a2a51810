"""A residual addition and the RMS norm of its sum."""

import kpt_dsl as kd


@kd.kernel(x="M N", residual="M N", weight="N", total="M N", y="M N")
def add_rms_norm(x: kd.In, residual: kd.In, weight: kd.In, total: kd.Out, y: kd.Out, eps: kd.Float) -> None:
    """total = x + residual; y = total / sqrt(mean(total * total) + eps) * weight, a row at a time."""
    for m in kd.parallel(kd.tile("M")):
        row = (x[m, :] + residual[m, :]).to(total.dtype).to(kd.f32)
        rstd = kd.rsqrt(kd.sum(row * row, axis=1) / kd.size("N") + eps)
        total[m, :] = row
        y[m, :] = row * rstd[:, None] * weight[:][None, :]
