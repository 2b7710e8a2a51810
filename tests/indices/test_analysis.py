"""Which indices are seen to be some: where nothing needs to be checked, no backend has anything to pay or to refuse."""

from pathlib import Path

import pytest

from kpt.ops import registry
from kpt_dsl import ir, targets
from kpt_dsl.emit import emit
from kpt_dsl.emit.triton.abi import Report
from kpt_dsl.instance import Instance
from kpt_dsl.passes import indices, padding, pipeline
from kpt_dsl.printer import format_kernel
from kpt_dsl.space import space
from tests.indices import kernels
from tests.language.snippets import lower

LOOP = "for m in kd.parallel('M'):\n    "  # in snippets M is 37, N is 199

PROVEN = {
    "the loop's own dim": "row[m] = x[m, 0]",
    "a literal": "row[m] = x[m, 198]",
    "of an extent": "row[m] = x[m, kd.size('N') - 1]",
    "a shorter dim": "row[m] = x[m, m]",
    "a group": "row[m] = w[m // kd.group('M', 'M')]",
    "a part": "row[m] = w[m * 5 + 14]",
    "both ways": "row[m] = w[kd.size('N') - 1 - m]",
    "a remainder": "row[m] = w[shift % kd.size('N')]",
    "a variable": "i = kd.maximum(shift, 0)\n    j = kd.minimum(i, 198)\n    row[m] = w[j]",
    "a choice of two": "i = kd.where(shift > 3, m, 198)\n    row[m] = w[i]",
    "loaded and bounded": "row[m] = w[kd.minimum(kd.maximum(ids[m], 0), 100)]",
}
UNPROVEN = {
    "an argument": ("row[m] = w[shift]", "w[checked(shift)]"),
    "loaded": ("row[m] = w[ids[m]]", "w[checked(ids[m])]"),
    "a longer dim": ("row[m] = w[m * 6]", "w[checked(m * 6)]"),
    "bounded on one side": ("row[m] = w[kd.minimum(shift, 5)]", "w[checked(min(shift, 5))]"),
    "what wraps": ("row[m] = w[kd.minimum(ids[m] * 3, 5)]", "w[checked(min(ids[m] * 3, 5))]"),
    "a remainder by what may be zero": ("row[m] = w[5 % shift]", "w[checked(5 % shift)]"),
    "a variable with two values": (
        "i = kd.minimum(kd.maximum(shift, 0), 5)\n    i = i + shift\n    row[m] = w[i]",
        "w[checked(i)]",
    ),
    "a store": ("y[shift, m] = 1.0", "y[checked(shift), m]"),
}


@pytest.mark.parametrize("name", PROVEN)
def test_proven(name: str, tmp_path: Path) -> None:
    assert not indices.checked(lower(tmp_path, LOOP + PROVEN[name]))


@pytest.mark.parametrize("name", UNPROVEN)
def test_not_proven(name: str, tmp_path: Path) -> None:
    body, shown = UNPROVEN[name]
    assert shown in format_kernel(lower(tmp_path, LOOP + body))


def test_conditions_stay_only_where_an_index_needs_them(tmp_path: Path) -> None:
    plain = lower(tmp_path, LOOP + "row[m] = kd.where(shift > 0, w[m], 0.0)")
    assert "when" not in format_kernel(plain)
    asked = format_kernel(lower(tmp_path, LOOP + "row[m] = kd.where(shift > 0, 0.0, kd.where(eps > 0.0, w[shift], 1.0))"))
    assert "w[checked(shift)].when(~(shift > 0) & (eps > 0))" in asked
    by_name = format_kernel(lower(tmp_path, LOOP + "row[m] = kd.where(b=w[shift], a=0.0, cond=shift > 0)"))
    assert "w[checked(shift)].when(~(shift > 0))" in by_name
    vector = "for m in kd.parallel(kd.tile('M')):\n    row[m] = kd.where(ids[m] > 0, x[m, shift], 0.0)"
    assert "when" not in format_kernel(lower(tmp_path, vector))


OPS = [
    (name, dict(shape.dims), shape.dtype, dict(shape.flags))
    for name, op in registry.OPS.items()
    for shape in op.shapes[:4]
    if name not in ("cross_entropy", "linear_cross_entropy")  # which look up a logit by its class: that is checked
]


@pytest.mark.parametrize(("name", "dims", "dtype", "flags"), OPS, ids=lambda x: x if isinstance(x, str) else "")
def test_every_op_is_proven(name: str, dims: dict[str, int], dtype: str, flags: dict[str, object]) -> None:
    for instance in registry.get(name).instances(dims, dtype, **flags):
        assert not indices.checked(instance.lower())


def instance(D: int = 64) -> Instance:
    return Instance.of_shapes(
        kernels.rows_or, {"V": 100, "D": D, "M": 8}, {"table": "bf16", "index": "i32", "y": "bf16"}
    )


@pytest.mark.parametrize("target", ["nvidia-h200", "amd-mi300x"])
def test_what_is_not_checked_costs_nothing(target: str) -> None:
    chip = targets.get(target)
    config = space(instance(), chip).first
    plain, checked = emit(instance(), chip, config), emit(instance(), chip, config | {"checked": True})
    assert "inside" not in plain.text
    assert "report" not in plain.text
    assert not plain.abi.places
    assert "mask=(i >= 0) & (i < V)" in plain.text
    assert isinstance(checked.abi.arguments[-1], Report)
    assert [p.dim for p in checked.abi.places] == ["V"]


@pytest.mark.parametrize("target", ["nvidia-a100", "nvidia-h200", "nvidia-b200", "amd-mi300x"])
@pytest.mark.parametrize("checked", [False, True])
def test_it_compiles(target: str, checked: bool) -> None:
    from kpt_dsl import build

    chip = targets.get(target)
    extra = {"checked": True} if checked else {}
    assert build.compile(instance(), chip, space(instance(), chip).first | extra).registers


@pytest.mark.parametrize("V", [1, 6, 900])
def test_the_tuner_draws_indices_that_are_some(V: int) -> None:
    from autotune_db import inputs

    for kernel in (kernels.rows, kernels.tiled_rows, kernels.two_tables):
        dtypes = dict.fromkeys(kernel.tensors, "i32") | {"table": "f32", "y": "f32"}
        made = inputs.make(Instance.of_shapes(kernel, {"V": V, "D": 400, "M": V}, dtypes), "cpu", 0)
        drawn = [x for name, x in made.items() if dtypes[name] == "i32"]
        assert all(x.min() >= 0 and x.max() < V for x in drawn)
        assert all(x.max() > V // 2 for x in drawn if V > 600)
    one = Instance.of_shapes(kernels.one_row, {"M": V, "D": 4000}, {"x": "f32", "y": "f32"})
    assert 0 <= inputs.make(one, "cpu", 0)["i"] < V


def test_reports_tell_indices_apart() -> None:
    chip = targets.get("nvidia-h200")
    abi = emit(instance(), chip, space(instance(), chip).first | {"checked": True}).abi
    for index in (100, -1, 2**31 - 1, -(2**31)):
        word = 1 << 32 | index & 0xFFFFFFFF
        assert f"along V with {index}, but its extent is 100" in str(abi.bad_index(word, {"V": 100}))


def test_tiles_move_through_descriptors_only_where_every_index_is_some() -> None:
    H, chip = {"V": 128, "M": 128, "D": 128}, targets.get("nvidia-h200")
    found = Instance.of_shapes(kernels.rows_or, H, {"table": "bf16", "index": "i32", "y": "bf16"})
    assert "_desc" not in emit(found, chip, space(found, chip).first | {"descriptors": True}).text


def test_such_kernels_are_not_shared_out_among_warps(tmp_path: Path) -> None:
    body = """
    for m in kd.parallel(kd.tile("M")):
        acc = kd.zeros([m, "M"])
        for n in kd.sequential(kd.tile("N")):
            acc = kd.dot(x[m, n], x[:, n].T, acc)
        row[m] = kd.sum(acc, axis=1) + w[{index}]
    """
    reasons = [
        pipeline.why_not(padding.guard(lower(tmp_path, body.format(index=index)), lambda axis: False))
        for index in ("shift", "0")
    ]
    assert reasons == ["an index may be of no element", None]


def test_literals_do_not_stand_in_the_way_of_looking(tmp_path: Path) -> None:
    import kpt_dsl as kd

    assert "def sixth(" in kd.source(kernels.sixth)


def test_walking_and_rebuilding_sees_conditions(tmp_path: Path) -> None:
    found = lower(tmp_path, LOOP + "row[m] = kd.where(shift > 0, w[shift], 0.0)")
    load = next(e for e in ir.every_expr(found.body) if isinstance(e, ir.Load))
    assert load.when in ir.children(load)
    assert ir.with_children(load, ir.children(load)) == load
