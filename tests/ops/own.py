"""Kernels of somebody who writes their own, and what PyTorch computes for them."""

import torch

import kpt_dsl as kd

FACTOR = 2.0


@kd.kernel(x="M N", out="M N")
def softmax(x: kd.In, out: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        row = x[m, :]
        e = kd.exp(row - kd.max(row, axis=1)[:, None])
        out[m, :] = e / kd.sum(e, axis=1)[:, None]


@kd.kernel(out="M N", dout="M N", dx="M N")
def softmax_backward(out: kd.In, dout: kd.In, dx: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        part = out[m, :] * dout[m, :]
        dx[m, :] = part - out[m, :] * kd.sum(part, axis=1)[:, None]


@kd.kernel(x="M N", out="M N")
def soft(x: kd.In, out: kd.Out) -> None:
    """softmax again, which has a gradient."""
    for m in kd.parallel(kd.tile("M")):
        row = x[m, :]
        e = kd.exp(row - kd.max(row, axis=1)[:, None])
        out[m, :] = e / kd.sum(e, axis=1)[:, None]


soft.gradient(softmax_backward)


@kd.function
def relu(x: kd.Value) -> kd.Value:
    return kd.maximum(x, 0.0)


@kd.function
def twice(x: kd.Value) -> kd.Value:
    return x * 2.0


@kd.kernel(x="M N", bias="N", y="M N", sums="M")
def shifted(
    x: kd.In,
    bias: kd.In,
    y: kd.Out,
    scale: kd.Float,
    first: kd.Int,
    activation: kd.Static,
    power: kd.Static = 1,
    sums: kd.Out = None,  # type: ignore[assignment]
) -> None:
    """y = activation(x * scale + bias) * power, zero before column ``first``; their sums a row."""
    for m in kd.parallel(kd.tile("M")):
        value = x[m, :] * scale
        if bias is not None:
            value = value + bias[:][None, :]
        value = activation(value) * power
        y[m, :] = value
        if sums is not None:
            sums[m] = kd.sum(value, axis=1)
        for n in kd.sequential(kd.tile("N"), stop=first):
            y[m, n] = kd.zeros([m, n])


@shifted.gradient
def shifted_backward(  # type: ignore[no-untyped-def]
    x, bias, scale, first, activation, power, dy
) -> tuple[torch.Tensor, torch.Tensor | None]:
    value = x * scale if bias is None else x * scale + bias
    slope = (value > 0).to(x.dtype) if activation is relu else torch.full_like(value, 2.0)
    slope = slope * power * dy
    slope = torch.cat([torch.zeros_like(slope[:, :first]), slope[:, first:]], 1)
    return slope * scale, None if bias is None else slope.sum(0)


def shifted_by_torch(
    x: torch.Tensor, bias: torch.Tensor | None, scale: float, first: int, activation: object, power: float = 1
) -> torch.Tensor:
    value = x * scale if bias is None else x * scale + bias
    value = (value.relu() if activation is relu else value * 2.0) * power
    return torch.cat([torch.zeros_like(value[:, :first]), value[:, first:]], 1)


@kd.kernel(x="N", y="N")
def scaled(x: kd.In, y: kd.Out) -> None:
    for n in kd.parallel(kd.tile("N")):
        y[n] = x[n] * FACTOR


@kd.kernel(index="M", table="V D", y="M D", partial="P D")
def looked_up(index: kd.In, table: kd.In, y: kd.Out, partial: kd.Out = None) -> None:  # type: ignore[assignment]
    for m in kd.parallel("M"):
        y[m, :] = table[index[m], :]
        if partial is not None:
            partial[m, :] = table[index[m], :]
