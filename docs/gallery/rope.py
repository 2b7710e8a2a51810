"""Rotary position embedding, both ways to pair the elements of a row, and the gradients, which turn back."""

import torch

import kpt_dsl as kd


@kd.function
def turned(a: kd.Value, b: kd.Value, cosine: kd.Value, sine: kd.Value) -> kd.Value:
    return a * cosine - b * sine, b * cosine + a * sine


@kd.kernel(x="B T H R P", cosine="T P", sine="T P", y="B T H R P")
def rope_halves(x: kd.In, cosine: kd.In, sine: kd.In, y: kd.Out) -> None:
    """The two of a pair are half a row apart, as in Llama: R is 2."""
    for b, h, t in kd.parallel("B", "H", kd.tile("T")):
        first, second = turned(x[b, t, h, 0, :], x[b, t, h, 1, :], cosine[t, :], sine[t, :])
        y[b, t, h, 0, :] = first
        y[b, t, h, 1, :] = second


@kd.kernel(x="B T H P R", cosine="T P", sine="T P", y="B T H P R")
def rope_neighbours(x: kd.In, cosine: kd.In, sine: kd.In, y: kd.Out) -> None:
    """The two of a pair are neighbours, as in GPT-J: R is 2."""
    for b, h, t in kd.parallel("B", "H", kd.tile("T")):
        even, odd = kd.split(x[b, t, h, :, :])
        even, odd = turned(even, odd, cosine[t, :], sine[t, :])
        y[b, t, h, :, :] = kd.join(even, odd, "R")


@rope_halves.gradient
def rope_halves_backward(cosine: torch.Tensor, sine: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, None, None]:
    return rope_halves.torch(dy, cosine, -sine), None, None


@rope_neighbours.gradient
def rope_neighbours_backward(cosine: torch.Tensor, sine: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, None, None]:
    return rope_neighbours.torch(dy, cosine, -sine), None, None
