"""The references, which are contract and last fallback, against plain float64 loops. A bug planted in one turns this red."""

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import kpt.ops
from tests.activations import FORMULAS
from tests.ops import naive
from tests.tolerances import assert_close

TORCH = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(20)


def randn(*shape: int, dtype: str = "f32") -> torch.Tensor:
    return torch.randn(*shape, dtype=TORCH[dtype])


MASKS = [
    {},
    {"causal": True},
    {"window": 3},
    {"window": 1},
    {"causal": True, "window": 2},
    {"key_lengths": (4, 0)},
    {"causal": True, "window": 3, "key_lengths": (2, 9)},
    {"scale": 0.3},
    {"scale": -0.7, "causal": True},
]


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (3, 8), (8, 3), (1, 6), (6, 1)])
@pytest.mark.parametrize("options", MASKS, ids=str)
def test_attention(queries: int, keys: int, options: dict[str, object]) -> None:
    q, k, v = randn(2, 4, queries, 16), randn(2, 2, keys, 16), randn(2, 2, keys, 16)
    o, lse = naive.attention(q, k, v, **options)
    if (lengths := options.get("key_lengths")) is not None:
        options = {**options, "key_lengths": torch.tensor(lengths, dtype=torch.int32)}
    got = kpt.ops.flash_attention(q, k, v, **options)
    assert_close(got, o, "f32", keys)
    got, got_lse = kpt.ops.flash_attention(q, k, v, return_lse=True, **options)
    assert_close(got, o, "f32", keys)
    assert_close(got_lse, lse, "f32", keys)
    assert got_lse.dtype == torch.float32


HIDDEN = torch.zeros(2, 1, 1, 8).index_fill(3, torch.tensor([0, 1, 2, 4]), -torch.inf)
SCORES = [
    {"softcap": 0.7, "causal": True},
    {"mask": HIDDEN == 0, "causal": True},  # the first queries see no key
    {"mask": HIDDEN, "causal": True},
    {"mask": torch.linspace(-3, 3, 4 * 5 * 8).view(4, 5, 8), "window": 3},
    {"mask": torch.full((8,), torch.finfo(torch.float32).min).index_fill(0, torch.tensor([3, 5]), 0.3)},
    {"alibi_slopes": torch.tensor([0.1, 0.2, 0.4, 0.8])},
    {"alibi_slopes": torch.linspace(0.1, 2.0, 8).view(2, 4), "causal": True},
    {"sinks": torch.tensor([-1.0, 0.0, 3.0, -torch.inf]), "mask": HIDDEN, "causal": True},
    {"key_starts": torch.tensor([2, 9]), "causal": True},
    {"key_starts": torch.tensor([1, 4], dtype=torch.int32), "key_lengths": torch.tensor([7, 3])},
    {"window": (2, 1)},
    {"window": (-1, 0), "causal": False},
    {"window": (1, -1)},
    {"window": (1, 3), "causal": True},
]


@pytest.mark.parametrize("options", SCORES, ids=" ".join)
def test_scores_of_attention(options: dict[str, Any]) -> None:
    q, k, v = randn(2, 4, 5, 16), randn(2, 2, 8, 16), randn(2, 2, 8, 24)
    o, lse = naive.attention(q, k, v, **options)
    assert_close(kpt.ops.flash_attention(q, k, v, **options), o, "f32", 8)
    got, got_lse = kpt.ops.flash_attention(q, k, v, return_lse=True, **options)
    assert_close(got, o, "f32", 8)
    assert torch.equal(got_lse == -torch.inf, lse == -torch.inf)
    assert_close(got_lse, lse, "f32", 8)


@pytest.mark.parametrize("width", [1, 24])
def test_attention_of_values_of_another_head_dim(width: int) -> None:
    q, k, v = randn(2, 5, 4, 16).transpose(1, 2), randn(2, 2, 8, 16), randn(2, 2, 8, width)
    o, lse = naive.attention(q, k, v, window=3)
    got = kpt.ops.flash_attention(q, k, v, window=3)
    assert_close(got, o, "f32", 8)
    assert got.stride() == randn(2, 5, 4, width).transpose(1, 2).stride()
    got, got_lse = kpt.ops.flash_attention(q, k, v, window=3, return_lse=True)
    assert_close(got, o, "f32", 8)
    assert_close(got_lse, lse, "f32", 8)
    assert kpt.ops.flash_attention(q[:, :, :0], k, v).shape == (2, 4, 0, width)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f64"])
def test_attention_dtypes(dtype: str) -> None:
    q, k, v = randn(1, 2, 9, 32, dtype=dtype), randn(1, 1, 9, 32, dtype=dtype), randn(1, 1, 9, 32, dtype=dtype)
    o, lse = naive.attention(q, k, v, causal=True)
    for got in (
        kpt.ops.flash_attention(q, k, v, causal=True),
        kpt.ops.flash_attention(q, k, v, causal=True, return_lse=True)[0],
    ):
        assert got.dtype == q.dtype
        assert_close(got, o, "f32" if dtype == "f64" else dtype, 9)
    got_lse = kpt.ops.flash_attention(q, k, v, causal=True, return_lse=True)[1]
    assert_close(got_lse, lse, "f32" if dtype == "f64" else dtype, 9)


def test_attention_output_lies_in_memory_as_the_queries() -> None:
    q = randn(2, 5, 4, 16).transpose(1, 2)
    for got in (kpt.ops.flash_attention(q, q, q), kpt.ops.flash_attention(q, q, q, return_lse=True)[0]):
        assert got.stride() == q.stride()
    across = randn(2, 4, 16, 5).transpose(2, 3)
    assert kpt.ops.flash_attention(across, across, across).is_contiguous()


@pytest.mark.parametrize("shape", [(0, 4, 5, 6), (2, 0, 5, 6), (2, 4, 0, 6), (2, 4, 5, 0)], ids=str)
def test_attention_of_nothing(shape: tuple[int, ...]) -> None:
    batch, heads, queries, keys = shape
    q, k = randn(batch, heads, queries, 8), randn(batch, heads, keys, 8)
    o, lse = kpt.ops.flash_attention(q, k, k, return_lse=True)
    assert torch.equal(o, torch.zeros_like(q))
    assert torch.equal(lse, torch.full(q.shape[:3], -torch.inf))
    assert torch.equal(kpt.ops.flash_attention(q, k, k), o)


@pytest.mark.parametrize("options", [{}, {"mask": torch.zeros(5, 5)}, {"softcap": 3.0}, {"return_lse": True}], ids=str)
def test_attention_without_features_gives_the_mean(options: dict[str, Any]) -> None:
    """All scores are 0, as PyTorch has it."""
    q, v = torch.empty(2, 4, 5, 0), torch.randn(2, 4, 5, 6, requires_grad=True)
    o, *_ = [*found] if isinstance(found := kpt.ops.flash_attention(q, q, v, **options), tuple) else [found]
    torch.testing.assert_close(o, v.mean(2, keepdim=True).expand_as(v))
    torch.testing.assert_close(torch.autograd.grad(o.sum(), v)[0], torch.ones_like(v))


@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (0,), (2, 0, 3)], ids=str)
def test_linear_act(activation: str, leading: tuple[int, ...]) -> None:
    x, weight, bias = randn(*leading, 9), randn(7, 9), randn(7)
    for b in (bias, None):
        linear = x.double() @ weight.double().T + (0 if b is None else b.double())
        got = kpt.ops.linear_act(x, weight, b, activation=activation)
        assert got.shape == (*leading, 7)
        assert_close(got, FORMULAS[activation](linear.double()), "f32", 9)


def test_linear_act_without_features_gives_the_bias() -> None:
    bias = randn(7)
    assert torch.equal(kpt.ops.linear_act(randn(5, 0), randn(7, 0), bias, activation="relu"), bias.relu().expand(5, 7))


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize(("dtype", "parameters"), [("f32", "f32"), ("bf16", "bf16"), ("bf16", "f32"), ("f64", "f64")])
def test_norms(dims: int, dtype: str, parameters: str) -> None:
    x = randn(4, 3, 6, 10, dtype=dtype).transpose(0, 1)
    shape = tuple(x.shape[-dims:])
    tolerated = "f32" if dtype == "f64" else dtype
    for has_weight, has_bias in product((True, False), repeat=2):
        weight = randn(*shape, dtype=parameters) if has_weight else None
        bias = randn(*shape, dtype=parameters) if has_bias else None
        got = kpt.ops.layer_norm(x, shape, weight, bias, 1e-3)
        assert got.is_contiguous()
        assert got.dtype == x.dtype
        assert_close(got, naive.layer_norm(x, dims, weight, bias, 1e-3), tolerated, 60)
        got = kpt.ops.rms_norm(x, list(shape), weight, 1e-3)
        assert got.is_contiguous()
        assert got.dtype == x.dtype
        assert_close(got, naive.rms_norm(x, dims, weight, 1e-3), tolerated, 60)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_rms_norm_without_eps_is_pytorchs(dtype: torch.dtype) -> None:
    x = (torch.randn(4, 8) * 1e-3).to(dtype)  # small, so that eps shows
    assert_close(
        kpt.ops.rms_norm(x, (8,)),
        F.rms_norm(x.double(), (8,), eps=None if dtype == torch.float64 else 2**-23),
        "bf16",
        8,
    )
    assert torch.equal(kpt.ops.rms_norm(x, (8,)), F.rms_norm(x, (8,)))


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (2, 0, 8)], ids=str)
def test_norms_of_nothing(shape: tuple[int, ...]) -> None:
    x = randn(*shape)
    assert kpt.ops.layer_norm(x, shape[-1:]).shape == shape
    assert kpt.ops.rms_norm(x, shape[-1:]).shape == shape


@pytest.mark.parametrize("granularity", ["tensor", "row"])
@pytest.mark.parametrize(
    "kinds", [(torch.float8_e4m3fn, torch.float8_e4m3fn), (torch.float8_e5m2, torch.float8_e4m3fn)]
)
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_fp8_matmul(granularity: str, kinds: tuple[torch.dtype, torch.dtype], out_dtype: torch.dtype) -> None:
    a, b, bias = randn(16, 48).to(kinds[0]), randn(32, 48).to(kinds[1]).T, randn(32, dtype="bf16")
    rows = granularity == "row"
    scale_a, scale_b = torch.rand(16, 1) if rows else torch.rand(()), torch.rand(1, 32) if rows else torch.rand(1)
    exact = a.double() @ b.double() * scale_a.double() * scale_b.double()
    narrow = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}[out_dtype]
    got = kpt.ops.fp8_matmul(a, b, scale_a, scale_b, out_dtype=out_dtype)
    assert got.dtype == out_dtype
    assert_close(got, exact, narrow, 48)
    got = kpt.ops.fp8_matmul(a, b, scale_a, scale_b, bias=bias, out_dtype=out_dtype)
    assert_close(got, exact + bias.double(), narrow, 48)
    if kinds[0] == kinds[1] and out_dtype == torch.bfloat16 and (not rows or torch.__version__ >= "2.13"):
        # PyTorch 2.11's on a CPU has no scales of rows.
        one, other = (scale_a, scale_b) if rows else (scale_a.reshape(()), scale_b.reshape(()))
        assert_close(
            kpt.ops.fp8_matmul(a, b, one, other), torch._scaled_mm(a, b, one, other, out_dtype=out_dtype), narrow, 48
        )


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("granularity", ["tensor", "row"])
@pytest.mark.parametrize("magnitude", [1.0, 1e30, 1e-9])
def test_quantize_fp8(dtype: torch.dtype, granularity: str, magnitude: float) -> None:
    x = randn(3, 4, 9) * magnitude
    x[0, 0] = 0.0
    y, scale = kpt.ops.quantize_fp8(x, granularity, dtype)
    largest = torch.finfo(dtype).max
    assert (y.dtype, y.shape, scale.dtype) == (dtype, x.shape, torch.float32)
    assert scale.shape == ((3, 4, 1) if granularity == "row" else ())
    wanted = x.double().abs().amax(-1, keepdim=True) if granularity == "row" else x.double().abs().amax()
    assert_close(scale, wanted.clamp_min(1e-12) / largest, "f32")
    assert torch.all(y[0, 0].float() == 0)
    # Numbers that are not subnormal in FP8 keep their leading bits; the others stay within half the smallest spacing.
    step = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    error = (y.double() * scale.double() - x.double()).abs()
    assert torch.all(
        error <= torch.maximum(x.double().abs() * torch.finfo(dtype).eps, scale.double() * step) * 0.5 * (1 + 1e-6)
    )


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)], ids=str)
def test_quantising_nothing(shape: tuple[int, ...]) -> None:
    y, scale = kpt.ops.quantize_fp8(torch.empty(shape), "row")
    assert (y.shape, scale.shape) == (shape, (shape[0], 1))
    assert kpt.ops.quantize_fp8(torch.empty(shape))[1].shape == ()


def test_quantised_matrices_multiply() -> None:
    x, w = randn(16, 64), randn(32, 64)
    (a, scale_a), (b, scale_b) = kpt.ops.quantize_fp8(x, "row"), kpt.ops.quantize_fp8(w, "row")
    got = kpt.ops.fp8_matmul(a, b.T, scale_a, scale_b.T, out_dtype=torch.float32)
    exact = x.double() @ w.double().T
    assert (got - exact).abs().max() < 0.1 * exact.abs().max()
