"""The kernels of layer norm's gradients, written once for every device.

With x̂ = (x - mean) * rstd and g = dy * weight, of each row: dx = (g - mean(g) - x̂ * mean(g * x̂)) * rstd + added; over all
rows: dweight = sum(dy * x̂), dbias = sum(dy) (Ba, Kiros & Hinton 2016, arXiv:1607.06450). Sums over rows are made in two
stages: each of P programs sums its share, and ``kpt.ops.column_sums.column_sums`` adds the P partial sums, always in the same
order. What rounding leaves of a mean is taken off as in the forward kernel.
"""

import kpt_dsl as kd
from kpt.ops.residual import ABSENT


@kd.kernel(dy="M N", x="M N", weight="N", dx="M N", dweight="P N", dbias="P N", added="M N")
def layer_norm_bwd(
    dy: kd.In, x: kd.In, weight: kd.In, dx: kd.Out, dweight: kd.Out, dbias: kd.Out, eps: kd.Float, added: kd.In = ABSENT
) -> None:
    """dx, and partial sums of dweight and dbias over P shares of the rows, for rows that fit on chip: each is read once.

    The sums of a share stay in registers beside the row. Where they leave it no room it is read again, from the cache, for dx.
    """
    for p in kd.parallel("P"):
        weight_sum, bias_sum = kd.zeros(["N"]), kd.zeros(["N"])
        again = kd.choice("read_again", False, True)
        if weight is not None and not again:
            gain = weight[:]
        for m in kd.sequential(kd.tile("M"), share=p):
            row, slope = x[m, :], dy[m, :]
            total = kd.sum(row, axis=1)
            mean = total / kd.size("N")
            mean += (total - mean * kd.size("N")) / kd.size("N")  # a GPU's quotient may be off by two roundings
            centred = row - mean[:, None]
            if x.dtype != kd.bf16:
                left = kd.sum(centred, axis=1) / kd.size("N")
                centred = centred - left[:, None]
            rstd = kd.rsqrt(kd.sum(centred * centred, axis=1) / kd.size("N") + eps)
            normal = centred * rstd[:, None]
            if dx is not None:
                scaled = slope.to(kd.f32)
                if weight is not None:
                    if again:
                        gain = weight[:]
                    scaled = scaled * gain[None, :]
                along = kd.sum(scaled * normal, axis=1) / kd.size("N")
                across = kd.sum(scaled, axis=1) / kd.size("N")
                if again:
                    row, slope = x[m, :], dy[m, :]
                    rest = row - mean[:, None]
                    if x.dtype != kd.bf16:
                        rest = rest - left[:, None]
                    normal = rest * rstd[:, None]
                    scaled = slope.to(kd.f32)
                    if weight is not None:
                        scaled = scaled * weight[:][None, :]
                dx[m, :] = (
                    (scaled - across[:, None] - normal * along[:, None]) * rstd[:, None]
                    if added is None
                    else (scaled - across[:, None] - normal * along[:, None]) * rstd[:, None] + added[m, :]
                )
            if dweight is not None:
                weight_sum += kd.sum(slope * normal, axis=0)
            if dbias is not None:
                bias_sum += kd.sum(slope, axis=0)
        if dweight is not None:
            dweight[p, :] = weight_sum
        if dbias is not None:
            dbias[p, :] = bias_sum


@kd.kernel(dy="M N", x="M N", weight="N", dx="M N", added="M N")
def layer_norm_bwd_dx(
    dy: kd.In, x: kd.In, weight: kd.In, dx: kd.Out, eps: kd.Float, added: kd.In = ABSENT
) -> None:
    """dx alone, a row at a time: whole, or in tiles as ``layer_norm_bwd_rows`` and ``layer_norm_bwd_tiles`` do."""
    for m in kd.parallel(kd.tile("M")):
        if kd.choice("whole_row", True, False):
            row = x[m, :]
            total = kd.sum(row, axis=1)
            mean = total / kd.size("N")
            mean += (total - mean * kd.size("N")) / kd.size("N")  # a GPU's quotient may be off by two roundings
            centred = row - mean[:, None]
            if x.dtype != kd.bf16:
                left = kd.sum(centred, axis=1) / kd.size("N")
                centred = centred - left[:, None]
            rstd = kd.rsqrt(kd.sum(centred * centred, axis=1) / kd.size("N") + eps)
            normal = centred * rstd[:, None]
            scaled = dy[m, :].to(kd.f32)
            if weight is not None:
                scaled = scaled * weight[:][None, :]
            across = kd.sum(scaled, axis=1) / kd.size("N")
            along = kd.sum(scaled * normal, axis=1) / kd.size("N")
            dx[m, :] = (
                (scaled - across[:, None] - normal * along[:, None]) * rstd[:, None]
                if added is None
                else (scaled - across[:, None] - normal * along[:, None]) * rstd[:, None] + added[m, :]
            )
        else:
            origin, mean, squares = kd.zeros([m]), kd.zeros([m]), kd.zeros([m])
            across, products = kd.zeros([m]), kd.zeros([m])
            for n in kd.sequential(kd.tile("N")):
                part = dy[m, n].to(kd.f32)
                if weight is not None:
                    part = part * weight[n][None, :]
                origin, mean, squares, across, products = _merged(
                    origin, mean, squares, across, products, x[m, n], part, n.before, n.count
                )
            rstd = kd.rsqrt(kd.maximum(squares / kd.size("N"), 0.0) + eps)
            along = products * rstd / kd.size("N")
            for n2 in kd.sequential(kd.tile("N")):
                rest = dy[m, n2].to(kd.f32)
                if weight is not None:
                    rest = rest * weight[n2][None, :]
                rest = rest - across[:, None] - (x[m, n2] - origin[:, None] - mean[:, None]) * (rstd * along)[:, None]
                dx[m, n2] = rest * rstd[:, None] if added is None else rest * rstd[:, None] + added[m, n2]


@kd.kernel(dy="M N", x="M N", weight="N", origin="M", mean="M", rstd="M", across="M", along="M")
def layer_norm_bwd_rows(
    dy: kd.In, x: kd.In, weight: kd.In, origin: kd.Out, mean: kd.Out, rstd: kd.Out, across: kd.Out, along: kd.Out,
    eps: kd.Float,
) -> None:  # fmt: skip
    """What the gradients of a row take of all of it, for rows too long to hold: mean (``origin``, and in ``mean``
    what rounding dropped of it), rstd, mean(g) and mean(g * x̂)."""
    for m in kd.parallel(kd.tile("M")):
        centre, rest, squares = kd.zeros([m]), kd.zeros([m]), kd.zeros([m])
        slope, products = kd.zeros([m]), kd.zeros([m])
        for n in kd.sequential(kd.tile("N")):
            part = dy[m, n].to(kd.f32)
            if weight is not None:
                part = part * weight[n][None, :]
            centre, rest, squares, slope, products = _merged(
                centre, rest, squares, slope, products, x[m, n], part, n.before, n.count
            )
        scale = kd.rsqrt(kd.maximum(squares / kd.size("N"), 0.0) + eps)
        origin[m] = centre + rest
        mean[m] = rest - (centre + rest - centre)
        rstd[m] = scale
        across[m] = slope
        along[m] = products * scale / kd.size("N")


@kd.kernel(
    dy="M N",
    x="M N",
    weight="N",
    origin="M",
    mean="M",
    rstd="M",
    across="M",
    along="M",
    dx="M N",
    dweight="P N",
    dbias="P N",
    added="M N",
)
def layer_norm_bwd_tiles(
    dy: kd.In, x: kd.In, weight: kd.In, origin: kd.In, mean: kd.In, rstd: kd.In, across: kd.In, along: kd.In,
    dx: kd.Out, dweight: kd.Out, dbias: kd.Out, added: kd.In = ABSENT,
) -> None:  # fmt: skip
    """dx, and partial sums of dweight and dbias over P shares of the rows, a tile of columns at a time."""
    for p, n in kd.parallel("P", kd.tile("N")):
        weight_sum, bias_sum = kd.zeros([n]), kd.zeros([n])
        for m in kd.sequential(kd.tile("M"), share=p):
            slope = dy[m, n]
            normal = (x[m, n] - origin[m][:, None] - mean[m][:, None]) * rstd[m][:, None]
            if dx is not None:
                scaled = slope.to(kd.f32)
                if weight is not None:
                    scaled = scaled * weight[n][None, :]
                dx[m, n] = (
                    (scaled - across[m][:, None] - normal * along[m][:, None]) * rstd[m][:, None]
                    if added is None
                    else (scaled - across[m][:, None] - normal * along[m][:, None]) * rstd[m][:, None] + added[m, n]
                )
            if dweight is not None:
                weight_sum += kd.sum(slope * normal, axis=0)
            if dbias is not None:
                bias_sum += kd.sum(slope, axis=0)
        if dweight is not None:
            dweight[p, n] = weight_sum
        if dbias is not None:
            dbias[p, n] = bias_sum


@kd.function
def _merged(
    origin: kd.Value, mean: kd.Value, squares: kd.Value, across: kd.Value, products: kd.Value,
    part: kd.Value, scaled: kd.Value, before: kd.Value, count: kd.Value,
) -> tuple[kd.Value, kd.Value, kd.Value, kd.Value, kd.Value]:  # fmt: skip
    """The means of x and g, and the sums of squared deviations of x and of its products with g, after another tile.

    Merged as in Chan, Golub & LeVeque (1983), so that a large mean does not cancel; that of x is ``mean`` more than ``origin``,
    which is that of the first tile. ``before`` elements of the row came before the tile,
    which has ``count``.
    """
    seen = before + count
    part_mean = kd.sum(part, axis=1) / count
    part_across = kd.sum(scaled, axis=1) / count
    off = part - part_mean[:, None]
    left = kd.sum(off, axis=1) / count
    origin = kd.where(before == 0, part_mean, origin)
    delta, rise = part_mean - origin - mean + left, part_across - across
    share = delta * before * count / seen
    return (
        origin,
        mean + delta * count / seen,
        squares + kd.sum(off * off, axis=1) - left * left * count + delta * share,
        across + rise * count / seen,
        products + kd.sum(off * scaled, axis=1) - left * part_across * count + rise * share,
    )
