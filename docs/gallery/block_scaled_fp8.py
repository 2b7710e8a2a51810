"""An fp8 product whose operands have scales for blocks: 1 x 128 of the left one, 128 x 128 of the right one."""

import kpt_dsl as kd


@kd.kernel(a="M G K", scale_a="M G", b="J N G K", scale_b="J G", y="M J N")
def block_scaled_fp8(a: kd.In, scale_a: kd.In, b: kd.In, scale_b: kd.In, y: kd.Out) -> None:
    """y = (a * scale_a) @ (b * scale_b).T, of G groups of K = 128 columns and J blocks of N = 128 rows of b."""
    for m, j, n in kd.parallel(kd.tile("M"), "J", kd.tile("N")):
        total = kd.zeros([m, n])
        for g in kd.sequential("G"):
            part = kd.dot(a[m, g, :], b[j, n, g, :].T)
            total += part * (scale_a[m, g] * scale_b[j, g])[:, None]
        y[m, j, n] = total
