"""The RMS-norm kernels, written once for every device."""

import kpt_dsl as kd


@kd.kernel(x="M N", weight="N", y="M N")
def rms_norm_fwd(x: kd.In, weight: kd.In, y: kd.Out, eps: kd.Float) -> None:
    """y = x / sqrt(mean(x * x) + eps) * weight, a row at a time, statistics in float32.

    Zhang & Sennrich 2019, arXiv:1910.07467.
    """
    for m in kd.parallel(kd.tile("M")):
        if kd.choice("whole_row", True, False):
            row = x[m, :].to(kd.f32)
            rstd = kd.rsqrt(kd.sum(row * row, axis=1) / kd.size("N") + eps)
            normal = row * rstd[:, None]
            if weight is not None:
                normal = normal * weight[:][None, :]
            y[m, :] = normal
        else:
            squares = kd.zeros([m])
            for n in kd.sequential(kd.tile("N")):
                part = x[m, n].to(kd.f32)
                squares += kd.sum(part * part, axis=1)
            rstd = kd.rsqrt(squares / kd.size("N") + eps)
            for n2 in kd.sequential(kd.tile("N")):
                scaled = x[m, n2] * rstd[:, None]
                if weight is not None:
                    scaled = scaled * weight[n2][None, :]
                y[m, n2] = scaled
