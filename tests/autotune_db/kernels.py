"""Small kernels of a stranger, without registration, for the tests of the tuner; children of the tuner import them by name."""

import kpt_dsl as kd


@kd.kernel(x="M N", y="M N")
def softmax(x: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        row = x[m, :]
        e = kd.exp(row - kd.max(row, axis=1)[:, None])
        y[m, :] = e / kd.sum(e, axis=1)[:, None]


@kd.function
def double(x: kd.Value) -> kd.Value:
    return x + x


@kd.function
def same(x: kd.Value) -> kd.Value:
    return x


@kd.kernel(x="M K", weight="N K", bias="N", y="M N")
def linear(x: kd.In, weight: kd.In, bias: kd.In, y: kd.Out, scale: kd.Float, activation: kd.Static = same) -> None:
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        acc = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K")):
            acc = kd.dot(x[m, k], weight[n, k].T, acc)
        if bias is not None:
            acc = acc + bias[n][None, :]
        y[m, n] = activation(acc) * scale


@kd.kernel(x="M N", y="M N")
def scale_rows(x: kd.In, y: kd.Out) -> None:
    """Walks along a row twice: N is tiled, and still the width of a row."""
    for m in kd.parallel(kd.tile("M")):
        total = kd.zeros([m])
        for n in kd.sequential(kd.tile("N")):
            total = total + kd.sum(x[m, n], axis=1)
        for n in kd.sequential(kd.tile("N")):
            y[m, n] = x[m, n] / total[:, None]


@kd.kernel(q="B H M D", k="B H N D", y="B H M", lengths="B")
def scores(q: kd.In, k: kd.In, y: kd.Out, lengths: kd.In, limit: kd.Int) -> None:
    """The largest score of each query: batch, heads, a whole head dim and a loop over keys."""
    for b, h, m in kd.parallel("B", "H", kd.tile("M")):
        top = kd.full([m], -kd.inf)
        last = kd.size("N")
        if lengths is not None:
            last = lengths[b]
        for n in kd.sequential(kd.tile("N"), stop=last):
            top = kd.maximum(top, kd.max(kd.dot(q[b, h, m, :], k[b, h, n, :].T), axis=1))
        y[b, h, m] = top


@kd.kernel(x="M N", y="N")
def shares_of_rows(x: kd.In, y: kd.Out) -> None:
    """What each column has of the sums of the rows, added up over all rows: a loop before the one that adds."""
    for m in kd.parallel(kd.tile("M")):
        total = kd.zeros([m])
        for n in kd.sequential(kd.tile("N")):
            total = total + kd.sum(x[m, n], axis=1)
        for n in kd.sequential(kd.tile("N")):
            y[n] += kd.sum(x[m, n] / total[:, None], axis=0)


@kd.kernel(x="M N", y="M N")
def below_the_top(x: kd.In, y: kd.Out) -> None:
    """How far each tile is below the largest so far: what is added depends on earlier steps of its loop."""
    for n in kd.parallel(kd.tile("N")):
        top = kd.full([n], -kd.inf)
        for m in kd.sequential(kd.tile("M")):
            top = kd.maximum(top, kd.max(x[m, n], axis=0))
            y[m, n] += x[m, n] - top[None, :]


@kd.kernel(x="B H N", y="B G N")
def group_sums(x: kd.In, y: kd.Out) -> None:
    """Groups of H / G rows added up: which row of the output a program adds to is computed."""
    for b, h, n in kd.parallel("B", "H", kd.tile("N")):
        y[b, h // kd.group("H", "G"), n] += x[b, h, n]


@kd.kernel(x="T D", cu="C", y="T D")
def group_means(x: kd.In, cu: kd.In, y: kd.Out) -> None:
    """Rows less the mean of their group's."""
    for m in kd.parallel(kd.tile("T", starts=cu)):
        seen = kd.zeros(["D"])
        for n in kd.sequential(kd.tile("T"), start=cu[m.group], stop=cu[m.group + 1]):
            seen += kd.sum(x[n, :], axis=0)
        y[m, :] = x[m, :] - (seen / (cu[m.group + 1] - cu[m.group]))[None, :]


@kd.kernel(x="H T D", cu="C", y="T D")
def head_sums(x: kd.In, cu: kd.In, y: kd.Out) -> None:
    """Sums over heads, times the number of the group: added to tiles of groups."""
    for h, m in kd.parallel("H", kd.tile("T", starts=cu)):
        y[m, :] += x[h, m, :] * (m.group + 1)


@kd.kernel(x="M N", scale="M", q="M N")
def quantise(x: kd.In, scale: kd.Out, q: kd.Out) -> None:
    """Rows as whole numbers from -127 to 127."""
    for m in kd.parallel(kd.tile("M")):
        step = kd.max(kd.abs(x[m, :]), axis=1) / 127.0
        scale[m] = step
        q[m, :] = kd.round(x[m, :] / step[:, None])


@kd.kernel(table="V N", ids="M", keep="N", y="M N")
def picked(table: kd.In, ids: kd.In, keep: kd.In, y: kd.Out) -> None:
    """Rows of bytes, by bytes, where a condition holds."""
    for m in kd.parallel(kd.tile("M")):
        y[m, :] = kd.where(keep[:][None, :], table[ids[m], :], 0)
