"""The kernel of cross-entropy's gradient, written once for every device."""

import kpt_dsl as kd
from kpt.ops.cross_entropy.kernels import ABSENT


@kd.kernel(x="M N", target="M", lse="M", dloss="M", dx="M N", count="ONE", dlse="M")
def cross_entropy_bwd(
    dloss: kd.In, x: kd.In, target: kd.In, lse: kd.In, dx: kd.Out, ignored: kd.Int,
    smoothing: kd.Float = ABSENT, spread: kd.Float = ABSENT, z_loss: kd.Float = ABSENT,
    count: kd.In = ABSENT, dlse: kd.In = ABSENT, first: kd.Int = ABSENT, softcap: kd.Positive = ABSENT,
) -> None:  # fmt: skip
    """dx = (softmax(x) * (1 + 2 * z_loss * lse) - (1 - smoothing) * one_hot(target) - spread) * dloss / count, or 0 where the
    target is ``ignored``, plus softmax(x) * dlse: each logit is read once, by the program that writes there.

    ``spread`` is the smoothing over the number of classes. The columns may be some of these only, from ``first`` on. With
    ``softcap``, what is so differentiated is t = softcap * tanh(x / softcap), whose slope is 1 - tanh(x / softcap) ** 2.
    """
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        size = lse[m]
        factor = dloss[m].to(kd.f32)
        if count is not None:
            factor = factor / count[0]
        factor = kd.where(target[m] == ignored, 0.0, factor)
        along = factor
        if z_loss is not None:
            along = factor * (1.0 + 2.0 * z_loss * size)
        if dlse is not None:
            along += dlse[m]
        column = n.index
        if first is not None:
            column = column + first
        is_target = column[None, :] == target[m][:, None]
        pull = kd.where(is_target, factor[:, None], 0.0)
        if smoothing is not None:
            even = factor * spread
            pull = kd.where(is_target, (factor * (1.0 - smoothing) + even)[:, None], even[:, None])
        logit = x[m, n].to(kd.f32)
        if softcap is not None:
            squashed = kd.tanh(logit * (1.0 / softcap))
            logit = softcap * squashed
        slope = kd.exp(logit - size[:, None]) * along[:, None] - pull
        if softcap is not None:
            slope = slope * (1.0 - squashed * squashed)
        dx[m, n] = slope
