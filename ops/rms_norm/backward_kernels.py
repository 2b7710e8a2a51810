"""The kernels of RMS norm's gradients, written once for every device.

With x̂ = x * rstd and g = dy * (offset + weight), of each row: dx = (g - x̂ * mean(g * x̂)) * rstd + added; over all rows:
dweight = sum(dy * x̂) (Zhang & Sennrich 2019, arXiv:1910.07467). Sums over rows are made in two stages: each of P programs sums
its share, and ``kpt.ops.column_sums.column_sums`` adds the P partial sums, always in the same order.
"""

import kpt_dsl as kd
from kpt.ops.residual import ABSENT
from kpt.ops.rms_norm.kernels import gained


@kd.kernel(dy="M N", x="M N", weight="N", dx="M N", dweight="P N", added="M N")
def rms_norm_bwd(
    dy: kd.In, x: kd.In, weight: kd.In, dx: kd.Out, dweight: kd.Out, eps: kd.Float,
    offset: kd.Float = ABSENT, added: kd.In = ABSENT,
) -> None:  # fmt: skip
    """dx, and partial sums of dweight over P shares of the rows, for rows that fit on chip: each is read once.

    The sums of a share stay in registers beside the row. Where they leave it no room it is read again, from the cache, for dx.
    """
    for p in kd.parallel("P"):
        weight_sum = kd.zeros(["N"])
        again = kd.choice("read_again", False, True)
        if weight is not None and not again:
            gain = weight[:]
        for m in kd.sequential(kd.tile("M"), share=p):
            row, slope = x[m, :].to(kd.f32), dy[m, :]
            rstd = kd.rsqrt(kd.sum(row * row, axis=1) / kd.size("N") + eps)
            normal = row * rstd[:, None]
            if dx is not None:
                scaled = slope.to(kd.f32)
                if weight is not None:
                    if again:
                        gain = weight[:]
                    scaled = scaled * gain[None, :] if offset is None else gained(scaled, gain, offset)
                along = kd.sum(scaled * normal, axis=1) / kd.size("N")
                if again:
                    slope = dy[m, :]
                    normal = x[m, :] * rstd[:, None]
                    scaled = slope.to(kd.f32)
                    if weight is not None:
                        scaled = scaled * weight[:][None, :] if offset is None else gained(scaled, weight[:], offset)
                dx[m, :] = (
                    (scaled - normal * along[:, None]) * rstd[:, None]
                    if added is None
                    else (scaled - normal * along[:, None]) * rstd[:, None] + added[m, :]
                )
            weight_sum += kd.sum(slope * normal, axis=0)
        dweight[p, :] = weight_sum


@kd.kernel(dy="M N", x="M N", weight="N", dx="M N", added="M N")
def rms_norm_bwd_dx(
    dy: kd.In, x: kd.In, weight: kd.In, dx: kd.Out, eps: kd.Float, offset: kd.Float = ABSENT, added: kd.In = ABSENT
) -> None:
    """dx alone, a row at a time: whole, or in tiles as ``rms_norm_bwd_rows`` and ``rms_norm_bwd_tiles`` do."""
    for m in kd.parallel(kd.tile("M")):
        if kd.choice("whole_row", True, False):
            row = x[m, :].to(kd.f32)
            rstd = kd.rsqrt(kd.sum(row * row, axis=1) / kd.size("N") + eps)
            normal = row * rstd[:, None]
            scaled = dy[m, :].to(kd.f32)
            if weight is not None:
                scaled = scaled * weight[:][None, :] if offset is None else gained(scaled, weight[:], offset)
            along = kd.sum(scaled * normal, axis=1) / kd.size("N")
            dx[m, :] = (
                (scaled - normal * along[:, None]) * rstd[:, None]
                if added is None
                else (scaled - normal * along[:, None]) * rstd[:, None] + added[m, :]
            )
        else:
            squares, products = kd.zeros([m]), kd.zeros([m])
            for n in kd.sequential(kd.tile("N")):
                part, slope = x[m, n].to(kd.f32), dy[m, n].to(kd.f32)
                if weight is not None:
                    slope = slope * weight[n][None, :] if offset is None else gained(slope, weight[n], offset)
                squares += kd.sum(part * part, axis=1)
                products += kd.sum(part * slope, axis=1)
            rstd = kd.rsqrt(squares / kd.size("N") + eps)
            along = products * rstd / kd.size("N")
            for n2 in kd.sequential(kd.tile("N")):
                rest = dy[m, n2].to(kd.f32)
                if weight is not None:
                    rest = rest * weight[n2][None, :] if offset is None else gained(rest, weight[n2], offset)
                dx[m, n2] = (
                    (rest - x[m, n2] * (rstd * along)[:, None]) * rstd[:, None]
                    if added is None
                    else (rest - x[m, n2] * (rstd * along)[:, None]) * rstd[:, None] + added[m, n2]
                )


@kd.kernel(dy="M N", x="M N", weight="N", rstd="M", along="M")
def rms_norm_bwd_rows(
    dy: kd.In, x: kd.In, weight: kd.In, rstd: kd.Out, along: kd.Out, eps: kd.Float, offset: kd.Float = ABSENT
) -> None:
    """What the gradients of a row take of all of it: rstd and mean(g * x̂), for rows too long to hold."""
    for m in kd.parallel(kd.tile("M")):
        squares, products = kd.zeros([m]), kd.zeros([m])
        for n in kd.sequential(kd.tile("N")):
            part, slope = x[m, n].to(kd.f32), dy[m, n].to(kd.f32)
            if weight is not None:
                slope = slope * weight[n][None, :] if offset is None else gained(slope, weight[n], offset)
            squares += kd.sum(part * part, axis=1)
            products += kd.sum(part * slope, axis=1)
        scale = kd.rsqrt(squares / kd.size("N") + eps)
        rstd[m] = scale
        along[m] = products * scale / kd.size("N")


@kd.kernel(dy="M N", x="M N", weight="N", rstd="M", along="M", dx="M N", dweight="P N", added="M N")
def rms_norm_bwd_tiles(
    dy: kd.In, x: kd.In, weight: kd.In, rstd: kd.In, along: kd.In, dx: kd.Out, dweight: kd.Out,
    offset: kd.Float = ABSENT, added: kd.In = ABSENT,
) -> None:  # fmt: skip
    """dx, and partial sums of dweight over P shares of the rows, a tile of columns at a time."""
    for p, n in kd.parallel("P", kd.tile("N")):
        weight_sum = kd.zeros([n])
        for m in kd.sequential(kd.tile("M"), share=p):
            slope = dy[m, n]
            normal = x[m, n] * rstd[m][:, None]
            if dx is not None:
                scaled = slope.to(kd.f32)
                if weight is not None:
                    scaled = scaled * weight[n][None, :] if offset is None else gained(scaled, weight[n], offset)
                dx[m, n] = (
                    (scaled - normal * along[m][:, None]) * rstd[m][:, None]
                    if added is None
                    else (scaled - normal * along[m][:, None]) * rstd[m][:, None] + added[m, n]
                )
            weight_sum += kd.sum(slope * normal, axis=0)
        dweight[p, n] = weight_sum
