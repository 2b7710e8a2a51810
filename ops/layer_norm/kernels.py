"""The layer-norm kernels, written once for every device."""

import kpt_dsl as kd
from kpt.ops.residual import ABSENT, summed


@kd.kernel(x="M N", weight="N", bias="N", y="M N", residual="M N", new_residual="M N")
def layer_norm_fwd(
    x: kd.In, weight: kd.In, bias: kd.In, y: kd.Out, eps: kd.Float, residual: kd.In = ABSENT, new_residual: kd.Out = ABSENT
) -> None:
    """y = (x - mean) / sqrt(var + eps) * weight + bias, a row at a time, statistics in float32; with a
    ``residual`` that of ``new_residual`` = x + residual, rounded as x is.

    Rows that fit on chip are read once; longer ones in tiles, twice for the statistics' sake and once to write: the mean and
    squared deviations of tiles are merged as in Chan, Golub & LeVeque (1983), so that a large mean does not cancel. Rounding
    the mean of a row that hardly varies costs more than its deviations: what it leaves of a row's mean is taken off again,
    and rows in tiles are counted from the mean of their first. (Sums of a bfloat16, which has 8 bits, are exact: float32
    holds 65,536 of them.)
    """
    for m in kd.parallel(kd.tile("M")):
        if kd.choice("whole_row", True, False):
            row = x[m, :] if residual is None else summed(x[m, :], residual[m, :], x.dtype)
            if residual is not None:
                new_residual[m, :] = row
            total = kd.sum(row, axis=1)
            mean = total / kd.size("N")
            mean += (total - mean * kd.size("N")) / kd.size("N")  # a GPU's quotient may be off by two roundings
            centred = row - mean[:, None]
            if x.dtype != kd.bf16:
                left = kd.sum(centred, axis=1) / kd.size("N")
                centred = centred - left[:, None]
            rstd = kd.rsqrt(kd.sum(centred * centred, axis=1) / kd.size("N") + eps)
            normal = centred * rstd[:, None]
            if weight is not None:
                normal = normal * weight[:][None, :]
            if bias is not None:
                normal = normal + bias[:][None, :]
            y[m, :] = normal
        else:
            origin, mean, squares = kd.zeros([m]), kd.zeros([m]), kd.zeros([m])
            for n in kd.sequential(kd.tile("N")):
                part = x[m, n] if residual is None else summed(x[m, n], residual[m, n], x.dtype)
                if residual is not None:
                    new_residual[m, n] = part
                part_mean = kd.sum(part, axis=1) / n.count
                off = part - part_mean[:, None]
                left = kd.sum(off, axis=1) / n.count
                origin = kd.where(n.before == 0, part_mean, origin)
                delta = part_mean - origin - mean + left
                seen = n.before + n.count
                squares += kd.sum(off * off, axis=1) - left * left * n.count + delta * delta * n.before * n.count / seen
                mean += delta * n.count / seen
            rstd = kd.rsqrt(kd.maximum(squares / kd.size("N"), 0.0) + eps)
            for n2 in kd.sequential(kd.tile("N")):
                scaled = (
                    (x[m, n2] if residual is None else summed(x[m, n2], residual[m, n2], x.dtype))
                    - origin[:, None] - mean[:, None]
                ) * rstd[:, None]  # fmt: skip
                if weight is not None:
                    scaled = scaled * weight[n2][None, :]
                if bias is not None:
                    scaled = scaled + bias[n2][None, :]
                y[m, n2] = scaled
