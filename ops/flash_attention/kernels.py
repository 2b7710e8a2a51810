"""The attention kernels, written once for every device.

Method: FlashAttention-2 (Dao 2023, arXiv:2307.08691): one pass over the keys with a running maximum and sum a query row;
exponentials to base 2, with log2(e) folded into the scale.
"""

from typing import Any

import kpt_dsl as kd

ABSENT: Any = None
"""What an argument is that a call does not have."""

LOG2E = 1.4426950408889634
LN2: Any = 0.6931471805599453
"""What is left of the scale, in its place, once the queries have it."""


@kd.function
def entry_of(group: kd.Value, entries: kd.Value) -> kd.Value:
    """The packed entry that a group is; the nearest one for those before and behind all entries, which see no key."""
    return kd.minimum(kd.maximum(group - 1, 0), entries - 1)


@kd.function
def squash(s: kd.Value, scale: kd.Value, softcap: kd.Value, dtype: Any) -> kd.Value:
    """tanh(scale * s / softcap), of products of queries and keys of a type. The sigmoid takes fewer instructions, and is off by
    up to 1e-7, near zero too: times a cap, that is less than half precision rounds off the weights, more than float32 does."""
    if dtype == kd.f32:
        return kd.tanh(s * (scale / softcap))
    return 2.0 * kd.sigmoid(s * (2.0 * scale / softcap)) - 1.0


@kd.kernel(
    q="B H M D", k="B G N D", v="B G N E", key_lengths="B", o="B H M E", lse="B H M",
    key_starts="B", seen="B H M N", bias="B H M N", slopes="S H", sinks="H", query_ends="C", key_ends="C",
    table="B W", k_pages="P Z G D", v_pages="P Z G E", span="N",
)  # fmt: skip
def flash_attention_fwd(
    q: kd.In, k: kd.In, v: kd.In, key_lengths: kd.In, o: kd.Out, lse: kd.Out,
    scale: kd.Positive, window: kd.Int, causal: kd.Static,
    left: kd.Int = ABSENT, right: kd.Int = ABSENT, key_starts: kd.In = ABSENT, softcap: kd.Positive = ABSENT,
    seen: kd.In = ABSENT, bias: kd.In = ABSENT, slopes: kd.In = ABSENT, own_end: kd.Static = ABSENT,
    scaled: kd.Static = ABSENT, sinks: kd.In = ABSENT, query_ends: kd.In = ABSENT, key_ends: kd.In = ABSENT,
    table: kd.In = ABSENT, k_pages: kd.In = ABSENT, v_pages: kd.In = ABSENT, span: kd.In = ABSENT, page: kd.Static = ABSENT,
) -> None:  # fmt: skip
    """Softmax attention of queries (B, H, M, D) over keys (B, G, N, D) and values (B, G, N, E); ``lse`` is the natural
    log-sum-exp.

    Query i stands at key position i + N - M (aligned bottom right). It sees key j when key_starts[b] <= j < key_lengths[b] and
    seen[b, h, i, j], and, where ``window`` is given, when the two are less than ``window`` apart, and, where ``causal``, when
    j is not ahead of it. ``left`` and ``right`` are the most that it may be behind and ahead. Where ``own_end``, each entry's
    last query stands at the last of its own keys, key_lengths[b] - 1, which is in N.

    A score is capped, then loses ``slopes`` times the distance, then gets ``bias``; it is kept over ``scale``, which must be
    positive: the running maximum is taken of scaled scores. ``sinks`` are scores of no value, one a head.

    Where ``scaled``, queries are multiplied by scale * log2(e) and rounded to their type, instead of each score. What goes on
    from this ``lse``, as the gradients do, has to be scaled too, for it is that of the rounded queries.

    Packed, with B = 1: group c of the queries, from query_ends[c] up to query_ends[c + 1], sees keys from key_ends[c] up to
    key_ends[c + 1] (``flash_attention_ends``), and the last of them meets the last of these.

    In place of ``k`` and ``v``, a call may have pages of ``page`` of each, (P, page, G, D) and (P, page, G, E): entry b has the
    pages table[b, 0], table[b, 1], ... of them. Of ``span`` only the extent is read, which is N.
    """
    for b, h, m in kd.parallel("B", "H", kd.tile("M", starts=query_ends)):
        g = h // kd.group("H", "G")
        ahead = kd.size("N") - kd.size("M")
        first: kd.Value | int = 0
        last = kd.size("N")
        if key_ends is not None:
            last = key_ends[m.group + 1]
            ahead = last - query_ends[m.group + 1]
        if key_lengths is not None:
            last = key_lengths[b].to(kd.i32)
        if own_end:
            last = kd.minimum(last, kd.size("N"))
            ahead = last - kd.size("M")
        if window is not None:
            first = m.start + ahead - window + 1
        if left is not None:
            first = m.start + ahead - left
        if key_starts is not None:
            first = kd.maximum(first, key_starts[b].to(kd.i32))
        if key_ends is not None:
            first = kd.maximum(first, key_ends[m.group])
        if causal:
            last = kd.minimum(last, m.stop + ahead)
        elif window is not None:
            last = kd.minimum(last, m.stop + ahead + window - 1)
        if right is not None:
            last = kd.minimum(last, m.stop + ahead + right)
        query = q[b, h, m, :]
        if scaled:
            factor, scale = scale * LOG2E, LN2
            query = (query * factor).to(q.dtype)
        top, total, acc = kd.full([m], -kd.inf), kd.zeros([m]), kd.zeros([m, "E"])
        if sinks is not None:
            top, total = kd.full([m], sinks[h] * LOG2E), kd.full([m], 1.0)
        if slopes is not None:
            slope = slopes[b if key_ends is None else entry_of(m.group, kd.size("S")), h] / scale
        for n in kd.sequential(kd.tile("N"), start=first, stop=last):
            position = m.index[:, None] + ahead
            if page is None:
                s = kd.dot(query, k[b, g, n, :].T)
            else:
                s = kd.dot(query, k_pages[table[b, n.index // page], n.index % page, g, :].T)
            if softcap is not None:
                s = squash(s, scale, softcap, q.dtype) * (softcap / scale)
            if slopes is not None:
                s = s - kd.abs(position - n.index[None, :]) * slope
            if bias is not None:
                s = s + bias[b, h, m, n] * (1.0 / scale)
            if seen is not None:
                s = kd.where(seen[b, h, m, n], s, -kd.inf)
            if causal:
                s = kd.where(n.index[None, :] <= position, s, -kd.inf)
            if window is not None:
                s = kd.where(n.index[None, :] > position - window, s, -kd.inf)
                if not causal:
                    s = kd.where(n.index[None, :] < position + window, s, -kd.inf)
            if left is not None:
                s = kd.where(n.index[None, :] >= position - left, s, -kd.inf)
            if right is not None:
                s = kd.where(n.index[None, :] <= position + right, s, -kd.inf)
            # A NaN may be dropped here: it stays in s, and so in p, the sums and the result.
            new_top = kd.maximum(top, kd.max(s, axis=1, drop_nan=True) * (scale * LOG2E), drop_nan=True)
            # A row that has seen no key yet has -inf here; subtracting that would be NaN.
            shift = kd.where(new_top == -kd.inf, 0.0, new_top)
            p = kd.exp2(s * (scale * LOG2E) - shift[:, None])
            fade = kd.exp2(top - shift)
            total = total * fade + kd.sum(p, axis=1)
            if page is None:
                acc = kd.dot(p, v[b, g, n, :], acc * fade[:, None])
            else:
                acc = kd.dot(p, v_pages[table[b, n.index // page], n.index % page, g, :], acc * fade[:, None])
            top = new_top
        o[b, h, m, :] = acc / kd.where(total == 0.0, 1.0, total)[:, None]
        lse[b, h, m] = (top + kd.log2(total)) * LN2


@kd.kernel(cu_q="E", cu_k="E", query_groups="C", keys="C", key_groups="C", queries="C")
def flash_attention_ends(
    cu_q: kd.In, cu_k: kd.In, query_groups: kd.Out, keys: kd.Out, key_groups: kd.Out, queries: kd.Out,
    query_count: kd.Int, key_count: kd.Int,
) -> None:  # fmt: skip
    """Where the groups of packed queries end and where the keys that each sees do, and the same of keys and their queries.

    Beside a group for each entry there are one before all entries and one behind, so that every row is in one: these see none.
    """
    for c in kd.parallel(kd.tile("C")):
        entry = kd.minimum(kd.maximum(c.index - 1, 0), kd.size("E") - 1)
        query, key = cu_q[entry].to(kd.i32), cu_k[entry].to(kd.i32)
        behind = c.index > kd.size("E")
        query_groups[c] = kd.where(behind, query_count, kd.where(c.index == 0, 0, query))
        keys[c] = key
        key_groups[c] = kd.where(behind, key_count, kd.where(c.index == 0, 0, key))
        queries[c] = query
