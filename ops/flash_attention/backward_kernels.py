"""The kernels of attention's gradients, written once for every device.

Method: FlashAttention-2 (Dao 2023, arXiv:2307.08691): the probabilities are made again from the saved log-sum-exp. One kernel
walks the keys of each tile of queries and makes dq, another the queries of each tile of keys and makes dk and dv; no two
programs write to one place, so results are the same on every run. In the second kernel scores are transposed (keys by
queries), so that what it multiplies with do and q is in registers as it must be. It can also make dq on its way, five products
where the two make seven: each program then adds to the queries that it meets, in any order, and sums differ in their last bits.
"""

import kpt_dsl as kd
from kpt.ops.flash_attention.kernels import ABSENT, LN2, LOG2E, entry_of, squash


@kd.kernel(
    o="B H M E", do="B H M E", lse="B H M", dlse="B H M", delta="B H M", shift="B H M", dq_sum="B H M D",
    sinks="H", sinks_parts="B H M",
)  # fmt: skip
def flash_attention_rows(
    o: kd.In, do: kd.In, lse: kd.In, dlse: kd.In, delta: kd.Out, shift: kd.Out, dq_sum: kd.Out,
    sinks: kd.In = ABSENT, sinks_parts: kd.Out = ABSENT,
) -> None:  # fmt: skip
    """What the gradients need of each query: ``delta``, sum(o * do) less the gradient of its log-sum-exp, and ``shift``, its
    log-sum-exp to base 2, 0 where it sees no key (there -inf would make NaN of masked scores). The gradient of the values
    takes no ``delta``. ``dq_sum``, where it is to be added to, is cleared. ``sinks_parts``, with ``delta``: what each query
    adds to the gradient of its head's sink."""
    for b, h, m in kd.parallel("B", "H", kd.tile("M")):
        if delta is not None:
            total = kd.sum(o[b, h, m, :] * do[b, h, m, :], axis=1)
            if dlse is not None:
                total = total - dlse[b, h, m]
            delta[b, h, m] = total
        natural = lse[b, h, m]
        shift[b, h, m] = kd.where(natural == -kd.inf, 0.0, natural * LOG2E)
        if sinks_parts is not None:
            sinks_parts[b, h, m] = kd.where(natural == -kd.inf, 0.0, kd.exp(sinks[h] - natural)) * -total
        if dq_sum is not None:
            dq_sum[b, h, m, :] = kd.zeros([m, "D"])


@kd.kernel(
    q="B H M D", k="B G N D", v="B G N E", do="B H M E", delta="B H M", shift="B H M", key_lengths="B", dq="B H M D",
    key_starts="B", seen="B H M N", bias="B H M N", slopes="S H", dbias="B H M N", query_ends="C", key_ends="C",
)  # fmt: skip
def flash_attention_dq(
    q: kd.In, k: kd.In, v: kd.In, do: kd.In, delta: kd.In, shift: kd.In, key_lengths: kd.In, dq: kd.Out,
    scale: kd.Float, window: kd.Int, causal: kd.Static,
    left: kd.Int = ABSENT, right: kd.Int = ABSENT, key_starts: kd.In = ABSENT, softcap: kd.Positive = ABSENT,
    seen: kd.In = ABSENT, bias: kd.In = ABSENT, slopes: kd.In = ABSENT, own_end: kd.Static = ABSENT,
    scaled: kd.Static = ABSENT, dbias: kd.Out = ABSENT, query_ends: kd.In = ABSENT, key_ends: kd.In = ABSENT,
) -> None:  # fmt: skip
    """The gradient of queries (B, H, M, D); scores, and what is visible, are as in ``flash_attention_fwd``. ``dbias``, the
    gradient of ``bias``, is cleared before: it is written where keys may be seen."""
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
        query, up = q[b, h, m, :], do[b, h, m, :]
        if scaled:
            factor, scale = scale * LOG2E, LN2
            query = (query * factor).to(q.dtype)
        top, mean = shift[b, h, m], delta[b, h, m]
        acc = kd.zeros([m, "D"])
        if slopes is not None:
            slope = slopes[b if key_ends is None else entry_of(m.group, kd.size("S")), h] / scale
        for n in kd.sequential(kd.tile("N"), start=first, stop=last):
            key = k[b, g, n, :]
            position = m.index[:, None] + ahead
            s = kd.dot(query, key.T)
            if softcap is not None:
                squashed = squash(s, scale, softcap, q.dtype)
                s = squashed * (softcap / scale)
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
            p = kd.exp2(s * (scale * LOG2E) - top[:, None])
            ds = p * (kd.dot(up, v[b, g, n, :].T) - mean[:, None])
            if dbias is not None:
                dbias[b, h, m, n] = ds
            if softcap is not None:
                ds = ds * (1.0 - squashed * squashed)
            acc = kd.dot(ds, key, acc)
        dq[b, h, m, :] = acc * (factor * LN2 if scaled else scale)


@kd.kernel(
    q="B H M D", k="B G N D", v="B G N E", do="B H M E", delta="B H M", shift="B H M", key_lengths="B",
    dk="B H N D", dv="B H N E", dq_sum="B H M D", key_starts="B", seen="B H M N", bias="B H M N", slopes="S H",
    query_ends="C", key_ends="C",
)  # fmt: skip
def flash_attention_dkdv(
    q: kd.In, k: kd.In, v: kd.In, do: kd.In, delta: kd.In, shift: kd.In, key_lengths: kd.In, dk: kd.Out, dv: kd.Out,
    dq_sum: kd.Out, scale: kd.Float, window: kd.Int, causal: kd.Static,
    left: kd.Int = ABSENT, right: kd.Int = ABSENT, key_starts: kd.In = ABSENT, softcap: kd.Positive = ABSENT,
    seen: kd.In = ABSENT, bias: kd.In = ABSENT, slopes: kd.In = ABSENT, own_end: kd.Static = ABSENT,
    scaled: kd.Static = ABSENT, query_ends: kd.In = ABSENT, key_ends: kd.In = ABSENT,
) -> None:  # fmt: skip
    """The gradients of keys and values, (B, H, N, D) and (B, H, N, E), the part of each query head; scores, and what is
    visible, are as in ``flash_attention_fwd``.

    Keys from key_lengths[b] on, and before key_starts[b], are not masked in the loop: each row of the gradients is that of one
    key, so theirs are cleared at the end. ``dk`` (with ``delta``) or ``dv`` may be None. To ``dq_sum``, float32, the gradient
    of the queries over scale is added; it takes ``dk``. Packed, groups are as in ``flash_attention_fwd``.
    """
    for b, h, n in kd.parallel("B", "H", kd.tile("N", starts=key_ends)):
        g = h // kd.group("H", "G")
        ahead = kd.size("N") - kd.size("M")
        first: kd.Value | int = 0
        last = kd.size("M")
        if own_end:
            ahead = kd.minimum(key_lengths[b].to(kd.i32), kd.size("N")) - kd.size("M")
        if query_ends is not None:
            ahead = key_ends[n.group + 1] - query_ends[n.group + 1]
        if causal:
            first = n.start - ahead
        elif window is not None:
            first = n.start - ahead - window + 1
        if right is not None:
            first = n.start - ahead - right
        if window is not None:
            last = n.stop - ahead + window - 1
        if left is not None:
            last = n.stop - ahead + left
        if query_ends is not None:
            first = kd.maximum(first, query_ends[n.group])
            last = kd.minimum(last, query_ends[n.group + 1])
        if key_lengths is not None:
            first = kd.where(n.start < key_lengths[b].to(kd.i32), first, kd.size("M"))
        if key_starts is not None:
            first = kd.where(n.stop > key_starts[b].to(kd.i32), first, kd.size("M"))
        key = k[b, g, n, :]
        if key_lengths is not None and dq_sum is not None:
            # That sums over keys: what lies beyond the length may hold anything.
            key = kd.where(n.index[:, None] < key_lengths[b].to(kd.i32), key, 0.0)
        if key_starts is not None and dq_sum is not None:
            key = kd.where(n.index[:, None] >= key_starts[b].to(kd.i32), key, 0.0)
        if dk is not None:
            value, acc_k = v[b, g, n, :], kd.zeros([n, "D"])
        if dv is not None:
            acc_v = kd.zeros([n, "E"])
        if scaled:
            factor, scale = scale * LOG2E, LN2
        if slopes is not None:
            slope = slopes[b if query_ends is None else entry_of(n.group, kd.size("S")), h] / scale
        for m in kd.sequential(kd.tile("M"), start=first, stop=last):
            query, up = q[b, h, m, :], do[b, h, m, :]
            if scaled:
                query = (query * factor).to(q.dtype)
            position = m.index[None, :] + ahead
            s = kd.dot(key, query.T)
            if softcap is not None:
                squashed = squash(s, scale, softcap, q.dtype)
                s = squashed * (softcap / scale)
            if slopes is not None:
                s = s - kd.abs(position - n.index[:, None]) * slope
            if bias is not None:
                s = s + bias[b, h, m, n].T * (1.0 / scale)
            if seen is not None:
                s = kd.where(seen[b, h, m, n].T, s, -kd.inf)
            if causal:
                s = kd.where(n.index[:, None] <= position, s, -kd.inf)
            if window is not None:
                s = kd.where(n.index[:, None] > position - window, s, -kd.inf)
                if not causal:
                    s = kd.where(n.index[:, None] < position + window, s, -kd.inf)
            if left is not None:
                s = kd.where(n.index[:, None] >= position - left, s, -kd.inf)
            if right is not None:
                s = kd.where(n.index[:, None] <= position + right, s, -kd.inf)
            p = kd.exp2(s * (scale * LOG2E) - shift[b, h, m][None, :])
            if dv is not None:
                acc_v = kd.dot(p, up, acc_v)
            if dk is not None:
                ds = p * (kd.dot(value, up.T) - delta[b, h, m][None, :])
                if softcap is not None:
                    ds = ds * (1.0 - squashed * squashed)
                if dq_sum is not None:
                    if key_lengths is not None:
                        ds = kd.where(n.index[:, None] < key_lengths[b].to(kd.i32), ds, 0.0)
                    if key_starts is not None:
                        ds = kd.where(n.index[:, None] >= key_starts[b].to(kd.i32), ds, 0.0)
                    dq_sum[b, h, m, :] += kd.dot(key.T, ds).T
                acc_k = kd.dot(ds, query, acc_k)
        if dk is not None:
            if key_lengths is not None:
                acc_k = kd.where(n.index[:, None] < key_lengths[b].to(kd.i32), acc_k, 0.0)
            if key_starts is not None:
                acc_k = kd.where(n.index[:, None] >= key_starts[b].to(kd.i32), acc_k, 0.0)
            dk[b, h, n, :] = acc_k * scale
        if dv is not None:
            if key_lengths is not None:
                acc_v = kd.where(n.index[:, None] < key_lengths[b].to(kd.i32), acc_v, 0.0)
            if key_starts is not None:
                acc_v = kd.where(n.index[:, None] >= key_starts[b].to(kd.i32), acc_v, 0.0)
            dv[b, h, n, :] = acc_v


@kd.kernel(dq_sum="B H M D", dq="B H M D")
def flash_attention_scale(dq_sum: kd.In, dq: kd.Out, scale: kd.Float) -> None:
    """dq from what was added up for it."""
    for b, h, m in kd.parallel("B", "H", kd.tile("M")):
        dq[b, h, m, :] = dq_sum[b, h, m, :] * scale


@kd.kernel(dk_parts="B G R N D", dv_parts="B G R N E", dk="B G N D", dv="B G N E")
def flash_attention_group_sum(dk_parts: kd.In, dv_parts: kd.In, dk: kd.Out, dv: kd.Out) -> None:
    """The gradients of keys and values that R query heads share: the sums of their parts, in the order of the heads.

    ``dk`` and its parts may be None, or ``dv`` and its.
    """
    for b, g, n in kd.parallel("B", "G", kd.tile("N")):
        if dk is not None:
            acc_k = kd.zeros([n, "D"])
        if dv is not None:
            acc_v = kd.zeros([n, "E"])
        for r in kd.sequential(kd.tile("R")):
            if dk is not None:
                acc_k += kd.sum(dk_parts[b, g, r, n, :], axis=0)
            if dv is not None:
                acc_v += kd.sum(dv_parts[b, g, r, n, :], axis=0)
        if dk is not None:
            dk[b, g, n, :] = acc_k
        if dv is not None:
            dv[b, g, n, :] = acc_v
