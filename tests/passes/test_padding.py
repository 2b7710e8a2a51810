"""Padding is masked exactly where it could be seen."""

from pathlib import Path

import pytest

from kpt_dsl import ir
from kpt_dsl.passes.padding import guard
from kpt_dsl.printer import format_kernel
from tests.language.snippets import lower

LOOP = "for m in kd.parallel(kd.tile('M')):\n    "


def text(folder: Path, body: str) -> str:
    """The guarded body, everything padded."""
    found = guard(lower(folder, LOOP + body), lambda axis: True)
    return "\n".join(line.split("#")[0].rstrip() for line in format_kernel(found).splitlines()[2:])


def test_sum_of_a_masked_load_needs_no_mask(tmp_path: Path) -> None:
    assert "row[m].masked(m) = sum(f32(x[m, :].masked(N)), axis=1)" in text(
        tmp_path, "row[m] = kd.sum(x[m, :], axis=1)"
    )


@pytest.mark.parametrize(("op", "identity"), [("max", "-inf"), ("min", "inf")])
def test_extremes_get_their_identity(tmp_path: Path, op: str, identity: str) -> None:
    found = text(tmp_path, f"row[m] = kd.{op}(x[m, :], axis=1)")
    assert f"{op}(where(N.valid[None, :], f32(x[m, :].masked(N)), {identity}), axis=1)" in found


def test_integer_extremes(tmp_path: Path) -> None:
    found = guard(lower(tmp_path, LOOP + "row[m] = kd.max(x[m, :].to(kd.i32), axis=1).to(kd.f32)"), lambda axis: True)
    fill = next(e.b for e in ir.every_expr(found.body) if isinstance(e, ir.Where))
    assert isinstance(fill, ir.Const) and fill.value == -(2**31)


def test_what_a_broadcast_makes_of_zero_is_not_zero(tmp_path: Path) -> None:
    found = text(
        tmp_path,
        "mean = kd.sum(x[m, :], axis=1)\n    off = x[m, :] - mean[:, None]\n    row[m] = kd.sum(off * off, axis=1)",
    )
    assert "sum(where(N.valid[None, :], off * off, 0), axis=1)" in found


def test_constants_are_followed_through_arithmetic(tmp_path: Path) -> None:
    found = text(tmp_path, "row[m] = kd.max(x[m, :].to(kd.f32) * 0.0 - kd.inf, axis=1)")
    assert "where" not in found, found


def test_products_mask_the_contracted_axis_only(tmp_path: Path) -> None:
    body = (
        "for n in kd.sequential(kd.tile('N')):\n        s = kd.dot(x[m, :].T, x[m, n])\n"
        "        t = kd.dot(kd.exp(x[m, :]).T, x[m, n])"
    )
    _, first, second = (line.strip() for line in text(tmp_path, body).splitlines())
    assert (
        first
        == "s: f32[N, n] = dot(where(m.valid[None, :], x[m, :].masked(N).T, 0), where(m.valid[:, None], x[m, n].masked(n), 0))"
    )
    assert "where(m.valid[None, :], bf16(exp(f32(x[m, :].masked(N)))).T, 0)" in second and "N.valid" not in second


def test_carried_variables_may_hold_anything(tmp_path: Path) -> None:
    body = (
        "acc = kd.zeros([m, 'N'])\n    for n in kd.sequential(kd.tile('N')):\n        acc = acc + kd.exp(x[m, :]) * n.count\n"
        "    row[m] = kd.sum(acc, axis=1)"
    )
    assert "sum(where(N.valid[None, :], acc, 0), axis=1)" in text(tmp_path, body)


def test_stores_and_clamped_loads(tmp_path: Path) -> None:
    found = text(tmp_path, "for n in kd.sequential(kd.tile('N')):\n        y[m, n] = x[m, n]")
    assert "y[m, n].masked(m, n) = x[m, n].masked(n)" in found


def test_nothing_is_masked_where_nothing_is_padded(tmp_path: Path) -> None:
    found = guard(lower(tmp_path, LOOP + "row[m] = kd.max(x[m, :], axis=1)"), lambda axis: False)
    assert not any(isinstance(e, ir.Where | ir.Valid) for e in ir.every_expr(found.body))


def test_bounded_loops_are_always_ragged(tmp_path: Path) -> None:
    body = LOOP + "for n in kd.sequential(kd.tile('N'), stop=shift): y[m, n] = x[m, n]"
    found = guard(lower(tmp_path, body), lambda axis: False)
    store = next(s for s in ir.statements(found.body) if isinstance(s, ir.Store))
    assert [str(a) for a in store.masked] == ["n"]


def test_padding_belongs_to_a_position_not_to_an_axis(tmp_path: Path) -> None:
    """Of N by N, the axis that is summed along is masked."""
    body = "pair = kd.exp(x[m, :][:, None, :] - x[m, :][:, :, None])\n    row[m] = kd.sum(kd.sum(pair, axis={}), axis=1)"
    assert "sum(where(N.valid[None, :][:, None, :], pair, 0), axis=2)" in text(tmp_path, body.format(2))
    assert "sum(where(N.valid[None, :][:, :, None], pair, 0), axis=1)" in text(tmp_path, body.format(1))
