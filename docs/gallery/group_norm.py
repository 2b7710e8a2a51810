"""Group norm."""

import kpt_dsl as kd


@kd.kernel(x="B G C S", weight="G C", bias="G C", y="B G C S")
def group_norm(x: kd.In, weight: kd.In, bias: kd.In, y: kd.Out, eps: kd.Float) -> None:
    """Each of G groups of C channels, of S elements a channel, less its mean, over its standard deviation."""
    for b, g in kd.parallel("B", "G"):
        mean, squares = kd.full([], 0.0), kd.full([], 0.0)
        for s in kd.sequential(kd.tile("S")):
            part = x[b, g, :, s]
            part_mean = kd.sum(kd.sum(part, axis=1), axis=0) / (kd.size("C") * s.count)
            off = part - part_mean
            delta = part_mean - mean
            seen = s.before + s.count
            squares += kd.sum(kd.sum(off * off, axis=1), axis=0)
            squares += delta * delta * (kd.size("C") * s.before) * s.count / seen
            mean += delta * s.count / seen
        rstd = kd.rsqrt(squares / (kd.size("C") * kd.size("S")) + eps)
        factor = weight[g, :] * rstd
        for s2 in kd.sequential(kd.tile("S")):
            y[b, g, :, s2] = (x[b, g, :, s2] - mean) * factor[:, None] + bias[g, :][:, None]
