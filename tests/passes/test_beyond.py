"""Masks that a condition makes needless: it is believed of every lane beyond a loop's end only where it fails there."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest

from kpt.ops.flash_attention.kernels import flash_attention_fwd
from kpt_dsl import ir
from kpt_dsl.passes.padding import guard
from kpt_dsl.printer import format_kernel
from tests.language.snippets import lower
from tests.passes.test_pipeline import attention, guarded

BODY = """
for m in kd.parallel(kd.tile("M")):
    ahead = kd.size("N") - kd.size("M")
    last = kd.size("N")
    last = kd.minimum(last, {stop})
    top = kd.full([m], -kd.inf)
    for n in kd.sequential(kd.tile("N"), start={start}, stop=last):
        position = m.index[:, None] + ahead
        top = kd.maximum(top, kd.max(kd.where({condition}, x[m, n].to(kd.f32), -kd.inf), axis=1))
    row[m] = top
"""

CAUSAL = "n.index[None, :] <= position"


def text(kernel: ir.Kernel) -> str:
    """A kernel without its author's lines beside it."""
    return "\n".join(line.split("#")[0] for line in format_kernel(kernel).splitlines())


def masked(folder: Path, condition: str, stop: str, start: str = "0") -> bool:
    """Whether the lanes beyond the loop get a mask of their own, everything padded."""
    kernel = guard(lower(folder, BODY.format(condition=condition, stop=stop, start=start)), lambda axis: True)
    return any(isinstance(e, ir.Valid) and e.axis.tile == "n" for e in ir.every_expr(kernel.body))


def seen_beyond(condition: str, stop: str) -> bool:
    """Whether, for some sizes, a row that holds an element sees a lane beyond the loop."""
    seen = condition.replace("n.index[None, :]", "n").replace("position", "(i + ahead)")
    for rows, keys, block, at in itertools.product(range(1, 6), range(1, 6), (1, 2, 4), range(3)):
        first, ahead = at * block, keys - rows
        m = SimpleNamespace(start=first, stop=min(first + block, rows))
        last = min(keys, eval(stop, {"m": m, "ahead": ahead}))
        lanes = itertools.product(range(first, m.stop), range(max(last, 0), keys + 8))
        if any(eval(seen, {"n": n, "i": i, "ahead": ahead}) for i, n in lanes):
            return True
    return False


@pytest.mark.parametrize(
    ("condition", "stop", "proven"),
    [
        (CAUSAL, "m.stop + ahead", True),
        ("n.index[None, :] < position", "m.stop + ahead", True),
        ("n.index[None, :] < position + 1", "m.stop + ahead", True),
        ("position >= n.index[None, :]", "m.stop + ahead + 3", True),
        ("n.index[None, :] <= position + 1", "m.stop + ahead", False),
        (CAUSAL, "m.stop + ahead - 1", False),
        (CAUSAL, "m.start + ahead", False),
        ("n.index[None, :] >= position", "m.stop + ahead", False),
        ("n.index[None, :] + n.index[None, :] <= position", "m.stop + ahead", False),
    ],
)
def test_a_condition_is_believed_where_it_fails(tmp_path: Path, condition: str, stop: str, proven: bool) -> None:
    assert masked(tmp_path, condition, stop) is not proven
    assert not (proven and seen_beyond(condition, stop))


def test_the_check_of_these_cases_sees_one_that_is_wrong() -> None:
    assert seen_beyond("n.index[None, :] <= position + 1", "m.stop + ahead")


def test_a_loop_that_may_begin_inside_a_tile_keeps_its_masks(tmp_path: Path) -> None:
    assert masked(tmp_path, CAUSAL, "m.stop + ahead", start="m.start")


def test_a_bound_that_is_assigned_again_is_another_one(tmp_path: Path) -> None:
    body = BODY.format(condition=CAUSAL, stop="m.stop + ahead", start="0")
    changed = body.replace("    row[m] = top", "        ahead = ahead + n.count\n    row[m] = top")
    assert changed != body
    kernel = guard(lower(tmp_path, changed), lambda axis: True)
    assert any(isinstance(e, ir.Valid) and e.axis.tile == "n" for e in ir.every_expr(kernel.body))


def test_rows_without_elements_keep_sums_over_them_masked(tmp_path: Path) -> None:
    """Of a row beyond the tensor nothing is known: a sum over rows masks them, and what it gives is known of no lane."""
    body = """
    for m in kd.parallel(kd.tile("M")):
        ahead = kd.size("N") - kd.size("M")
        for n in kd.sequential(kd.tile("N"), stop=m.stop + ahead):
            seen = kd.where(n.index[None, :] <= m.index[:, None] + ahead, kd.exp(x[m, n]), 0.0)
            row[m] = kd.sum(seen, axis=1) + kd.sum(kd.sum(seen, axis=0), axis=0)
    """
    found = text(guard(lower(tmp_path, body, x="f32"), lambda axis: True))
    assert "= sum(seen, axis=1)" in found
    assert "sum(where(n.valid, sum(where(m.valid[:, None], seen, 0), axis=0), 0), axis=0)" in found


def test_of_causal_attention_the_maximum_needs_no_mask() -> None:
    assert "maxnum(s, axis=1)" in text(attention(causal=True))
    assert "maxnum(where(n.valid" in text(attention(causal=False))


def test_lengths_that_are_loaded_keep_theirs() -> None:
    dtypes = dict.fromkeys(("q", "k", "v", "o"), "bf16") | {"lse": "f32", "key_lengths": "i32"}
    dims = {"B": 1, "H": 2, "G": 1, "M": 37, "N": 199, "D": 64, "E": 64}
    assert "maxnum(where(n.valid" in text(guarded(flash_attention_fwd, dims, dtypes, causal=True, window=None))
