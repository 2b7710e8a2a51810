"""Kernels that index with what was loaded or given with the call, and the scalars around it."""

import kpt_dsl as kd


@kd.kernel(table="V D", index="M", y="M D")
def rows(table: kd.In, index: kd.In, y: kd.Out) -> None:
    for m in kd.parallel("M"):
        y[m, :] = table[index[m], :]


@kd.kernel(table="V D", index="M", y="M D")
def tiled_rows(table: kd.In, index: kd.In, y: kd.Out) -> None:
    """By a variable, in a loop, along tiles."""
    for m in kd.parallel("M"):
        for d in kd.sequential(kd.tile("D")):
            i = index[m]
            y[m, d] = table[i, d]


@kd.kernel(table="V D", first="M", second="M", y="M D")
def two_tables(table: kd.In, first: kd.In, second: kd.In, y: kd.Out) -> None:
    for m in kd.parallel("M"):
        i = first[m]
        y[m, :] = table[i, :] + 10.0 * table[second[m], :] + 100.0 * table[first[second[m]], :]


@kd.kernel(table="V D", index="M", y="M D")
def rows_or(table: kd.In, index: kd.In, y: kd.Out) -> None:
    """What is no row is 7."""
    for m in kd.parallel("M"):
        i = index[m]
        y[m, :] = kd.where((i >= 0) & (i < kd.size("V")), table[i, :], 7.0)


@kd.function
def fetched(table: kd.Value, i: kd.Value) -> kd.Value:
    """A row, twice."""
    row = table[i, :]
    return row + row


@kd.kernel(table="V D", index="M", y="M D")
def rows_or_else(table: kd.In, index: kd.In, y: kd.Out) -> None:
    """The load in the second branch, and one in a helper inside a branch inside a branch."""
    for m in kd.parallel("M"):
        i = index[m]
        low = kd.where(i < 0, 7.0, kd.where(i < kd.size("V"), fetched(table, i), 8.0))
        y[m, :] = kd.where(i >= kd.size("V"), 0.0, kd.where(i < 0, 0.0, table[i, :])) + low


@kd.kernel(x="N", keep="N", y="N")
def elements_or(x: kd.In, keep: kd.In, y: kd.Out, ahead: kd.Int) -> None:
    """A single element a program; the condition is loaded too."""
    for n in kd.parallel("N"):
        y[n] = kd.where(keep[n], x[n + ahead], -1.0)


@kd.kernel(table="V D", index="M", y="M D")
def unguarded(table: kd.In, index: kd.In, y: kd.Out) -> None:
    """The load stands before the condition, so that the condition is not the load's."""
    for m in kd.parallel("M"):
        i = index[m]
        row = table[i, :]
        y[m, :] = kd.where((i >= 0) & (i < kd.size("V")), row, 7.0)


@kd.kernel(x="M D", index="M", y="V D")
def scattered(x: kd.In, index: kd.In, y: kd.Out) -> None:
    for m in kd.parallel("M"):
        y[index[m], :] = x[m, :]


@kd.kernel(x="M D", y="D")
def one_row(x: kd.In, y: kd.Out, i: kd.Int) -> None:
    for d in kd.parallel(kd.tile("D")):
        y[d] = x[i, d]


@kd.kernel(x="M D", y="M")
def sixth(x: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        y[m] = x[m, 5]


@kd.kernel(x="M D", y="M D")
def into_sixth(x: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        y[m, 5] = kd.sum(x[m, :], axis=1)


@kd.kernel(x="M D", y="M")
def last(x: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        y[m] = x[m, kd.size("D") - 1]


@kd.kernel(x="M D", y="M")
def sixth_where_there_is_one(x: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        y[m] = kd.where(kd.size("D") > 5, x[m, 5], -1.0)


@kd.kernel(q="H D", k="G D", y="H D")
def grouped(q: kd.In, k: kd.In, y: kd.Out) -> None:
    for h in kd.parallel("H"):
        y[h, :] = q[h, :] + k[h // kd.group("H", "G"), :]


@kd.kernel(x="N D", index="M", y="M D")
def clamped(x: kd.In, index: kd.In, y: kd.Out) -> None:
    for m in kd.parallel("M"):
        i = kd.maximum(kd.minimum(index[m], kd.size("N") - 1), 0)
        y[m, :] = x[i, :]


@kd.kernel(x="N", low="B", high="B", sums="B", counts="B")
def bounded(x: kd.In, low: kd.In, high: kd.In, sums: kd.Out, counts: kd.Out) -> None:
    """Bounds that are loaded, and scalars that loops carry."""
    for b in kd.parallel("B"):
        total, count = kd.full([], 0.0), kd.full([], 0, kd.i32)
        for n in kd.sequential(kd.tile("N"), start=low[b], stop=high[b]):
            total = total + kd.sum(x[n], axis=0)
            count = count + kd.sum(kd.where(n.index >= 0, 1, 0), axis=0)
        sums[b] = total
        counts[b] = count


@kd.kernel(x="M N", stop="M", y="M", found="M")
def largest(x: kd.In, stop: kd.In, y: kd.Out, found: kd.Out) -> None:
    """A float that begins at minus infinity, and a condition that a loop carries."""
    for m in kd.parallel("M"):
        best, above = kd.full([], -kd.inf), stop[m] > 1000
        for n in kd.sequential(kd.tile("N"), stop=stop[m]):
            top = kd.max(x[m, n], axis=0)
            best = kd.maximum(best, top)
            above = above | (top > 1.0)
        y[m] = best
        found[m] = kd.where(above, 1, 0)


@kd.kernel(x="M D", scale="M", flag="M", y="M D", z="M")
def scaled(x: kd.In, scale: kd.In, flag: kd.In, y: kd.Out, z: kd.Out) -> None:
    """Loaded scalars in arithmetic, and as conditions."""
    for m in kd.parallel("M"):
        other = kd.where(~flag[m] & (scale[m] > 0.0), scale[m], -1.0)
        y[m, :] = kd.where(flag[m], x[m, :] * scale[m], other)
        z[m] = kd.where(~flag[m], 1, 2)
