"""Which dims are exact, and where buckets end."""

import pytest

from kpt_dsl.buckets import Span, bucket, exact_dims, spans
from kpt_dsl.instance import Instance
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


def test_a_key_has_the_exact_extent_or_the_bucket() -> None:
    assert tuple(spans((p := instances.linear(M=100, N=520, K=250)).lower({}), dict(p.extents.dims)).items()) == (
        ("M", Span(65, 128)),
        ("K", Span(250, 250)),
        ("N", Span(520, 520)),
    )


OP_KERNELS = {
    ("flash_attention", "flash_attention_fwd"): {"D", "E"},
    ("flash_attention_backward", "flash_attention_dkdv"): {"D", "E"},  # queries are in buckets in both ways, added to or not
    ("linear_act", "linear_act_fwd"): {"N", "K"},
    ("fp8_matmul", "fp8_matmul_fwd"): {"N", "K"},
    ("layer_norm", "layer_norm_fwd"): {"N"},
    ("rms_norm", "rms_norm_fwd"): {"N"},
    ("layer_norm_backward", "layer_norm_bwd"): {"N"},  # rows are dealt out among P programs: both in buckets
    ("rms_norm_backward", "column_sums"): {"P"},
    ("cross_entropy", "cross_entropy_fwd"): set(),  # classes as well as rows are in buckets
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
