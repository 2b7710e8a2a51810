"""Causal attention of sequences that lie one behind the other."""

import kpt_dsl as kd


@kd.kernel(q="T H D", k="T G D", v="T G D", cu="C", o="T H D")
def packed_attention(q: kd.In, k: kd.In, v: kd.In, cu: kd.In, o: kd.Out, scale: kd.Positive) -> None:
    """Rows cu[i] up to cu[i + 1] are a sequence; H query heads on G key heads."""
    for h, m in kd.parallel("H", kd.tile("T", starts=cu)):
        g = h // kd.group("H", "G")
        top, total, acc = kd.full([m], -kd.inf), kd.zeros([m]), kd.zeros([m, "D"])
        for n in kd.sequential(kd.tile("T"), start=cu[m.group], stop=m.stop):
            s = kd.dot(q[m, h, :], k[n, g, :].T) * scale
            s = kd.where(n.index[None, :] <= m.index[:, None], s, -kd.inf)
            new_top = kd.maximum(top, kd.max(s, axis=1))
            w, fade = kd.exp(s - new_top[:, None]), kd.exp(top - new_top)
            total = total * fade + kd.sum(w, axis=1)
            acc = kd.dot(w, v[n, g, :], acc * fade[:, None])
            top = new_top
        o[m, h, :] = acc / total[:, None]
