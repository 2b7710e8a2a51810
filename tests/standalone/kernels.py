"""Kernels of someone who has kpt_dsl and nothing else."""

import kpt_dsl as kd


@kd.kernel(x="M N", out="M N")
def softmax(x: kd.In, out: kd.Out) -> None:
    """out = exp(x) / sum(exp(x)), a row at a time."""
    for m in kd.parallel(kd.tile("M")):
        row = x[m, :]
        e = kd.exp(row - kd.max(row, axis=1)[:, None])
        out[m, :] = e / kd.sum(e, axis=1)[:, None]


@kd.function
def relu(x: kd.Value) -> kd.Value:
    """max(x, 0)."""
    return kd.maximum(x, 0.0)


@kd.kernel(x="M K", weight="N K", bias="N", y="M N")
def linear(x: kd.In, weight: kd.In, bias: kd.In, y: kd.Out, activation: kd.Static) -> None:
    """y = activation(x @ weight.T + bias)."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        acc = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K")):
            acc = kd.dot(x[m, k], weight[n, k].T, acc)
        if bias is not None:
            acc += bias[n][None, :]
        y[m, n] = activation(acc)
