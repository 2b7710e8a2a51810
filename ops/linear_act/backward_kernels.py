"""The kernels of a linear layer with its activation in training, written once for every device.

z = x @ weight.T + bias is the pre-activation, y = activation(z), and dz = dy * activation'(z) is what the gradients of all
three arguments are made from.
"""

import kpt_dsl as kd
from kpt.ops.linear_act.activations import FLAT
from kpt.ops.linear_act.kernels import ABSENT


@kd.kernel(x="M K", weight="N K", bias="N", y="M N", z="M N", weight_t="K N")
def linear_act_fwd_saving(
    x: kd.In, weight: kd.In, bias: kd.In, y: kd.Out, z: kd.Out, activation: kd.Static, weight_t: kd.In = ABSENT
) -> None:
    """``linear_act_fwd`` that keeps its pre-activation besides: float16, which does not hold all of them, as far out as
    gradients differ."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        acc = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K")):
            acc = kd.dot(x[m, k], weight[n, k].T if weight_t is None else weight_t[k, n], acc)
        if bias is not None:
            acc += bias[n][None, :]
        if z.dtype == kd.f16:
            z[m, n] = kd.where(acc > FLAT, FLAT, kd.where(acc < -FLAT, -FLAT, acc))
        else:
            z[m, n] = acc
        y[m, n] = activation(acc)


@kd.kernel(x="M K", weight="N K", bias="N", dy="M N", dz="M N", weight_t="K N")
def linear_act_bwd_dz_recomputing(
    x: kd.In, weight: kd.In, bias: kd.In, dy: kd.In, dz: kd.Out, gradient: kd.Static, weight_t: kd.In = ABSENT
) -> None:
    """dz = gradient(dy, z), where nobody kept z: the product of the forward once more, with another epilogue."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        acc = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K")):
            acc = kd.dot(x[m, k], weight[n, k].T if weight_t is None else weight_t[k, n], acc)
        if bias is not None:
            acc += bias[n][None, :]
        dz[m, n] = gradient(dy[m, n], acc)


@kd.kernel(dy="M N", z="M N", dz="M N")
def linear_act_bwd_dz(dy: kd.In, z: kd.In, dz: kd.Out, gradient: kd.Static) -> None:
    """dz = gradient(dy, z)."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        dz[m, n] = gradient(dy[m, n], z[m, n])


@kd.kernel(dy="M N", z="M N", dz="M N", partial="P N")
def linear_act_bwd_dz_sums(dy: kd.In, z: kd.In, dz: kd.Out, partial: kd.Out, gradient: kd.Static) -> None:
    """dz = gradient(dy, z), and float32 sums of its columns over P shares of the rows."""
    for p, n in kd.parallel("P", kd.tile("N")):
        total = kd.zeros([n])
        for m in kd.sequential(kd.tile("M"), share=p):
            part = gradient(dy[m, n], z[m, n])
            dz[m, n] = part
            total += kd.sum(part, axis=0)
        partial[p, n] = total


@kd.kernel(dz="M N", weight="N K", dx="M K", weight_t="K N")
def linear_act_bwd_dx(dz: kd.In, weight: kd.In, dx: kd.Out, weight_t: kd.In = ABSENT) -> None:
    """dx = dz @ weight, accumulated in float32."""
    for m, k in kd.parallel(kd.tile("M"), kd.tile("K")):
        acc = kd.zeros([m, k])
        for n in kd.sequential(kd.tile("N")):
            acc = kd.dot(dz[m, n], weight[n, k] if weight_t is None else weight_t[k, n].T, acc)
        dx[m, k] = acc


@kd.kernel(dz="M N", x="M K", dw="N K")
def linear_act_bwd_dw(dz: kd.In, x: kd.In, dw: kd.Out) -> None:
    """dw = dz.T @ x, accumulated in float32."""
    for n, k in kd.parallel(kd.tile("N"), kd.tile("K")):
        acc = kd.zeros([n, k])
        for m in kd.sequential(kd.tile("M")):
            acc = kd.dot(dz[m, n].T, x[m, k], acc)
        dw[n, k] = acc
