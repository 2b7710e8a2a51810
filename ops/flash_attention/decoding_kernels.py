"""The kernels of attention for few queries, as in decoding, written once for every device.

Method: Flash-Decoding (Dao, Haziza, Massa, Sizov 2023): programs share out the keys, each with a maximum and a sum of its own,
and a second kernel puts together what they found, always in the same order. Queries of all heads that share keys are rows of
one tile, so that keys are read once.
"""

import kpt_dsl as kd
from kpt.ops.flash_attention.kernels import ABSENT, LN2, LOG2E, squash


@kd.kernel(
    q="B G S D", k="B G N D", v="B G N E", key_lengths="B", key_starts="B", o="B G P S E", lse="B G P S",
    table="B W", k_pages="R Z G D", v_pages="R Z G E", span="N",
)  # fmt: skip
def flash_attention_parts(
    q: kd.In, k: kd.In, v: kd.In, key_lengths: kd.In, key_starts: kd.In, o: kd.Out, lse: kd.Out,
    scale: kd.Positive, window: kd.Int, queries: kd.Int, causal: kd.Static, softcap: kd.Positive,
    own_end: kd.Static, scaled: kd.Static,
    table: kd.In = ABSENT, k_pages: kd.In = ABSENT, v_pages: kd.In = ABSENT, span: kd.In = ABSENT, page: kd.Static = ABSENT,
) -> None:  # fmt: skip
    """What each of P parts of the keys gives: softmax attention over them alone, and its natural log-sum-exp.

    Rows S are the heads of a group by the ``queries`` of each, one where that is None; what they see, ``scaled``, and keys
    and values in pages, here R of them, are as in ``flash_attention_fwd``.
    """
    for b, g, p, s in kd.parallel("B", "G", "P", kd.tile("S")):
        first: kd.Value | int = 0
        last = kd.size("N")
        if key_lengths is not None:
            last = key_lengths[b].to(kd.i32)
        if own_end:
            last = kd.minimum(last, kd.size("N"))
        ahead = (last if own_end else kd.size("N")) - (1 if queries is None else queries)
        if window is not None:
            first = ahead - window + 1
        if key_starts is not None:
            first = kd.maximum(first, key_starts[b].to(kd.i32))
        query = q[b, g, s, :]
        if scaled:
            factor, scale = scale * LOG2E, LN2
            query = (query * factor).to(q.dtype)
        top, total, acc = kd.full([s], -kd.inf), kd.zeros([s]), kd.zeros([s, "E"])
        for n in kd.sequential(kd.tile("N"), start=first, stop=last, share=p):
            if page is None:
                score = kd.dot(query, k[b, g, n, :].T)
            else:
                score = kd.dot(query, k_pages[table[b, n.index // page], n.index % page, g, :].T)
            if softcap is not None:
                score = squash(score, scale, softcap, q.dtype) * (softcap / scale)
            if queries is not None:
                position = s.index[:, None] % queries + ahead
                if causal:
                    score = kd.where(n.index[None, :] <= position, score, -kd.inf)
                if window is not None:
                    score = kd.where(n.index[None, :] > position - window, score, -kd.inf)
                    if not causal:
                        score = kd.where(n.index[None, :] < position + window, score, -kd.inf)
            # As in flash_attention_fwd.
            new_top = kd.maximum(top, kd.max(score, axis=1, drop_nan=True) * (scale * LOG2E), drop_nan=True)
            shift = kd.where(new_top == -kd.inf, 0.0, new_top)
            weight = kd.exp2(score * (scale * LOG2E) - shift[:, None])
            fade = kd.exp2(top - shift)
            total = total * fade + kd.sum(weight, axis=1)
            if page is None:
                acc = kd.dot(weight, v[b, g, n, :], acc * fade[:, None])
            else:
                acc = kd.dot(weight, v_pages[table[b, n.index // page], n.index % page, g, :], acc * fade[:, None])
            top = new_top
        o[b, g, p, s, :] = acc / kd.where(total == 0.0, 1.0, total)[:, None]
        lse[b, g, p, s] = (top + kd.log2(total)) * LN2


@kd.kernel(parts="B G P R M E", parts_lse="B G P R M", sinks="G R", o="B G R M E", lse="B G R M")
def flash_attention_join(parts: kd.In, parts_lse: kd.In, sinks: kd.In, o: kd.Out, lse: kd.Out) -> None:
    """The attention over all keys, and its log-sum-exp, from those over P parts of them; ``sinks`` are scores of no value."""
    for b, g, r, m in kd.parallel("B", "G", "R", "M"):
        top, total, acc = kd.full([], -kd.inf), kd.zeros([]), kd.zeros(["E"])
        if sinks is not None:
            top, total = sinks[g, r].to(kd.f32), kd.full([], 1.0)
        for p in kd.sequential(kd.tile("P")):
            found = parts_lse[b, g, p, r, m]
            new_top = kd.maximum(top, kd.max(found, axis=0))
            shift = kd.where(new_top == -kd.inf, 0.0, new_top)
            weight = kd.exp(found - shift)
            fade = kd.exp(top - shift)
            total = total * fade + kd.sum(weight, axis=0)
            acc = acc * fade + kd.sum(parts[b, g, p, r, m, :] * weight[:, None], axis=0)
            top = new_top
        o[b, g, r, m, :] = acc / kd.where(total == 0.0, 1.0, total)
        lse[b, g, r, m] = top + kd.log(total)
