"""Kernels that the tests of the Triton emitter share: one of each kind of loop, mask and access."""

import kpt_dsl as kd


@kd.kernel(x="M N", out="M N")
def softmax(x: kd.In, out: kd.Out) -> None:
    """Whole rows."""
    for m in kd.parallel(kd.tile("M")):
        row = x[m, :]
        e = kd.exp(row - kd.max(row, axis=1)[:, None])
        out[m, :] = e / kd.sum(e, axis=1)[:, None]


@kd.kernel(x="M N", total="M")
def row_sum(x: kd.In, total: kd.Out) -> None:
    """A loop that carries a sum."""
    for m in kd.parallel(kd.tile("M")):
        seen = kd.zeros([m])
        for n in kd.sequential(kd.tile("N")):
            seen += kd.sum(x[m, n], axis=1)
        total[m] = seen


@kd.function
def gelu(x):  # type: ignore[no-untyped-def]
    return 0.5 * x * (1.0 + kd.erf(x * 0.7071067811865476))


@kd.kernel(x="M K", weight="N K", bias="N", y="M N")
def linear(x: kd.In, weight: kd.In, bias: kd.In, y: kd.Out, activation: kd.Static) -> None:
    """A product with an epilogue."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        acc = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K")):
            acc = kd.dot(x[m, k], weight[n, k].T, acc)
        if bias is not None:
            acc += bias[n][None, :]
        y[m, n] = acc if activation is None else activation(acc)


@kd.kernel(x="B M K", weight="N K", y="B M N")
def batched(x: kd.In, weight: kd.In, y: kd.Out) -> None:
    """A product with an outer loop that has no tiles."""
    for b, m, n in kd.parallel("B", kd.tile("M"), kd.tile("N")):
        acc = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K")):
            acc = kd.dot(x[b, m, k], weight[n, k].T, acc)
        y[b, m, n] = acc


@kd.kernel(q="B H M D", k="B G N D", v="B G N D", lengths="B", o="B H M D")
def attention(
    q: kd.In, k: kd.In, v: kd.In, lengths: kd.In, o: kd.Out, scale: kd.Float, window: kd.Int, causal: kd.Static
) -> None:
    """A loop with bounds of its own, from tile positions and from memory, and masks that split it."""
    for b, h, m in kd.parallel("B", "H", kd.tile("M")):
        g = h // kd.group("H", "G")
        ahead = kd.size("N") - kd.size("M")
        first, last = 0, kd.size("N")
        if lengths is not None:
            last = lengths[b]
        if causal:
            last = kd.minimum(last, m.stop + ahead)
        if window is not None:
            first = m.start + ahead - window + 1
        query = q[b, h, m, :]
        top, total, acc = kd.full([m], -kd.inf), kd.zeros([m]), kd.zeros([m, "D"])
        for n in kd.sequential(kd.tile("N"), start=first, stop=last):
            s = kd.dot(query, k[b, g, n, :].T) * scale
            if causal:
                s = kd.where(n.index[None, :] <= m.index[:, None] + ahead, s, -kd.inf)
            if window is not None:
                s = kd.where(n.index[None, :] > m.index[:, None] + ahead - window, s, -kd.inf)
            new = kd.maximum(top, kd.max(s, axis=1))
            shift = kd.where(new == -kd.inf, 0.0, new)
            p = kd.exp(s - shift[:, None])
            fade = kd.exp(top - shift)
            total = total * fade + kd.sum(p, axis=1)
            acc = kd.dot(p, v[b, g, n, :], acc * fade[:, None])
            top = new
        o[b, h, m, :] = acc / kd.where(total == 0.0, 1.0, total)[:, None]


@kd.kernel(a="M K", b="N K", y="M N")
def product(a: kd.In, b: kd.In, y: kd.Out) -> None:
    """Of 8-bit floats, stored as whatever y is."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        acc = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K")):
            acc = kd.dot(a[m, k], b[n, k].T, acc)
        y[m, n] = acc


@kd.kernel(x="M N", out="M N")
def taken(x: kd.In, out: kd.Out) -> None:
    """Names that generated code would like for itself."""
    for m in kd.parallel(kd.tile("M")):
        m_start = x[m, :]
        M = kd.max(m_start, axis=1)
        program, BLOCK_M, tl = kd.exp(m_start - M[:, None]), 2.0, 1.0
        x_base = kd.sum(program, axis=1) * BLOCK_M * tl
        out[m, :] = program / x_base[:, None] * kd.tanh(tl * BLOCK_M)


@kd.kernel(a="M K", b="N K", scale_a="M", scale_b="N", y="M N")
def scaled(a: kd.In, b: kd.In, scale_a: kd.In, scale_b: kd.In, y: kd.Out) -> None:
    """A product whose epilogue reads what was loaded ahead of it."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        rows, columns = scale_a[m], scale_b[n]
        acc = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K")):
            acc = kd.dot(a[m, k], b[n, k].T, acc)
        y[m, n] = acc * rows[:, None] * columns[None, :]


@kd.kernel(x="N", y="N")
def apply(x: kd.In, y: kd.Out, fn: kd.Static) -> None:
    """An elementwise function."""
    for n in kd.parallel(kd.tile("N")):
        y[n] = fn(x[n])


@kd.kernel(i="N", quotient="N", remainder="N")
def divide(i: kd.In, quotient: kd.Out, remainder: kd.Out, by: kd.Int) -> None:
    """Integer division of what may be negative."""
    for n in kd.parallel(kd.tile("N")):
        quotient[n] = i[n] // by
        remainder[n] = i[n] % by
