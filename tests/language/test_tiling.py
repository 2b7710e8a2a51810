"""A text means one thing whatever the config: what depends on how wide tiles are is refused, what is about elements is not."""

from pathlib import Path

import pytest
import torch

import kpt_dsl as kd
from kpt_dsl import KernelError
from tests.language.snippets import lower
from tests.tolerances import assert_close

LOOP = "for m in kd.parallel(kd.tile('M')):\n    "
INNER = LOOP + "for n in kd.sequential(kd.tile('N')):\n        "

REFUSED = {
    "index": (INNER.replace("kd.tile('M')", "'M'") + "row[m] = x[m, n.start]", "n.start"),
    "index of a quotient": (INNER + "y[m, n] = x[m, n] * w[n.start // 2]", "n.start"),
    "store": (INNER + "y[m, n.start] = x[m, 0]", "n.start"),
    "factor": (INNER + "y[m, n] = x[m, n] * n.size", "n.size"),
    "count of a parallel tile": (LOOP + "row[m] = m.count", "m.count"),
    "before a parallel tile": (LOOP + "row[m] = m.before * 1.0", "m.before"),
    "stored": (LOOP + "row[m] = m.stop", "m.stop"),
    "mask": (INNER + "y[m, n] = kd.where(n.index[None, :] >= m.start, x[m, n], 0.0)", "m.start"),
    "scalar condition": (INNER + "y[m, n] = kd.where(n.stop < 5, x[m, n], 0.0)", "n.stop"),
    "filled": (LOOP + "row[m] = kd.full([m], m.start)", "m.start"),
    "through a variable": (LOOP + "first = m.start + 1\n    row[m] = first", "first"),
    "through a helper": (LOOP + "first = double(m.start)\n    row[m] = first * 1.0", "first"),
    "from turn to turn": (
        LOOP + "last, sums = kd.full([], 0, kd.i32), kd.zeros([m])\n    for n in kd.sequential(kd.tile('N')):\n"
        "        sums += kd.sum(x[m, n], axis=1) * last\n        last = n.stop\n    row[m] = sums",
        "last",
    ),
    "count of tiles": (
        LOOP + "turns = kd.full([], 0, kd.i32)\n    for n in kd.sequential(kd.tile('N')):\n        turns += 1\n"
        "    row[m] = turns",
        "turns += 1",
    ),
    "fading by tiles": (
        LOOP + "s = kd.zeros([m])\n    for n in kd.sequential(kd.tile('N')):\n        s = (s + 1.0) * 0.5\n    row[m] = s",
        "s = (s + 1.0) * 0.5",
    ),
    "turn and turn about": (
        LOOP + "a, b = kd.zeros([m]), kd.full([m], 1.0)\n    for n in kd.sequential(kd.tile('N')):\n        a, b = b, a\n"
        "    row[m] = a - b",
        "a, b = b, a",
    ),
}

ALLOWED = {
    "bounds": LOOP + "last = kd.minimum(m.stop + 3, kd.size('N'))\n    sums = kd.zeros([m])\n"
    "    for n in kd.sequential(kd.tile('N'), start=m.start, stop=last):\n"
    "        sums += kd.sum(kd.where(n.index[None, :] == m.index[:, None], x[m, n], 0.0), axis=1)\n    row[m] = sums",
    "bounds by a condition": LOOP + "last = kd.where(m.start < shift, m.stop, 0)\n    sums = kd.zeros([m])\n"
    "    for n in kd.sequential(kd.tile('N'), stop=last):\n"
    "        sums += kd.sum(kd.where(n.index[None, :] < m.index[:, None], x[m, n], 0.0), axis=1)\n    row[m] = sums",
    "a variable that is another thing later": LOOP + "k = m.start\n    k = shift\n    row[m] = k",
    "elements": INNER + "y[m, n] = x[m, n] * (n.count + n.before - n.count)",
    "the largest so far": LOOP + "top = kd.full([], 0, kd.i32)\n    for n in kd.sequential(kd.tile('N')):\n"
    "        top = kd.maximum(top, shift)\n    row[m] = top",
    "turns of an index loop": LOOP + "turns = kd.full([], 0, kd.i32)\n    for n in kd.sequential('N'):\n"
    "        turns += 1\n    row[m] = turns",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_depends_on_the_width_of_tiles_is_refused(name: str, tmp_path: Path) -> None:
    body, culprit = REFUSED[name]
    with pytest.raises(KernelError) as caught:
        lower(tmp_path, body)
    text = str(caught.value)
    line, caret = (part.partition("| ")[2] for part in text.splitlines()[1:3])
    assert line[caret.index("^") : caret.index("^") + caret.count("^")] == culprit, text
    assert "config" in text
    assert ".count" in text or ".before" in text


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_about_elements_or_steers_loops_is_not(name: str, tmp_path: Path) -> None:
    assert lower(tmp_path, ALLOWED[name]).body


@kd.kernel(x="M N", mean="M", squares="M")
def moments(x: kd.In, mean: kd.Out, squares: kd.Out, first: kd.Int, cut: kd.Int) -> None:
    """Of some columns, merged as in Chan, Golub & LeVeque (1983)."""
    for m in kd.parallel(kd.tile("M")):
        centre, sums = kd.zeros([m]), kd.zeros([m])
        for n in kd.sequential(kd.tile("N"), start=first, stop=kd.size("N") - cut):
            part = x[m, n]
            part_mean = kd.sum(part, axis=1) / n.count
            off, delta = part - part_mean[:, None], part_mean - centre
            seen = n.before + n.count
            sums += kd.sum(off * off, axis=1) + delta * delta * n.before * n.count / seen
            centre += delta * n.count / seen
        mean[m] = centre
        squares[m] = sums


@pytest.mark.parametrize("backend", ["numpy", "triton", "pallas"])
@pytest.mark.parametrize("block", [128, 256])
@pytest.mark.parametrize(("first", "cut"), [(0, 0), (3, 0), (130, 2), (0, 199), (-5, 1)])
def test_elements_of_a_tile_and_before_it_are_counted(backend: str, block: int, first: int, cut: int) -> None:
    x = torch.randn(5, 300, generator=torch.Generator().manual_seed(block)) + 100
    mean, squares = torch.empty(5), torch.empty(5)
    moments(x, mean, squares, first, cut, backend=backend, config={"block_M": 8, "block_N": block})
    part = x[:, max(first, 0) : 300 - cut].double()
    assert_close(mean, part.mean(1), "f32", 300)
    assert_close(squares, part.var(1, unbiased=False) * part.shape[1], "f32", 300)


@kd.kernel(x="M N", out="M")
def begins_elsewhere(x: kd.In, out: kd.Out) -> None:
    """What the loop began with changes in it."""
    for m in kd.parallel("M"):
        first, seen = kd.full([], 5, kd.i32), kd.full([], 0, kd.i32)
        for n in kd.sequential(kd.tile("N"), start=first):
            seen = n.before + n.count
            first = first + n.count
        out[m] = seen * 100 + first


@pytest.mark.parametrize("backend", ["numpy", "triton"])
def test_what_came_before_is_counted_from_where_the_loop_began(backend: str) -> None:
    x, out = torch.zeros(1, 20), torch.empty(1)
    begins_elsewhere(x, out, config={"block_N": 4}, backend=backend)
    assert out.item() == 1520
