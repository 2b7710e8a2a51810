"""Cutting a loop into producer and consumers: what goes where, and why a kernel cannot be cut."""

import pytest

import kpt_dsl as kd
from kpt.ops.flash_attention.kernels import flash_attention_fwd
from kpt.ops.layer_norm.kernels import layer_norm_fwd
from kpt.ops.linear_act.kernels import linear_act_fwd
from kpt_dsl import ir
from kpt_dsl.instance import Instance
from kpt_dsl.kernel import Kernel
from kpt_dsl.passes import bounds, padding, pipeline


def guarded(kernel: Kernel, dims: dict[str, int], dtypes: dict[str, str | None], **statics: object) -> ir.Kernel:
    lowered = Instance.of_shapes(kernel, dims, dtypes, statics).lower()
    return padding.guard(bounds.settle(lowered), lambda _: True)


def attention(lengths: bool = False, **flags: object) -> ir.Kernel:
    dtypes = {
        "q": "bf16",
        "k": "bf16",
        "v": "bf16",
        "o": "bf16",
        "lse": "f32",
        "key_lengths": "i32" if lengths else None,
    }
    dims = {"B": 1, "H": 2, "G": 1, "M": 37, "N": 199, "D": 64, "E": 64}
    return guarded(flash_attention_fwd, dims, dtypes, **({"causal": False, "window": None} | flags))


def test_attention_is_a_chain_of_two_products() -> None:
    plan = pipeline.pipeline(attention(causal=True, window=None))
    assert plan.masked.link is not None
    assert plan.held is not None
    assert (plan.held.name, plan.masked.link.name, plan.masked.product.name) == ("query", "s", "acc")
    assert [(o.load.tensor, o.transposed) for o in (*plan.link, *plan.product)] == [("k", True), ("v", False)]
    assert {s.name for s in plan.setup} == {"top", "total", "acc"}
    assert [p.loop.part for p in plan.parts] == ["interior", "tail"]
    assert [s.tensor for s in plan.after if isinstance(s, ir.Store)] == ["o", "lse"]


def test_a_window_has_edges_on_both_sides() -> None:
    parts = pipeline.pipeline(attention(window=16)).parts
    assert [p.loop.part for p in parts] == ["head", "interior", "tail"]
    masks = [sum(isinstance(e, ir.Where) for e in ir.every_expr(p.step.between)) for p in parts]
    assert masks[0] == masks[2] > masks[1]


def test_a_matrix_product_is_one_product_a_step() -> None:
    dims, dtypes = {"M": 128, "N": 128, "K": 256}, {"x": "bf16", "weight": "bf16", "bias": None, "y": "bf16"}
    plan = pipeline.pipeline(guarded(linear_act_fwd, dims, dtypes, activation=relu))
    assert plan.masked.link is None
    assert [(o.load.tensor, o.transposed) for o in plan.product] == [("x", False), ("weight", True)]


@kd.function
def relu(x: kd.Value) -> kd.Value:
    return kd.maximum(x, 0.0)


@kd.kernel(a="M K", b="K N", y="M N")
def reads_its_sum(a: kd.In, b: kd.In, y: kd.Out) -> None:
    """A loop that looks at its accumulator between products."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        acc, worst = kd.zeros([m, n]), kd.zeros([m])
        for k in kd.sequential(kd.tile("K")):
            acc = kd.dot(a[m, k], b[k, n], acc)
            worst = kd.maximum(worst, kd.max(acc, axis=1))
        y[m, n] = acc * worst[:, None]


@kd.kernel(a="M K", b="K N", y="M N")
def scales_first(a: kd.In, b: kd.In, y: kd.Out) -> None:
    """A left side that is computed from what was loaded, not from a product."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        acc = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K")):
            acc = kd.dot((a[m, k] * 2.0).to(kd.bf16), b[k, n], acc)
        y[m, n] = acc


PRODUCT = ({"M": 64, "N": 64, "K": 64}, {"a": "bf16", "b": "bf16", "y": "bf16"})
NORM = ({"M": 4, "N": 8}, {"x": "bf16", "weight": None, "bias": None, "y": "bf16"})


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (guarded(layer_norm_fwd, *NORM), "it has not exactly one loop"),
        (attention(lengths=True), "a scalar is loaded"),
        (guarded(reads_its_sum, *PRODUCT), "its loop reads the accumulator"),
        (guarded(scales_first, *PRODUCT), "a product reads neither loaded tiles nor another product's result"),
    ],
)
def test_why_a_kernel_has_no_such_form(kernel: ir.Kernel, reason: str) -> None:
    assert reason in (pipeline.why_not(kernel) or "")


@kd.kernel(a="M K", b="K N", y="M N")
def counts_within_tiles(a: kd.In, b: kd.In, y: kd.Out) -> None:
    """A tile with one dim along both axes: layouts are told by the names of axes."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        acc = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K")):
            acc = kd.dot(a[m, k], b[k, n], acc)
        same = kd.sum(kd.where(n.index[None, :] == n.index[:, None], 1.0, 0.0), axis=0)
        y[m, n] = acc * same[None, :]


def test_tiles_with_one_dim_along_both_axes_keep_the_compilers_schedule() -> None:
    assert "one dim along both" in (pipeline.why_not(guarded(counts_within_tiles, *PRODUCT)) or "")


@kd.kernel(a="M K", c="N K", y="M N")
def part_of_a_product(a: kd.In, c: kd.In, y: kd.Out) -> None:
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        acc = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K"), start=16):
            acc = kd.dot(a[m, k], c[n, k].T, acc)
        y[m, n] = acc


def test_a_lone_product_within_bounds_keeps_the_compilers_schedule() -> None:
    """Nothing would mask what lies before them inside a tile: tiles go to the matrix unit as they lie in memory."""
    dims, dtypes = {"M": 64, "N": 64, "K": 64}, dict.fromkeys("acy", "bf16")
    assert "bounds of its own" in (pipeline.why_not(guarded(part_of_a_product, dims, dtypes)) or "")
