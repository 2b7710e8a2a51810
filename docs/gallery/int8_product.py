"""A product with weights of eight bits, with a scale for each row of them."""

import kpt_dsl as kd


@kd.kernel(x="M K", weight="N K", scale="N", y="M N")
def int8_product(x: kd.In, weight: kd.In, scale: kd.In, y: kd.Out) -> None:
    """y = x @ (weight * scale[:, None]).T"""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        total = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K")):
            total = kd.dot(x[m, k], weight[n, k].to(kd.f32).T, total)
        y[m, n] = total * scale[n][None, :]
