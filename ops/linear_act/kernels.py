"""The fused linear + activation kernel, written once for every device."""

import kpt_dsl as kd


@kd.kernel(x="M K", weight="N K", bias="N", y="M N")
def linear_act_fwd(x: kd.In, weight: kd.In, bias: kd.In, y: kd.Out, activation: kd.Static) -> None:
    """y = activation(x @ weight.T + bias): the product accumulates in float32 and is rounded once, behind the activation."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        acc = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K")):
            acc = kd.dot(x[m, k], weight[n, k].T, acc)
        if bias is not None:
            acc += bias[n][None, :]
        y[m, n] = activation(acc)
