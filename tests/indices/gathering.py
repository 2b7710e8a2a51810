"""Kernels that gather, each with what PyTorch makes of the same: by its name, of the sizes that it is given."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import kpt_dsl as kd

Arrays = dict[str, torch.Tensor]


@kd.kernel(ids="M", table="V D", y="M D")
def embedding(ids: kd.In, table: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        y[m, :] = table[ids[m], :]


@kd.kernel(ids="M", table="V D", y="M D")
def embedding_in_tiles(ids: kd.In, table: kd.In, y: kd.Out) -> None:
    """By a variable, in a loop."""
    for m in kd.parallel(kd.tile("M")):
        row = ids[m]
        for d in kd.sequential(kd.tile("D")):
            y[m, d] = table[row, d]


@kd.kernel(x="M N", target="M", loss="M")
def cross_entropy(x: kd.In, target: kd.In, loss: kd.Out, ignored: kd.Int) -> None:
    """The logarithm of the softmax at the target, in one pass."""
    for m in kd.parallel(kd.tile("M")):
        top, total = kd.full([m], -kd.inf), kd.zeros([m])
        for n in kd.sequential(kd.tile("N")):
            part = x[m, n].to(kd.f32)
            new_top = kd.maximum(top, kd.max(part, axis=1))
            total = total * kd.exp(top - new_top) + kd.sum(kd.exp(part - new_top[:, None]), axis=1)
            top = new_top
        counts = target[m] != ignored
        loss[m] = kd.where(counts, top + kd.log(total) - kd.where(counts, x[m, target[m]], 0.0), 0.0)


@kd.kernel(q="N K", scale="N G", y="N K")
def dequantised(q: kd.In, scale: kd.In, y: kd.Out) -> None:
    for n, k in kd.parallel(kd.tile("N"), kd.tile("K")):
        y[n, k] = q[n, k] * scale[n, k.index // 16]


@kd.kernel(codes="M D", book="V", y="M D")
def decoded(codes: kd.In, book: kd.In, y: kd.Out) -> None:
    """By a tile of two axes, of a tensor of one dim."""
    for m in kd.parallel(kd.tile("M")):
        y[m, :] = book[codes[m, :]]


@kd.kernel(x="M N", at="M D", y="M D")
def along_rows(x: kd.In, at: kd.In, y: kd.Out) -> None:
    """torch.gather."""
    for m, d in kd.parallel(kd.tile("M"), kd.tile("D")):
        y[m, d] = x[m, at[m, d]]


@kd.kernel(row="M", column="M", x="V D", y="M")
def elements(row: kd.In, column: kd.In, x: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        y[m] = x[row[m], column[m]]


@kd.kernel(x="M N", y="M")
def diagonal(x: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        y[m] = x[m, m.index]


@kd.kernel(ids="M", order="V", table="V D", y="M D")
def reordered(ids: kd.In, order: kd.In, table: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        y[m, :] = table[order[ids[m]], :]


@kd.kernel(ids="M", table="V D", weight="N D", y="M N")
def product_of_rows(ids: kd.In, table: kd.In, weight: kd.In, y: kd.Out) -> None:
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        acc, row = kd.zeros([m, n]), ids[m]
        for d in kd.sequential(kd.tile("D")):
            acc = kd.dot(table[row, d], weight[n, d].T, acc)
        y[m, n] = acc


@kd.kernel(ids="B M", table="B V D", y="B M D")
def of_each_batch(ids: kd.In, table: kd.In, y: kd.Out) -> None:
    for b, m in kd.parallel("B", kd.tile("M")):
        y[b, m, :] = table[b, ids[b, m], :]


@kd.kernel(x="M D", sums="D")
def every_third(x: kd.In, sums: kd.Out) -> None:
    """A sum over tiles of which some lanes hold no index."""
    for d in kd.parallel("D"):
        total = kd.zeros([])
        for m in kd.sequential(kd.tile("M"), stop=(kd.size("M") + 2) // 3):
            total += kd.sum(x[m.index * 3, d], axis=0)
        sums[d] = total


@kd.kernel(ids="M", table="V D", y="M D")
def embedding_or(ids: kd.In, table: kd.In, y: kd.Out) -> None:
    """What is no row is 7; the condition is a tile, once of two axes and once of the one that the index has."""
    for m in kd.parallel(kd.tile("M")):
        some = (ids[m] >= 0) & (ids[m] < kd.size("V"))
        first = kd.where(some, table[ids[m], 0], 0.0)
        y[m, :] = kd.where(some[:, None], table[ids[m], :] + 0.0 * first[:, None], 7.0)


@kd.kernel(ids="M", table="V D", y="M D")
def embedding_if(ids: kd.In, table: kd.In, y: kd.Out, on: kd.Int) -> None:
    for m in kd.parallel(kd.tile("M")):
        y[m, :] = kd.where(on > 0, table[ids[m], :], 7.0)


@kd.kernel(ids="M", x="M D", grad="V D")
def embedding_gradient(ids: kd.In, x: kd.In, grad: kd.Out) -> None:
    for m, d in kd.parallel(kd.tile("M"), kd.tile("D")):
        grad[ids[m], d] += x[m, d]


@dataclass(frozen=True)
class Case:
    """``want``: the output of the inputs; ``dims``: extents, by how long M is; ``indices``: of which dim a tensor holds any."""

    kernel: kd.Kernel
    want: Callable[[Arrays], Arrays]
    dims: Callable[[int], dict[str, int]]
    indices: dict[str, str]
    scalars: dict[str, Any]
    on_tpu: bool = True


def _case(kernel: kd.Kernel, want: Callable[..., torch.Tensor], indices: str = "", on_tpu: bool = True, /, **more: Any) -> Case:
    """``indices``: "ids:V", the dim that a tensor's elements are indices of."""
    (output,) = (name for name, role in kernel.roles.items() if role == "out")
    dims = {"V": 37, "D": 40, "B": 3, "N": 70} | more.pop("dims", {})

    def sized(size: int) -> dict[str, int]:
        return {d: n for d, n in ({"M": size} | dims).items() if d in kernel.dim_names}

    return Case(
        kernel, lambda given: {output: want(**given)}, sized, dict(pair.split(":") for pair in indices.split()), more, on_tpu
    )


def _cross_entropy(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(x, target.long(), reduction="none", ignore_index=2)


CASES = {
    case.kernel.name: case
    for case in (
        _case(embedding, lambda ids, table: table[ids.long()], "ids:V"),
        _case(embedding_in_tiles, lambda ids, table: table[ids.long()], "ids:V", dims={"D": 300}),
        _case(cross_entropy, _cross_entropy, "target:N", ignored=2),
        _case(dequantised, lambda q, scale: q * scale.repeat_interleave(16, 1)[:, : q.shape[1]], dims={"K": 199, "G": 13}),
        _case(decoded, lambda codes, book: book[codes.long()], "codes:V", False),
        _case(along_rows, lambda x, at: x.gather(1, at.long()), "at:N", False),
        _case(elements, lambda row, column, x: x[row.long(), column.long()], "row:V column:D", False),
        _case(reordered, lambda ids, order, table: table[order.long()[ids.long()]], "ids:V order:V"),
        _case(product_of_rows, lambda ids, table, weight: table[ids.long()] @ weight.T, "ids:V"),
        _case(of_each_batch, lambda ids, table: torch.stack([t[i.long()] for t, i in zip(table, ids, strict=True)]), "ids:V"),
        _case(every_third, lambda x: x[::3].sum(0), dims={"D": 3}),
    )
}
