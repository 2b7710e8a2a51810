"""Linear layers whose rows begin at no multiples of 16 bytes: what is copied for it, what kernels are told, and the numbers."""

from typing import Any

import numpy as np
import pytest
import torch

from kpt.ops import linear_act, prefer
from kpt.ops.linear_act import alignment
from kpt.ops.registry import get
from kpt_dsl.targets import get as target
from tests.ops.test_linear_act_backward import expected, randn
from tests.tolerances import assert_close

HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short the product."""
    monkeypatch.setattr(alignment, "COPIED", 0)
    monkeypatch.setattr(alignment, "WIDE", 1)


def beginning(offset: int) -> torch.Tensor:
    """Rows of 16 of 24 that begin 2 bytes behind a multiple of 16, ``offset`` elements from where their storage begins."""
    room = np.zeros(512, np.uint8)
    begin = -room.ctypes.data % 16 + 18 - 2 * offset
    return torch.from_numpy(room[begin : begin + 2 * (offset + 5 * 24)]).view(torch.bfloat16)[offset:].view(5, 24)[:, :16]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("offsets", [(0, 1), (1, 0)])
def test_addresses_tell_whether_rows_are_copied(offsets: tuple[int, int]) -> None:
    """As they tell calls apart: what comes from another library may begin anywhere, and be a whole storage."""
    weight = randn(9, 16, dtype="bf16")
    for offset in offsets:
        x = beginning(offset).copy_(torch.randn(5, 16))
        assert (x.data_ptr() % 16, x.storage_offset()) == (2, offset)
        with prefer("triton"):
            assert_close(linear_act(x, weight), x.double() @ weight.double().T, "bf16", 16)


MISALIGNED = {
    "odd": torch.zeros(5, 9),
    "even, not by eight": torch.zeros(5, 12),
    "one column": torch.zeros(5, 1),
    "long rows": torch.zeros(3, 1001),
    "it begins late": torch.zeros(5, 17)[:, 1:9].contiguous().new_zeros(5 * 16 + 1)[1:].view(5, 16),
    "rows apart": torch.zeros(5, 9)[:, :8],
}
ALIGNED = {
    "by eight": torch.zeros(5, 16),
    "one row for all": torch.zeros(1, 16).expand(5, 16),
    "a part": torch.zeros(5, 24)[:, 8:17],
}


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("case", MISALIGNED)
def test_a_copy_begins_at_16_bytes_in_every_row(case: str, dtype: torch.dtype) -> None:
    lying = MISALIGNED[case]
    matrix = torch.empty_strided(lying.shape, lying.stride(), dtype=dtype)
    if offset := lying.storage_offset():
        matrix = torch.empty(lying.numel() + offset, dtype=dtype)[offset:].view(lying.shape)
    matrix.copy_(torch.randn(lying.shape))
    copy = alignment.aligned(matrix, 1)
    for one in (copy, alignment.room_like(matrix, 1)):
        assert one.shape == matrix.shape and one.dtype == dtype and one.stride(1) == 1
        assert (one.storage_offset() * 2) % 16 == (one.stride(0) * 2) % 16 == 0
        assert one.stride(0) * 2 % 128 == 0 or one.shape[1] < 512
        assert one.stride(0) <= 1.13 * one.shape[1] + 7
    assert torch.equal(copy, matrix)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("case", ALIGNED)
def test_what_begins_there_is_not_copied(case: str) -> None:
    lying = ALIGNED[case]
    matrix = torch.zeros(200, dtype=torch.bfloat16).as_strided(lying.shape, lying.stride(), lying.storage_offset())
    assert alignment.aligned(matrix, 1) is matrix


def test_nor_what_a_short_product_reads_nor_other_types() -> None:
    short, wide = torch.zeros(64, 99, dtype=torch.bfloat16), torch.zeros(1 << 12, (1 << 12) + 1, device="meta")
    assert alignment.aligned(short, 4096) is short
    assert alignment.aligned(wide, 4096) is wide
    assert alignment.aligned(torch.zeros(1 << 13, (1 << 12) + 1, dtype=torch.bfloat16, device="meta"), 127).is_contiguous()
    assert alignment.aligned(wide.bfloat16(), 128).stride() == ((1 << 12) + 64, 1)
    assert alignment.room_like(short, 4096).is_contiguous()
    assert alignment.room_like(wide, 4096).is_contiguous()


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("backend", ["numpy", "triton", "pallas"])
@pytest.mark.parametrize(("activation", "recompute"), [("none", False), ("silu", False), ("gelu", True), ("relu", False)])
def test_numbers(activation: str, recompute: bool, backend: Any) -> None:
    for dtype, shape, transposed, bias in (
        ("bf16", (37, 31, 19), False, True), ("f16", (5, 17, 8), False, False), ("bf16", (9, 8, 17), True, True),
        ("f16", (1, 199, 37), True, False),
    ):  # fmt: skip
        m, n, k = shape
        x, kept = randn(m, k, dtype=dtype), randn(n, k, dtype=dtype) / 4
        weight = kept.mT.contiguous().mT if transposed else kept
        b = randn(n, dtype=dtype) if bias else None
        given = [t.requires_grad_() for t in (x, weight, b) if t is not None]
        with prefer(backend):
            y = linear_act(x, weight, b, activation=activation, recompute=recompute)
        dy = randn(*y.shape, dtype=dtype)
        assert y.is_contiguous()
        for got, wanted in zip(torch.autograd.grad(y, given, dy), expected(dy, x, weight, b, activation), strict=True):
            assert_close(got, wanted, dtype, 199)


@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_gradients_of_a_long_product_are_made_of_rows_that_begin_so(activation: str) -> None:
    """So that Hopper's kernels fetch tiles; and as they lie, where the product is short."""
    for rows, is_copied in ((16384, True), (16, False)):
        found = get("linear_act_backward").instances({"M": rows, "N": 50257, "K": 768}, "bf16", activation=activation)
        strides = {i.kernel.name: dict(i.extents.strides)["dz"][0] for i in found if i.kernel.name.endswith(("_dx", "_dw"))}
        assert strides == dict.fromkeys(("linear_act_bwd_dx", "linear_act_bwd_dw"), 50304 if is_copied else 50257)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("op", ["linear_act", "linear_act_saving", "linear_act_backward"])
def test_what_long_products_read_is_copied(op: str, transposed: bool) -> None:
    """Each matrix, however the weight lies; and none for short ones."""
    for rows, step in ((16384, {777: 832, 779: 832}), (16, {777: 777, 779: 779})):
        found = get(op).instances({"M": rows, "N": 779, "K": 777}, "bf16", activation="gelu", transposed=transposed)
        inner, features = step[777], step[779]
        wanted = {"x": inner, "dz": features} | ({"weight_t": features} if transposed else {"weight": inner})
        products = [i for i in found if i.kernel.name.endswith(("_fwd", "_saving", "_dx"))]
        assert len(products) == 1
        strides = {name: of[0] for name, of in products[0].extents.strides if name in wanted}
        assert strides == {name: wanted[name] for name in strides} and len(strides) == 2


def test_the_gradient_of_a_bias_alone_is_summed_as_it_lies() -> None:
    dy, x, weight = (torch.empty(s, dtype=torch.bfloat16, device="meta") for s in ((16384, 50257), (16384, 768), (50257, 768)))
    for needed, step in (((False, False, True), 50257), ((True, False, True), 50304)):
        found = get("linear_act_backward").record((dy, x, weight, None, None, "none", needed), None, True)
        assert {strides[0] for i in found for name, strides in i.extents.strides if name in ("dz", "x")} == {step}


def test_a_tpu_is_given_what_lies_there() -> None:
    call = {"M": 16384, "N": 50257, "K": 768}
    (instance, *_) = get("linear_act_backward").instances(call, "bf16", target("tpu-v5e"), activation="none")
    assert dict(instance.extents.strides)["dz"][0] == 50257


def test_when_kpts_product_is_quicker() -> None:
    """As measured on an H200 (``kpt.ops.linear_act.alignment``)."""
    always = (
        (16384, 50257, 768), (8192, 30522, 768), (1024, 50257, 768), (16384, 1001, 768), (16384, 768, 777),
        (8192, 4095, 4095),
    )  # fmt: skip
    untrained = ((16, 50257, 768), (16384, 1004, 768))
    never = (
        (16384, 50304, 768), (1, 50257, 768), (16384, 1, 768), (16, 768, 777), (100, 99, 1 << 20 | 1), (16384, 1004, 1004),
        (2048, 1024, 588),
    )  # fmt: skip
    for cases, answers in ((always, (True, True)), (untrained, (True, False)), (never, (False, False))):
        for one in cases:
            assert (alignment.is_quicker(*one), alignment.is_quicker(*one, trained=True)) == answers, one
