"""Names keep what was assigned to them, as in Python: whatever happens to others afterwards, in helpers, tuples and loops."""

from pathlib import Path

import numpy as np
import pytest

from kpt_dsl import ir
from tests.language.snippets import kernel

X = np.arange(1, 8, dtype=np.float32)

HELPERS = """
@kd.function
def grown(a, b):
    a = a + b
    a *= 2.0
    return a

@kd.function
def summed(total, x):
    for n in kd.sequential(kd.tile("N")):
        total = total + kd.sum(x[n], axis=0)
    return total

@kd.kernel(x="N", out="N")
def snippet(x: kd.In, out: kd.Out):
    for m in kd.parallel(kd.tile("N")):
        v = x[m]
"""

WAYS = {
    "a helper assigns to its argument": ("out[m] = grown(v, 1.0) + v", 3 * X + 2),
    "a helper's own argument is another's": ("out[m] = grown(v, v) + v", 5 * X),
    "a helper's loop carries its argument": (
        "s = kd.zeros([]) + 1.0\nonce = summed(s, x)\nout[m] = once + summed(s, x) + s", np.full_like(X, 59.0),
    ),
    "what a helper returns": ("pair = both(v, 1.0)\nv = v * 10.0\na, b = pair\nout[m] = a * b", X * X - 1),
    "a tuple": ("pair = (v, v + 1.0)\nv = v * 10.0\nout[m] = pair[0] + pair[1]", 2 * X + 1),
    "a list, longer by another": ("some = [v] + [2.0]\nv = v * 10.0\nout[m] = some[0] * some[1]", 2 * X),
    "a tuple in a tuple": ("some = (1.0, (v, 2.0))\nv = v * 10.0\nout[m] = some[1][0]", X),
    "names that swap": ("w = v * 3.0\nv, w = w, v\nout[m] = v * 10.0 + w", 31 * X),
    "names that swap in a tuple": ("w = v * 3.0\n(v, w), u = (w, v), v\nout[m] = v * 100.0 + w * 10.0 + u", 311 * X),
}  # fmt: skip
"""Lines behind ``v = x[m]``, and what they store."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backend", ["numpy", "triton"])
def test_names_keep_what_was_assigned(way: str, backend: str, tmp_path: Path) -> None:
    lines, expected = WAYS[way]
    found = kernel(tmp_path, HELPERS + "".join(f"        {line}\n" for line in lines.splitlines()))
    out = np.empty_like(X)
    arrays = [X, out]
    if backend == "triton":
        arrays = [pytest.importorskip("torch").from_numpy(a) for a in arrays]
    found(*arrays, backend=backend)
    assert np.array_equal(out, expected)


def test_both_sides_of_a_swap_are_loaded_before_either_is_stored(tmp_path: Path) -> None:
    """Of a tensor that is changed in place. (On the CPU loads see what was there before, however they are ordered.)"""
    from kpt_dsl.instance import Instance

    text = """
@kd.kernel(x="N R", out="N R")
def snippet(x: kd.In, out: kd.Out):
    for n in kd.parallel(kd.tile("N")):
        out[n, 0], out[n, 1] = x[n, 1], x[n, 0]
"""
    body = Instance.of_shapes(kernel(tmp_path, text), {"N": 37, "R": 2}, {"x": "f32", "out": "f32"}).lower().body
    stores = [s for s in body if isinstance(s, ir.Store)]
    assert len(stores) == 2
    assert not any(isinstance(x, ir.Load) for s in stores for x in ir.walk(s.value))
