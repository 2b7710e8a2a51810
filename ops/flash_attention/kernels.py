"""The attention kernels, written once for every device.

Method: FlashAttention-2 (Dao 2023, arXiv:2307.08691): one pass over the keys with a running maximum and sum a query row;
exponentials to base 2, with log2(e) folded into the scale.
"""

import kpt_dsl as kd

LOG2E = 1.4426950408889634
LN2 = 0.6931471805599453


@kd.kernel(q="B H M D", k="B G N D", v="B G N E", key_lengths="B", o="B H M E", lse="B H M")
def flash_attention_fwd(
    q: kd.In, k: kd.In, v: kd.In, key_lengths: kd.In, o: kd.Out, lse: kd.Out,
    scale: kd.Positive, window: kd.Int, causal: kd.Static,
) -> None:  # fmt: skip
    """Softmax attention of queries (B, H, M, D) over keys (B, G, N, D) and values (B, G, N, E); ``lse`` is the natural
    log-sum-exp.

    Query i stands at key position i + N - M (aligned bottom right). It sees key j when j < key_lengths[b], and, where
    ``window`` is given, when the two are less than ``window`` apart, and, where ``causal``, when j is not ahead of it.
    ``scale`` must be positive: the running maximum is taken of scaled scores.
    """
    for b, h, m in kd.parallel("B", "H", kd.tile("M")):
        g = h // kd.group("H", "G")
        ahead = kd.size("N") - kd.size("M")
        first, last = 0, kd.size("N")
        if key_lengths is not None:
            last = key_lengths[b]
        if window is not None:
            first = m.start + ahead - window + 1
        if causal:
            last = kd.minimum(last, m.stop + ahead)
        elif window is not None:
            last = kd.minimum(last, m.stop + ahead + window - 1)
        query = q[b, h, m, :]
        top, total, acc = kd.full([m], -kd.inf), kd.zeros([m]), kd.zeros([m, "E"])
        for n in kd.sequential(kd.tile("N"), start=first, stop=last):
            position = m.index[:, None] + ahead
            s = kd.dot(query, k[b, g, n, :].T)
            if causal:
                s = kd.where(n.index[None, :] <= position, s, -kd.inf)
            if window is not None:
                s = kd.where(n.index[None, :] > position - window, s, -kd.inf)
                if not causal:
                    s = kd.where(n.index[None, :] < position + window, s, -kd.inf)
            # A NaN may be dropped here: it stays in s, and so in p, the sums and the result.
            new_top = kd.maximum(top, kd.max(s, axis=1, drop_nan=True) * (scale * LOG2E), drop_nan=True)
            # A row that has seen no key yet has -inf here; subtracting that would be NaN.
            shift = kd.where(new_top == -kd.inf, 0.0, new_top)
            p = kd.exp2(s * (scale * LOG2E) - shift[:, None])
            fade = kd.exp2(top - shift)
            total = total * fade + kd.sum(p, axis=1)
            acc = kd.dot(p, v[b, g, n, :], acc * fade[:, None])
            top = new_top
        o[b, h, m, :] = acc / kd.where(total == 0.0, 1.0, total)[:, None]
        lse[b, h, m] = (top + kd.log2(total)) * LN2
