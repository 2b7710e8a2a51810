"""A product with weights of four bits, two a byte, with a scale for each group of columns."""

import kpt_dsl as kd


@kd.kernel(x="M P G K", weight="N G K", scale="N P G", y="M N")
def int4_product(x: kd.In, weight: kd.In, scale: kd.In, y: kd.Out) -> None:
    """y = x @ w.T. Rows of x are P = 2 halves of G groups of K columns; a byte holds the weights of a column of each half."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        total = kd.zeros([m, n])
        for g in kd.sequential("G"):
            bits = weight[n, g, :]
            low = kd.dot(x[m, 0, g, :], (bits << 28 >> 28).to(kd.f32).T)
            high = kd.dot(x[m, 1, g, :], (bits << 24 >> 28).to(kd.f32).T)
            total += low * scale[n, 0, g][None, :] + high * scale[n, 1, g][None, :]
        y[m, n] = total
