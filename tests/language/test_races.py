"""A store that several programs make to one place is an error that names the loop and offers to add."""

import textwrap
from pathlib import Path

import pytest

from kpt_dsl import KernelError, ir
from kpt_dsl.instance import Instance
from tests.language.snippets import kernel

SIGNATURE = """
@kd.kernel(x="B H N", cu="B1", y="B N", z="BH N", t="N", flat="B H")
def snippet(x: kd.In, cu: kd.In, y: kd.Out, z: kd.Out, t: kd.Out, flat: kd.Out) -> None:
"""
GRID = "for b, h in kd.parallel('B', 'H'):\n    "
SHARE = "for b in kd.parallel('B'):\n    for n in kd.sequential(kd.tile('N'), "
RUNS = GRID + "for n in kd.sequential(kd.tile('N'), {}):\n        "
DEALT = "for n in kd.parallel(kd.tile('N')):\n    for b in kd.sequential({}):\n        "
KEPT = " = kd.full([n], 1.0)"

RACING = {
    "an index is missing": (GRID + "y[b, :] = x[b, h, :]", "h", "H"),
    "a tile is missing": ("for b, n in kd.parallel('B', kd.tile('N')):\n    flat[b, 0] = kd.sum(x[b, 0, n], axis=0)", "n", "N"),
    "all are missing": (GRID + "t[:] = x[b, h, :]", "b", "B"),
    "several share one": (GRID + "y[b, h // 2] = 1.0", "h", "H"),
    "a remainder": (GRID + "flat[b, h % 2] = 1.0", "h", "H"),
    "a sum of two": (GRID + "z[b + h, :] = x[b, h, :]", "b", "B"),
    "looked up for another": (GRID + "y[cu[b], :] = x[b, h, :]", "h", "H"),
    "half of what was looked up": ("for b in kd.parallel('B'):\n    y[cu[b] // 2, :] = x[b, 0, :]", "b", "B"),
    "a literal": ("for b in kd.parallel('B'):\n    y[0, :] = x[b, 0, :]", "b", "B"),
    "through a variable": (GRID + "g = h // 2\n    flat[b, g] = 1.0", "h", "H"),
    "runs that overlap": (SHARE + "start=b, stop=b + 2):\n        t[n]" + KEPT, "b", "B"),
    "runs from the beginning": (SHARE + "stop=cu[b]):\n        t[n]" + KEPT, "b", "B"),
    "a share of runs from the beginning": (RUNS.format("stop=cu[b], share=h") + "t[n]" + KEPT, "b", "B"),
    "shares of runs that overlap": (RUNS.format("start=b, stop=b + 9, share=h") + "t[n]" + KEPT, "b", "B"),
    "shares that end apart": (SHARE + "stop=cu[b], share=b):\n        t[n]" + KEPT, "b", "B"),
    "shares that begin apart": (SHARE + "start=b, share=b):\n        t[n]" + KEPT, "b", "B"),
    "shares of what a loop carries": ("for b in kd.parallel('B'):\n    last = kd.full([], 9, kd.i32)\n"
                                      "    for h in kd.sequential('H'):\n        last += cu[b]\n"
                                      "        for n in kd.sequential(kd.tile('N'), stop=last, share=b):\n"
                                      "            t[n]" + KEPT, "b", "B"),
    "more than a tile": (DEALT.format("'B', start=n.start, stop=n.stop + 1") + "flat[b, 0] = 1.0", "n", "N"),
}  # fmt: skip

APART = {
    "both": GRID + "flat[b, h] = 1.0",
    "moved": GRID + "flat[b, kd.size('H') - 1 - h] = 1.0",
    "scaled": "for b in kd.parallel('B'):\n    z[2 * b + 1, :] = x[b, 0, :]",
    "numbered along": GRID + "z[b * kd.size('H') + h, :] = x[b, h, :]",
    "by a tile": "for b, h, n in kd.parallel('B', 'H', kd.tile('N')):\n    z[b * kd.size('H') + h, n] = x[b, h, n]",
    "looked up": "for b in kd.parallel('B'):\n    y[cu[b], :] = x[b, 0, :]",
    "added": GRID + "t[:] += x[b, h, :]",
    "a share": SHARE + "share=b):\n        t[n]" + KEPT,
    "a share of some": SHARE + "start=5, stop=kd.size('H'), share=b):\n        t[n]" + KEPT,
    "a share for each": RUNS.format("stop=cu[b], share=h") + "y[b, n]" + KEPT,
    "shares of runs that were loaded": RUNS.format("start=cu[b], stop=cu[b + 1], share=h") + "t[n]" + KEPT,
    "runs that were loaded": SHARE + "start=cu[b], stop=cu[b + 1]):\n        t[n]" + KEPT,
    "runs of one length": SHARE + "start=b * 64, stop=(b + 1) * 64):\n        t[n]" + KEPT,
    "single indices of a run": SHARE.replace("kd.tile('N')", "'N'") + "start=cu[b], stop=cu[b + 1]):\n        t[n] = 1.0",
    "indices of a tile": DEALT.format("'B', start=n.start, stop=n.stop") + "flat[b, 0] = 1.0",
}


@pytest.mark.parametrize("name", RACING)
def test_a_race_is_refused(name: str, tmp_path: Path) -> None:
    body, loop, dim = RACING[name]
    with pytest.raises(KernelError, match=rf"stored without {loop} in its index: every program along {dim} stores") as caught:
        lowered(tmp_path, body)
    assert "+= value" in str(caught.value)
    assert "^" in str(caught.value)


@pytest.mark.parametrize("name", APART)
def test_what_each_program_stores_for_itself_is_not(name: str, tmp_path: Path) -> None:
    assert lowered(tmp_path, APART[name])


def lowered(folder: Path, body: str) -> ir.Kernel:
    found = kernel(folder, SIGNATURE + textwrap.indent(body, "    ") + "\n")
    dtypes = dict.fromkeys(found.tensors, "f32") | {"cu": "i32"}
    return Instance.of_shapes(found, dict.fromkeys(found.dim_names, 4), dtypes).lower()
