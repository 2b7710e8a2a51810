"""What the front end makes of a kernel: specialisation, promotion, carried variables, choices, helpers, the source hash."""

from pathlib import Path

import pytest

from kpt_dsl import InputError, ir
from kpt_dsl.instance import Instance
from kpt_dsl.printer import format_expr, format_kernel
from tests.language.snippets import SIGNATURE, kernel, lower

LOOP = "for m in kd.parallel(kd.tile('M')):\n    "


def statements(found: ir.Kernel) -> list[str]:
    """The printed body without source comments."""
    return [line.split("#")[0].strip() for line in format_kernel(found).splitlines()[2:]]


def test_narrow_floats_compute_in_f32_and_round_at_the_store(tmp_path: Path) -> None:
    found = lower(tmp_path, LOOP + "y[m, :] = x[m, :] * 2 + w[:][None, :]")
    assert statements(found) == ["y[m, :] = bf16(f32(x[m, :]) * 2 + f32(w[:][None, :]))"]


def test_static_branches_leave_no_trace(tmp_path: Path) -> None:
    body = LOOP + "if w is None or not flag:\n        row[m] = 1.0\n    else:\n        row[m] = eps"
    assert statements(lower(tmp_path, body)) == ["row[m] = full([m], eps)"]
    assert statements(lower(tmp_path, body, w=None)) == ["row[m] = full([m], 1)"]


def test_a_factor_of_one_leaves_no_trace(tmp_path: Path) -> None:
    body = LOOP + "y[m, :] = x[m, :] * (0.5 * 2.0) * (2 * eps)\n    row[m] = 1 * eps * 2.0"
    assert statements(lower(tmp_path, body)) == ["y[m, :] = bf16(f32(x[m, :]) * (2 * eps))", "row[m] = full([m], eps * 2)"]


def test_choices_are_collected_and_taken(tmp_path: Path) -> None:
    body = LOOP + "if kd.choice('fast', True, False):\n        row[m] = 1.0\n    else:\n        row[m] = 2.0"
    found = lower(tmp_path, body)
    assert found.choices == (("fast", (True, False)),)
    assert statements(lower(tmp_path, body, choices={"fast": False}))[-1] == "row[m] = full([m], 2)"


def test_carried_variables_are_found_through_nested_loops(tmp_path: Path) -> None:
    body = (
        LOOP + "a, b = kd.zeros([m]), kd.zeros([m])\n    for n in kd.sequential(kd.tile('N')):\n"
        "        a += kd.sum(x[m, n], axis=1)\n"
        "        for n2 in kd.sequential(kd.tile('N')):\n            b += kd.sum(x[m, n2], axis=1)\n"
        "    row[m] = a + b"
    )
    outer = next(s for s in lower(tmp_path, body).body if isinstance(s, ir.For))
    assert outer.carried == ("a", "b")
    assert next(s for s in outer.body if isinstance(s, ir.For)).carried == ("b",)


def test_simultaneous_assignment_reads_before_it_writes(tmp_path: Path) -> None:
    body = LOOP + "a, b = kd.zeros([m]), kd.full([m], 1.0)\n    a, b = b, a\n    row[m] = a - b"
    assert statements(lower(tmp_path, body))[2:] == [
        "held: f32[m] = b", "held_2: f32[m] = a", "a: f32[m] = held", "b: f32[m] = held_2", "row[m] = a - b",
    ]  # fmt: skip


def test_a_name_may_change_its_type_outside_loops(tmp_path: Path) -> None:
    body = LOOP + "s = x[m, :].to(kd.f32)\n    s = kd.sum(s, axis=1)\n    row[m] = s"
    assert statements(lower(tmp_path, body))[-1] == "row[m] = s_2"


def test_helpers_are_inlined_with_names_of_their_own(tmp_path: Path) -> None:
    body = (
        LOOP
        + "total = x[m, :].to(kd.f32)\n    sum_, difference = both(total, 1.0)\n    y[m, :] = double(sum_ * difference)"
    )
    text = "\n".join(statements(lower(tmp_path, body)))
    assert "both_total: f32[m, N] = total + 1" in text
    assert "double_x: f32[m, N] = sum_ * difference" in text and "y[m, :] = bf16(double_x + double_x)" in text


def test_loop_bounds_stay_inside_the_dim(tmp_path: Path) -> None:
    body = LOOP + "for n in kd.sequential(kd.tile('N'), start=shift, stop=ids[0] + 7): y[m, n] = x[m, n]"
    loop = next(s for s in lower(tmp_path, body).body if isinstance(s, ir.For))
    assert str(loop.start.type) == "i32"
    assert isinstance(loop.stop, ir.Binary) and loop.stop.op == "min"
    for start, shown in {
        "shift": "min(max(shift, 0), size(N))",  # rounded up to a tile's start, what is given may not fit in 32 bits
        "ids[0] - 1": "min(max(ids[0] - 1, 0), size(N))",
        "kd.where(m.start < ids[0], shift, 3)": "min(max(where(m.start < ids[0], shift, 3), 0), size(N))",
        "m.start - shift": "max(m.start - shift, 0)",
        "kd.where(m.start < ids[0], m.start, 3)": "max(where(m.start < ids[0], m.start, 3), 0)",
        "m.start": "max(m.start, 0)",
    }.items():
        text = LOOP + f"for n in kd.sequential(kd.tile('N'), start={start}): y[m, n] = x[m, n]"
        loop = next(s for s in lower(tmp_path, text).body if isinstance(s, ir.For))
        assert format_expr(loop.start) == shown


def test_a_start_that_only_shrinks_needs_no_upper_bound(tmp_path: Path) -> None:
    """What is taken away from indices cannot reach beyond the dim, whatever was loaded for a condition."""
    starts = [
        "m.start - shift",
        "kd.where(m.start < ids[0], m.start - shift, 0)",
        "kd.minimum(ids[0], m.start)",
        "m.start",
    ]
    for start in starts:
        body = LOOP + f"for n in kd.sequential(kd.tile('N'), start={start}): y[m, n] = x[m, n]"
        loop = next(s for s in lower(tmp_path, body).body if isinstance(s, ir.For))
        assert isinstance(loop.start, ir.Binary) and loop.start.op == "max", start


def test_every_node_knows_its_place(tmp_path: Path) -> None:
    found = lower(tmp_path, LOOP + "row[m] = kd.sum(x[m, :] * x[m, :], axis=1)")
    reduce = next(e for e in ir.every_expr(found.body) if isinstance(e, ir.Reduce))
    assert reduce.loc.text[reduce.loc.column : reduce.loc.end_column] == "kd.sum(x[m, :] * x[m, :], axis=1)"


def test_source_hash_sees_meaning_and_only_meaning(tmp_path: Path) -> None:
    def digest(body: str, header: str = "") -> str:
        text = header + SIGNATURE + "    " + body.replace("\n", "\n    ") + "\n"
        return kernel(tmp_path, text).source_hash

    base = digest(LOOP + "y[m, :] = double(x[m, :]) * FACTOR")
    assert base == digest(LOOP + "y[m, :] = (double(x[m, :])   * FACTOR)  # the same")
    assert base == digest('"""Documented."""\n' + LOOP + "y[m, :] = double(x[m, :]) * FACTOR")
    assert base != digest(LOOP + "y[m, :] = double(x[m, :]) * 2")
    assert base != digest(LOOP + "y[m, :] = double(x[m, :]) * FACTOR", "FACTOR = 4.0\n")
    helper = "@kd.function\ndef double(x):\n    return 2 * x\n"
    assert base != digest(LOOP + "y[m, :] = double(x[m, :]) * FACTOR", helper)


def test_instances_name_what_does_not_fit(tmp_path: Path) -> None:
    import numpy as np

    found = kernel(tmp_path, SIGNATURE + "    " + LOOP.replace("\n", "\n    ") + "row[m] = eps\n")
    x, good = np.zeros((3, 5), np.float32), dict(ids=None, w=None, eps=1.0, shift=1, flag=True)
    y, row = np.zeros((3, 5), np.float32), np.zeros(3, np.float32)
    with pytest.raises(InputError, match=r"x has shape \(3,\), but needs 2 dims \(M, N\)"):
        Instance.bind(found, dict(x=row, y=y, row=row, **good))
    with pytest.raises(InputError, match=r"dim M is 3 in x but 4 in row"):
        Instance.bind(found, dict(x=x, y=y, row=np.zeros(4, np.float32), **good))
    with pytest.raises(InputError, match=r"dtype 'complex64' is not one that kernels can hold"):
        Instance.bind(found, dict(x=x.astype(np.complex64), y=y, row=row, **good))
    with pytest.raises(InputError, match=r"static flag is \[1\]; accepted are bool"):
        Instance.bind(found, dict(x=x, y=y, row=row, **(good | {"flag": [1]})))
    with pytest.raises(InputError, match=r"snippet: missing a required argument: 'row'; its arguments are x, w"):
        found.bind(x, None, None, y)
    with pytest.raises(InputError, match=r"no extent for N"):
        Instance.of_shapes(found, {"M": 3}, dict(x="f32", w=None, ids=None, y="f32", row="f32"))
    with pytest.raises(InputError, match=r"has no dims \['Q'\]"):
        Instance.of_shapes(found, {"M": 3, "N": 3, "Q": 1}, dict(x="f32", w=None, ids=None, y="f32", row="f32"))
    with pytest.raises(InputError, match=r"negative extents"):
        Instance.of_shapes(found, {"M": -3, "N": 3}, dict(x="f32", w=None, ids=None, y="f32", row="f32"))
