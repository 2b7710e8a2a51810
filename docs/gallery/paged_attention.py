"""Attention of one query over keys in pages that lie anywhere in a pool; its parts are joined as in split-KV decoding."""

import kpt_dsl as kd


@kd.kernel(q="B G R D", k="L S G D", v="L S G D", table="B N", length="B", parts="B G P R D", lse="B G P R")
def paged_parts(
    q: kd.In, k: kd.In, v: kd.In, table: kd.In, length: kd.In, parts: kd.Out, lse: kd.Out, scale: kd.Positive
) -> None:
    """Key i of a sequence is row i % S of page table[b, i // S]; P programs share the pages that length[b] keys fill."""
    for b, g, p in kd.parallel("B", "G", "P"):
        query = q[b, g, :, :]
        top, total, acc = kd.full(["R"], -kd.inf), kd.zeros(["R"]), kd.zeros(["R", "D"])
        pages = (length[b] + kd.size("S") - 1) // kd.size("S")
        each = (pages + kd.size("P") - 1) // kd.size("P")
        for n in kd.sequential("N", start=p * each, stop=kd.minimum(pages, (p + 1) * each)):
            page = table[b, n]
            s = kd.dot(query, k[page, :, g, :].T) * scale
            s = kd.where((n * kd.size("S") + kd.index("S") < length[b])[None, :], s, -kd.inf)
            new_top = kd.maximum(top, kd.max(s, axis=1))
            w, fade = kd.exp(s - new_top[:, None]), kd.exp(top - new_top)
            total = total * fade + kd.sum(w, axis=1)
            acc = kd.dot(w, v[page, :, g, :], acc * fade[:, None])
            top = new_top
        parts[b, g, p, :, :] = acc / kd.where(total == 0.0, 1.0, total)[:, None]
        lse[b, g, p, :] = top + kd.log(total)
