"""A product of each expert with the rows that were sent to it."""

import kpt_dsl as kd


@kd.kernel(x="T K", weight="E N K", cu="C", y="T N")
def grouped_product(x: kd.In, weight: kd.In, cu: kd.In, y: kd.Out) -> None:
    """y = x @ weight[e].T for the rows cu[e] up to cu[e + 1] of expert e."""
    for m, n in kd.parallel(kd.tile("T", starts=cu), kd.tile("N")):
        total = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K")):
            total = kd.dot(x[m, k], weight[m.group, n, k].T, total)
        y[m, n] = total
