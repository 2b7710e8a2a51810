"""The fused linear + activation kernel, written once for every device."""

from typing import Any

import kpt_dsl as kd

ABSENT: Any = None
"""What an argument is that a call does not have."""


@kd.kernel(x="M K", weight="N K", bias="N", y="M N", weight_t="K N")
def linear_act_fwd(
    x: kd.In, weight: kd.In, bias: kd.In, y: kd.Out, activation: kd.Static, weight_t: kd.In = ABSENT
) -> None:
    """y = activation(x @ weight.T + bias): the product accumulates in float32 and is rounded once, behind the activation.

    In place of ``weight``, this and other kernels may have its transpose, ``weight_t``."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        acc = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K")):
            acc = kd.dot(x[m, k], weight[n, k].T if weight_t is None else weight_t[k, n], acc)
        if bias is not None:
            acc += bias[n][None, :]
        y[m, n] = activation(acc)
