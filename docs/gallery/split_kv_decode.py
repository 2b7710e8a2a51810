"""Attention of one query over many keys: programs share out the keys, and a second kernel joins what they found."""

import kpt_dsl as kd


@kd.kernel(q="B G R D", k="B G N D", v="B G N D", length="B", parts="B G P R D", lse="B G P R")
def decode_parts(
    q: kd.In, k: kd.In, v: kd.In, length: kd.In, parts: kd.Out, lse: kd.Out, scale: kd.Positive
) -> None:
    """R query heads a key head; P programs share the first length[b] keys."""
    for b, g, p in kd.parallel("B", "G", "P"):
        query = q[b, g, :, :]
        top, total, acc = kd.full(["R"], -kd.inf), kd.zeros(["R"]), kd.zeros(["R", "D"])
        for n in kd.sequential(kd.tile("N"), stop=length[b], share=p):
            s = kd.dot(query, k[b, g, n, :].T) * scale
            new_top = kd.maximum(top, kd.max(s, axis=1))
            w, fade = kd.exp(s - new_top[:, None]), kd.exp(top - new_top)
            total = total * fade + kd.sum(w, axis=1)
            acc = kd.dot(w, v[b, g, n, :], acc * fade[:, None])
            top = new_top
        parts[b, g, p, :, :] = acc / kd.where(total == 0.0, 1.0, total)[:, None]
        lse[b, g, p, :] = top + kd.log(total)


@kd.kernel(parts="B G P R D", lse="B G P R", o="B G R D")
def decode_join(parts: kd.In, lse: kd.In, o: kd.Out) -> None:
    """What the parts give together: each counts as much as its scores do."""
    for b, g, r in kd.parallel("B", "G", "R"):
        weight = kd.exp(lse[b, g, :, r] - kd.max(lse[b, g, :, r], axis=0))
        o[b, g, r, :] = kd.sum(parts[b, g, :, r, :] * weight[:, None], axis=0) / kd.sum(weight, axis=0)
