"""The cross-entropy kernels, written once for every device."""

from typing import Any

import kpt_dsl as kd

ABSENT: Any = None
"""What an argument is that a call does not have."""


@kd.function
def capped(x: kd.Value, softcap: kd.Value) -> kd.Value:
    """softcap * tanh(x / softcap)."""
    return softcap * kd.tanh(x * (1.0 / softcap))


@kd.kernel(x="M N", target="M", loss="M", lse="M")
def cross_entropy_fwd(
    x: kd.In, target: kd.In, loss: kd.Out, lse: kd.Out,
    ignored: kd.Int, smoothing: kd.Float = ABSENT, z_loss: kd.Float = ABSENT, softcap: kd.Positive = ABSENT,
) -> None:  # fmt: skip
    """loss = (1 - smoothing) * (lse - x[target]) + smoothing * (lse - mean(x)) + z_loss * lse ** 2, where lse is
    log(sum(exp(x))), a row at a time, in float32; 0 where the target is ``ignored``. With ``softcap``, x is ``capped`` first.

    The maximum and the sum are carried from tile to tile: a row is read once (Milakov & Gimelshein 2018, arXiv:1805.02867).
    """
    for m in kd.parallel(kd.tile("M")):
        hit = kd.where(target[m] == ignored, 0.0, x[m, target[m]].to(kd.f32))
        if softcap is not None:
            hit = capped(hit, softcap)
        top, total, plain = kd.full([m], -kd.inf), kd.zeros([m]), kd.zeros([m])
        for n in kd.sequential(kd.tile("N")):
            part = x[m, n].to(kd.f32)
            if softcap is not None:
                part = capped(part, softcap)
            new_top = kd.maximum(top, kd.max(part, axis=1))
            # A row that has had no probable class yet has -inf here; subtracting that would be NaN.
            shift = kd.where(new_top == -kd.inf, 0.0, new_top)
            total = total * kd.exp(top - shift) + kd.sum(kd.exp(part - shift[:, None]), axis=1)
            if smoothing is not None:
                plain += kd.sum(part, axis=1)
            top = new_top
        size = top + kd.log(total)
        lse[m] = size
        cost = kd.log(total) + (top - hit)  # exact where the target is nearly all: size would cancel against it
        if smoothing is not None:
            cost = (1.0 - smoothing) * cost + smoothing * (size - plain / kd.size("N"))
        if z_loss is not None:
            cost += z_loss * size * size
        loss[m] = kd.where(target[m] == ignored, 0.0, cost)


@kd.kernel(losses="M", target="M", total="P", kept="P")
def partial_losses(losses: kd.In, target: kd.In, total: kd.Out, kept: kd.Out, ignored: kd.Int) -> None:
    """The sum of the losses, and the number of targets that are not ``ignored``, of each of P shares of the rows."""
    for p in kd.parallel("P"):
        cost, count = kd.zeros([]), kd.zeros([])
        for m in kd.sequential(kd.tile("M"), share=p):
            cost += kd.sum(losses[m], axis=0)
            count += kd.sum((target[m] != ignored).to(kd.f32), axis=0)
        total[p] = cost
        kept[p] = count


@kd.kernel(total="P", kept="P", loss="ONE", count="ONE")
def reduce_losses(total: kd.In, kept: kd.In, loss: kd.Out, count: kd.Out, mean: kd.Static) -> None:
    """The sum of the losses, or their mean over the targets that count, and how many do; always added up in the same order."""
    for one in kd.parallel("ONE"):
        cost, rows = kd.sum(total[:], axis=0), kd.sum(kept[:], axis=0)
        count[one] = rows
        loss[one] = cost / rows if mean else cost
