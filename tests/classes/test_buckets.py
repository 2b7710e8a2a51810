"""Which dims are exact, and where buckets end."""

import pytest

import kpt_dsl as kd
from kpt_dsl import targets
from kpt_dsl.buckets import Span, bucket, exact_dims, spans
from kpt_dsl.emit import emit
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config
from tests.autotune_db import instances


@pytest.mark.parametrize(
    ("extent", "low", "high"),
    [(1, 1, 1), (2, 2, 2), (3, 3, 4), (4, 3, 4), (5, 5, 8), (4095, 2049, 4096), (4096, 2049, 4096), (4097, 4097, 8192)],
)
def test_buckets_end_at_powers_of_two(extent: int, low: int, high: int) -> None:
    assert bucket(extent) == Span(low, high)


def test_buckets_neither_overlap_nor_leave_a_gap() -> None:
    for extent in range(1, 3000):
        span = bucket(extent)
        assert span.low <= extent <= span.high
        assert bucket(span.low) == bucket(span.high) == span
        assert bucket(span.high + 1).low == span.high + 1


@pytest.mark.parametrize("span", [Span(7, 7), Span(2049, 4096)])
def test_a_span_is_read_back_from_its_text(span: Span) -> None:
    assert Span.parse(str(span)) == span


@pytest.mark.parametrize(
    ("instance", "exact"),
    [
        (instances.softmax(), {"N"}),  # held whole
        (instances.linear(), {"N", "K"}),  # of the weights
        (instances.linear(bias=False), {"N", "K"}),
        (instances.scores(), {"D"}),  # keys are no weights: they have the batch
        (instances.scores(lengths=True), {"D"}),
        (instances.scale_rows(), {"N"}),  # walked along and written
    ],
    ids=lambda value: "".join(sorted(value)) if isinstance(value, set) else str(value),  # the same in every process
)
def test_exact_are_dims_of_the_model(instance: Instance, exact: set[str]) -> None:
    assert exact_dims(instance.lower({})) == exact


@kd.kernel(x="M N", target="M", y="M N")
def picked(x: kd.In, target: kd.In, y: kd.Out) -> None:
    """Where the column is the row's class."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        column = n.index
        column = column + 1
        y[m, n] = kd.where(target[m][:, None] == column[None, :], x[m, n], 0.0)


@kd.function
def read_often(x: kd.Value) -> kd.Value:
    a = kd.maximum(x, x)
    b = kd.maximum(a, a)
    c = kd.maximum(b, b)
    return kd.maximum(c, c)


@kd.kernel(x="M N", target="M", y="M N")
def same(x: kd.In, target: kd.In, y: kd.Out) -> None:
    """Each value twice in the next one: a walk that came to each as often as it is read would not end."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        column = read_often(read_often(read_often(read_often(read_often(read_often(n.index))))))
        column = read_often(read_often(read_often(read_often(column))))
        y[m, n] = kd.where(target[m][:, None] == column[None, :], x[m, n], 0.0)


@kd.kernel(x="M N", target="M", y="M")
def looked_up(x: kd.In, target: kd.In, y: kd.Out) -> None:
    """The element of the row's class."""
    for m in kd.parallel(kd.tile("M")):
        y[m] = x[m, target[m]]


@kd.kernel(queries="B M", keys="B N", y="B M N")
def alike(queries: kd.In, keys: kd.In, y: kd.Out) -> None:
    """Where query and key are of one segment: what is compared was loaded on both sides."""
    for b, m, n in kd.parallel("B", kd.tile("M"), kd.tile("N")):
        y[b, m, n] = kd.where(queries[b, m][:, None] == keys[b, n][None, :], 1.0, 0.0)


@kd.kernel(x="B N", start="B", key="B", y="B N")
def placed(x: kd.In, start: kd.In, key: kd.In, y: kd.Out) -> None:
    """Where a place in a row that starts somewhere is a certain one: no index alone."""
    for b, n in kd.parallel("B", kd.tile("N")):
        y[b, n] = kd.where(n.index + start[b] == key[b], x[b, n], 0.0)


KERNEL_DIMS = {picked: "MN", same: "MN", looked_up: "MN", alike: "BMN", placed: "BN"}


@pytest.mark.parametrize(
    ("kernel", "dtypes", "exact"),
    [
        (picked, {"x": "bf16", "target": "i64", "y": "bf16"}, {"N"}),
        (same, {"x": "bf16", "target": "i64", "y": "bf16"}, {"N"}),
        (looked_up, {"x": "bf16", "target": "i64", "y": "bf16"}, {"N"}),
        (alike, {"queries": "i64", "keys": "i64", "y": "bf16"}, set()),
        (placed, {"x": "bf16", "start": "i32", "key": "i32", "y": "bf16"}, set()),
    ],
    ids=["picked", "same", "looked up", "alike", "placed"],
)
def test_classes_are_exact(kernel: kd.Kernel, dtypes: dict[str, str], exact: set[str]) -> None:
    extents = {dim: n for dim, n in {"B": 2, "M": 64, "N": 50304}.items() if dim in KERNEL_DIMS[kernel]}
    assert exact_dims(Instance.of_shapes(kernel, extents, dtypes).lower({})) == exact


def test_masked_rows_of_aligned_classes_are_read_in_one_go() -> None:
    """Their text is told that 16 divides the row, in tiles that do not."""
    extents, dtypes = {"M": 64, "N": 50304}, {"x": "bf16", "target": "i64", "y": "bf16"}
    source = emit(
        Instance.of_shapes(picked, extents, dtypes),
        targets.get("nvidia-h200"),
        Config(block_M=16, block_N=256, num_warps=4),
    )
    assert {a.name for a in source.abi.arguments if getattr(a, "divisible", False)} >= {"N", "x_stride_M", "y_stride_M"}


def test_a_key_has_the_exact_extent_or_the_bucket() -> None:
    assert tuple(spans((p := instances.linear(M=100, N=520, K=250)).lower({}), dict(p.extents.dims)).items()) == (
        ("M", Span(65, 128)),
        ("K", Span(250, 250)),
        ("N", Span(520, 520)),
    )


OP_KERNELS = {
    ("flash_attention", "flash_attention_fwd"): {"D", "E"},
    ("flash_attention_backward", "flash_attention_dkdv"): {
        "D",
        "E",
    },  # queries are in buckets in both ways, added to or not
    ("linear_act", "linear_act_fwd"): {"N", "K"},
    ("fp8_matmul", "fp8_matmul_fwd"): {"N", "K"},
    ("layer_norm", "layer_norm_fwd"): {"N"},
    ("rms_norm", "rms_norm_fwd"): {"N"},
    ("layer_norm_backward", "layer_norm_bwd"): {"N"},  # rows are dealt out among P programs: both in buckets
    ("rms_norm_backward", "column_sums"): {"P"},
    ("cross_entropy", "cross_entropy_fwd"): {"N"},  # classes are a model's
    ("cross_entropy_backward", "cross_entropy_bwd"): {"N", "ONE"},
}


@pytest.mark.parametrize(("op", "kernel"), OP_KERNELS)
def test_exact_dims_of_our_ops(op: str, kernel: str) -> None:
    import kpt.ops  # noqa: F401
    from kpt.ops.registry import get

    spec = get(op)
    for shape in spec.shapes:
        for instance in spec.instances(shape.dims, shape.dtype, **shape.flags):
            if instance.kernel.name == kernel:
                assert exact_dims(instance.lower({})) == OP_KERNELS[op, kernel], shape
