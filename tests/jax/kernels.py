"""Kernels as users write them."""

from typing import Any

import kpt_dsl as kd


@kd.kernel(x="M N", out="M N")
def softmax(x: kd.In, out: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        row = x[m, :]
        e = kd.exp(row - kd.max(row, axis=1)[:, None])
        out[m, :] = e / kd.sum(e, axis=1)[:, None]


@softmax.gradient
@kd.kernel(out="M N", dout="M N", dx="M N")
def softmax_backward(out: kd.In, dout: kd.In, dx: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        p, slope = out[m, :], dout[m, :]
        dx[m, :] = p * (slope - kd.sum(p * slope, axis=1)[:, None])


@kd.kernel(x="M N", y="M N", total="M", bias="N")
def scaled(x: kd.In, bias: kd.In, y: kd.Out, total: kd.Out, factor: kd.Float, squared: kd.Static = False) -> None:
    """factor * x, squared or not, and a bias where there is one; and the sums of its rows."""
    for m in kd.parallel(kd.tile("M")):
        row = x[m, :] * factor
        if squared:
            row = row * row
        if bias is not None:
            row = row + bias[:][None, :]
        y[m, :] = row
        if total is not None:
            total[m] = kd.sum(row, axis=1)


@scaled.gradient
def scaled_backward(x: Any, dy: Any, dtotal: Any, factor: Any, squared: Any) -> Any:
    """In operations that arrays and tensors share."""
    slope = dy + dtotal[:, None]
    return slope * (2 * factor * factor * x if squared else factor), None


@kd.kernel(x="M N", out="M N")
def doubled(x: kd.In, out: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        out[m, :] = x[m, :] * 2


@kd.kernel(x="M K", weight="N K", bias="N", y="M N")
def linear(x: kd.In, weight: kd.In, bias: kd.In, y: kd.Out) -> None:
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        total = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K")):
            total = kd.dot(x[m, k], weight[n, k].T, total)
        y[m, n] = total + bias[n][None, :]
