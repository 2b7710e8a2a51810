"""Tiles of integers as indices, on every backend: what they gather, what of them is looked at, and how they compile."""

import re
from typing import Any

import pytest
import torch

import kpt_dsl as kd
from kpt_dsl import build, ir, targets
from kpt_dsl.buckets import fixed_dims
from kpt_dsl.cost import work
from kpt_dsl.emit import emit
from kpt_dsl.instance import Instance
from kpt_dsl.passes import indices
from kpt_dsl.printer import format_kernel
from kpt_dsl.space import Config, space
from tests.indices import gathering as g
from tests.indices.running import BACKENDS, run

INTEGERS = {"i32": torch.int32, "i64": torch.int64, "u8": torch.uint8}
FAST = ("numpy", "triton")


def inputs(case: g.Case, size: int, dtype: str) -> g.Arrays:
    torch.manual_seed(size)
    dims = case.dims(size)
    found = {}
    for name in (n for n, role in case.kernel.roles.items() if role == "in"):
        shape = tuple(dims[d] for d in case.kernel.tensors[name])
        of = case.indices.get(name)
        found[name] = torch.randn(shape) if of is None else torch.randint(dims[of], shape).to(INTEGERS[dtype])
    return found


@pytest.mark.parametrize(("size", "dtype"), [(1, "i64"), (37, "i32"), (199, "i64"), (760, "u8")])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", g.CASES)
def test_what_is_gathered(name: str, backend: str, size: int, dtype: str) -> None:
    case = g.CASES[name]
    if backend == "pallas" and (size == 199 or not case.on_tpu):
        pytest.skip("XLA takes a second for each, or there is no form of it for TPUs")
    given = inputs(case, size, dtype)
    (output,) = (n for n, role in case.kernel.roles.items() if role == "out")
    want = case.want(given)[output]
    block = 64 if backend == "triton" else None
    got = run(case.kernel, backend, {output: want}, block, **given, **case.scalars)[output]
    exact = name not in ("cross_entropy", "product_of_rows", "every_third")
    torch.testing.assert_close(got, want, atol=0 if exact else 1e-4, rtol=0 if exact else 1e-5)


# ------------------------------------------------------------------ what is no index
@pytest.mark.parametrize(("dtype", "bad"), [("i32", -1), ("i32", 6), ("i64", 6), ("i64", 2**40), ("i64", -(2**40))])
@pytest.mark.parametrize("backend", FAST)
def test_what_is_no_index_is_named(backend: str, dtype: str, bad: int) -> None:
    ids = torch.tensor([0, 5, bad, 3, 1], dtype=INTEGERS[dtype])
    shown = bad if backend == "numpy" else min(max(bad, -(2**31)), 2**31 - 1)
    says = f"embedding indexes table\\[V, D\\] along V with {shown}, but its extent is 6: indices go from 0 to 5"
    with pytest.raises(kd.IndexRangeError, match=says):
        run(g.embedding, backend, {"y": (5, 2)}, 2, ids=ids, table=torch.ones(6, 2))
    x, row, column = torch.ones(6, 2), torch.tensor([0, 1, 2, 3, 5]), torch.tensor([0, 1, 2, 0, 0])
    with pytest.raises(kd.IndexRangeError, match=r"elements indexes x\[V, D\] along D with 2, but its extent is 2"):
        run(g.elements, backend, {"y": (5,)}, 4, row=row, column=column, x=x)
    with pytest.raises(kd.IndexRangeError, match=r"embedding_gradient indexes grad\[V, D\] along V"):
        run(g.embedding_gradient, backend, {"grad": (6, 2)}, 4, ids=ids, x=torch.ones(5, 2))


def test_pallas_takes_the_nearest_index() -> None:
    table, ids = torch.randn(6, 2), torch.tensor([-7, 9, 3])
    torch.testing.assert_close(run(g.embedding, "pallas", {"y": (3, 2)}, ids=ids, table=table)["y"], table[[0, 5, 3]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_nothing_is_asked_for_an_index_may_be_anything(backend: str) -> None:
    table, ids = torch.randn(6, 5), torch.tensor([5, -1, 0, 6, 2**31 - 1, 3])
    want = torch.where(((ids >= 0) & (ids < 6))[:, None], table[ids.clamp(0, 5)], 7.0)
    torch.testing.assert_close(run(g.embedding_or, backend, {"y": want}, ids=ids, table=table)["y"], want)
    got = run(g.embedding_if, backend, {"y": want}, ids=ids, table=table, on=0)["y"]
    assert (got == 7.0).all()


def test_a_condition_says_nothing_of_what_is_summed_or_computed_in_a_helper() -> None:
    """There an element of the branch is made of several, of which all are loaded."""
    x, ids = torch.randn(5), torch.tensor([4, 0, 2, 2])
    for backend in FAST:
        got = run(sums_in_branches, backend, {"y": (4,)}, 4, x=x, ids=ids)["y"]
        torch.testing.assert_close(got, torch.where(ids > 1, 2 * x[ids].sum() + x[ids], 0.0))
    body = Instance.bind(sums_in_branches, {"x": x, "ids": ids, "y": x[:4]}).lower().body
    asked = [e.when is not None for e in ir.every_expr(body) if isinstance(e, ir.Gather)]
    assert sorted(asked) == [False, False, True]


@kd.function
def total(x: kd.Value, ids: kd.Value, m: kd.Value) -> kd.Value:
    return kd.sum(x[ids[m]], axis=0)


@kd.kernel(x="N", ids="M", y="M")
def sums_in_branches(x: kd.In, ids: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        y[m] = kd.where(ids[m] > 1, kd.sum(x[ids[m]], axis=0) + total(x, ids, m) + x[ids[m]], 0.0)


# ------------------------------------------------------------------ addresses
def test_padding_is_no_address() -> None:
    """Every term of an address has a mask along the axes of its index; of sums, what is masked is zero."""
    x = torch.full((50, 4), torch.nan)
    x[:34] = torch.randn(34, 4)
    got = run(g.every_third, "triton", {"sums": (4,)}, 16, x=x[:34])["sums"]
    torch.testing.assert_close(got, x[:34:3].sum(0))
    rows = text(g.embedding, dict(M=50, V=7, D=64), block_M=16, num_warps=4)
    assert re.search(r"table_tile = tl.load\(\s*table \+ \(ids_tile\[:, None\] .*,\s*mask=m_valid\[:, None\],", rows)
    both = text(g.along_rows, dict(M=50, N=7, D=50), block_M=16, block_D=16, num_warps=4)
    assert re.search(r"x_tile = tl.load\(\s*.*at_tile\),\s*mask=m_valid\[:, None\] & d_valid\[None, :\],", both)
    assert "mask" not in text(g.embedding, dict(M=64, V=7, D=64), block_M=16, num_warps=4)
    loop = text(g.embedding_in_tiles, dict(M=64, V=7, D=300), block_M=16, block_D=128, num_warps=4, num_stages=1)
    inner, edge = (part.split("tl.store")[0] for part in loop.split("for d_start")[1:])
    assert "mask" not in inner
    assert "mask=d_valid[None, :]" in edge


def test_what_is_not_asked_for_is_masked() -> None:
    """On a GPU nothing else keeps an index that is none from being an address."""
    dims = dict(M=64, V=7, D=64)
    tile = text(g.embedding_or, dims, block_M=16, num_warps=4)
    assert re.search(r"table_tile = tl.load\(\s*.*,\s*mask=some,\s*other=0.0", tile)
    assert re.search(r"table_tile = tl.load\(\s*.*,\s*mask=some\[:, None\],\s*other=0.0", tile)
    scalar = text(g.embedding_if, dims, block_M=16, num_warps=4)
    assert re.search(r"table_tile = tl.load\(\s*.*,\s*mask=\(on > 0\),\s*other=0.0", scalar)


def test_offsets_beyond_32_bits() -> None:
    """Rows that lie 2**31 elements apart, in memory that nobody touches; int64 indices that fit are narrowed."""
    storage = torch.empty(2**31 + 64, dtype=torch.int8)
    table = storage.as_strided((2, 16), (2**31, 1))
    table.copy_(torch.arange(32, dtype=torch.int8).reshape(2, 16))
    for dtype in (torch.int32, torch.int64):
        ids = torch.tensor([1, 0, 1], dtype=dtype)
        got = run(g.embedding, "triton", {"y": table[ids.long()]}, 4, ids=ids, table=table)["y"]
        torch.testing.assert_close(got, table[[1, 0, 1]])
    assert "ids_tile[:, None].to(tl.int64) * " in text(g.embedding, dict(M=64, V=2**20, D=4096))
    assert "ids_tile[:, None].to(tl.int32) * " in text(g.embedding, dict(M=64, V=2**10, D=4096), "i64")
    assert "ids_tile[:, None] * " in text(g.embedding, dict(M=64, V=2**10, D=4096))


def instance(kernel: kd.Kernel, dims: dict[str, int], ids: str = "i32", dtype: str = "f32") -> Instance:
    whole = {"ids", "target", "order", "codes", "at", "row", "column"}
    wide = {"grad": "f32"}
    return Instance.of_shapes(kernel, dims, {n: ids if n in whole else wide.get(n, dtype) for n in kernel.tensors})


def text(kernel: kd.Kernel, dims: dict[str, int], ids: str = "i32", target: str = "nvidia-h200", **knobs: Any) -> str:
    found, chip = instance(kernel, dims, ids), targets.get(target)
    return emit(found, chip, Config(**knobs) if knobs else space(found, chip).first).text


# ------------------------------------------------------------------ targets
LARGE = {
    "embedding": dict(M=4096, V=32000, D=4096), "cross_entropy": dict(M=4096, N=32000), "decoded": dict(M=4096, D=4096, V=16),
    "product_of_rows": dict(M=4096, V=5000, D=4096, N=4096), "dequantised": dict(N=4096, K=4096, G=256),
    "along_rows": dict(M=4096, N=4096, D=512), "embedding_gradient": dict(M=4096, V=32000, D=4096),
}  # fmt: skip


@pytest.mark.parametrize("target", ["nvidia-h200", "amd-mi300x"])
@pytest.mark.parametrize("name", LARGE)
def test_first_configs_do_not_spill(name: str, target: str) -> None:
    found, chip = instance(getattr(g, name), LARGE[name], "i64", "bf16"), targets.get(target)
    report = build.compile(found, chip, space(found, chip).first)
    assert report.registers
    assert not report.spills, report


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16", "i32", "i8", "u8", "bool", "f8e4m3"])
def test_gathers_lower_for_tpus(dtype: str) -> None:
    pytest.importorskip("jax")
    from kpt_dsl.build.pallas import lower

    chip = targets.get("tpu-v6e")
    for kernel, dims in ((g.embedding, dict(M=512, V=256, D=256)), (g.diagonal, dict(M=512, N=512)),
                         (columns, dict(M=512, N=256, V=128))):  # fmt: skip
        found = instance(kernel, dims, dtype=dtype)
        assert "tpu_custom_call" in lower(emit(found, chip, space(found, chip).first))


@kd.kernel(x="M V", ids="N", y="M N")
def columns(x: kd.In, ids: kd.In, y: kd.Out) -> None:
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        y[m, n] = x[m, ids[n]]


@pytest.mark.parametrize("value", [-0.0, float("inf"), float("nan"), 1e-45, 3e38])
def test_on_tpus_no_row_knows_of_others(value: float) -> None:
    """Products with zeros and ones, and sums, of bits: exact, whatever else there is."""
    table = torch.randn(6, 5)
    table[2] = value
    table[3] = float("nan")
    ids, at = torch.tensor([2, 0, 5, 1, 4]), torch.tensor([2, 2, 1, 0, 4])
    got = run(g.embedding, "pallas", {"y": (5, 5)}, ids=ids, table=table)["y"]
    assert torch.equal(got.view(torch.int32), table[ids].view(torch.int32))
    square = table[:5]
    got = run(columns, "pallas", {"y": (5, 5)}, ids=at, x=square)["y"]
    assert torch.equal(got.view(torch.int32), square[:, at].view(torch.int32))
    got = run(g.diagonal, "pallas", {"y": (5,)}, x=square)["y"]
    assert torch.equal(got.view(torch.int32), square.diag().view(torch.int32))


def test_what_a_tpu_cannot_gather_is_named() -> None:
    chip = targets.get("tpu-v6e")
    with pytest.raises(kd.TargetError, match=r"elements gathers from x\[V, D\] \(line \d+\) by several tiles of indices"):
        text(g.elements, dict(M=64, V=8, D=8), target="tpu-v6e")
    found = instance(g.embedding, dict(M=4096, V=128256, D=4096))
    with pytest.raises(kd.TargetError, match=r"gathers from table\[V, D\], of which tpu-v6e holds all .* kd.parallel\("):
        _ = space(found, chip).first


def test_a_loop_that_gathers_has_no_warp_specialised_schedule() -> None:
    dims = dict(M=4096, V=4096, D=4096, N=4096)
    schedule = space(instance(g.product_of_rows, dims, dtype="bf16"), targets.get("nvidia-h200")).knobs.get("schedule", ())
    assert "warp_specialised" not in schedule


# ------------------------------------------------------------------ what is refused, and what is known
def refused(kernel: kd.Kernel, dims: dict[str, int], says: str, ids: str = "i32") -> None:
    with pytest.raises(kd.KernelError, match=says):
        instance(kernel, dims, ids).lower()


@kd.kernel(ids="M", x="M", y="V")
def stored_at(ids: kd.In, x: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        y[ids[m]] = x[m]


@kd.kernel(ids="M N", x="N V", y="M N")
def turned(ids: kd.In, x: kd.In, y: kd.Out) -> None:
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        y[m, n] = x[n, ids[m, n]].T


@kd.kernel(ids="M", x="V N", y="M N")
def lengthened(ids: kd.In, x: kd.In, y: kd.Out) -> None:
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        y[m, n] = x[ids[m][:, None], n]


def test_what_is_refused() -> None:
    refused(stored_at, dict(M=4, V=4), r"y is stored to at places that a tile of indices names.*\n.*\n.*\n.*y\[…\] \+= value")
    refused(turned, dict(M=4, N=4, V=4), r"the result's axes are met in the order \[n, m\](.*\n)*  write .T behind it")
    refused(lengthened, dict(M=4, N=4, V=4), r"says nothing of the result(.*\n)*.*without \[:, None\]")
    refused(g.embedding, dict(M=4, V=4, D=4), r"table\[V, D\] indexed with a value of type f32\[m\]", "f32")


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(("size", "dtype"), [(1, "i32"), (37, "i64"), (199, "i32"), (760, "i64")])
def test_additions_at_indices(backend: str, size: int, dtype: str) -> None:
    """The gradient of an embedding: rows that are looked up again get a sum."""
    ids, x, grad = torch.randint(7, (size,)), torch.randn(size, 40), torch.ones(7, 40)
    want = grad.clone().index_add_(0, ids, x)
    g.embedding_gradient(ids.to(INTEGERS[dtype]), x, grad, backend=backend, config={"block_M": 16, "block_D": 16})
    torch.testing.assert_close(grad, want, atol=1e-4, rtol=1e-5)


def test_what_is_known_of_it() -> None:
    found = instance(g.embedding, dict(M=1000, V=50000, D=512))
    assert fixed_dims(found.lower()) == {"V", "D"}  # rows vary from call to call, tables do not
    assert work(found).bytes == 4 * (1000 + 2 * 1000 * 512)  # the rows that are looked up, not the table
    assert fixed_dims(instance(g.dequantised, dict(N=64, K=160, G=10)).lower()) >= {"K", "G"}
    for columns, checked in ((160, False), (161, True)):
        assert indices.checked(instance(g.dequantised, dict(N=64, K=columns, G=10)).lower()) == checked
    assert "table[checked(ids[m]), :]" in format_kernel(found.lower())


@pytest.mark.parametrize("target", ["nvidia-h200", "amd-mi300x"])
@pytest.mark.parametrize("kernel", [g.embedding, g.embedding_or, g.elements, g.embedding_gradient], ids=lambda k: k.name)
def test_kernels_that_check_compile(kernel: kd.Kernel, target: str) -> None:
    """Padded and level tiles, conditions, numbers beside tiles, additions: of each element whether its index is one."""
    dims, chip = {"M": 100, "V": 300, "D": 64}, targets.get(target)
    found = instance(kernel, {d: n for d, n in dims.items() if d in kernel.dim_names}, "i64")
    config = space(found, chip).first | {"checked": True}
    source = emit(found, chip, config)
    assert " = are_inside(" in source.text
    assert not build.compile(found, chip, config).spills
