"""Cross-entropy and its gradient, of rows as long as a vocabulary."""

import kpt_dsl as kd


@kd.kernel(x="M N", target="M", loss="M", lse="M")
def cross_entropy(x: kd.In, target: kd.In, loss: kd.Out, lse: kd.Out, ignored: kd.Int) -> None:
    """loss = log(sum(exp(x))) - x[target], a row at a time; 0 where the target is ``ignored``."""
    for m in kd.parallel(kd.tile("M")):
        top, total, hit = kd.full([m], -kd.inf), kd.zeros([m]), kd.zeros([m])
        for n in kd.sequential(kd.tile("N")):
            part = x[m, n].to(kd.f32)
            new_top = kd.maximum(top, kd.max(part, axis=1))
            total = total * kd.exp(top - new_top) + kd.sum(kd.exp(part - new_top[:, None]), axis=1)
            hit += kd.sum(kd.where(n.index[None, :] == target[m][:, None], part, 0.0), axis=1)
            top = new_top
        lse[m] = top + kd.log(total)
        loss[m] = kd.where(target[m] == ignored, 0.0, top + kd.log(total) - hit)


@cross_entropy.gradient
@kd.kernel(x="M N", target="M", lse="M", dloss="M", dx="M N")
def cross_entropy_backward(
    x: kd.In, target: kd.In, lse: kd.In, dloss: kd.In, dx: kd.Out, ignored: kd.Int
) -> None:
    """dx = (softmax(x) - one_hot(target)) * dloss"""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        factor = kd.where(target[m] == ignored, 0.0, dloss[m])
        one_hot = (n.index[None, :] == target[m][:, None]).to(kd.f32)
        dx[m, n] = (kd.exp(x[m, n] - lse[m][:, None]) - one_hot) * factor[:, None]
