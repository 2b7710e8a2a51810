"""The public functions through generated kernels: what lies between a call and a kernel (views, defaults, scales, layouts).

The kernels' own numbers are held against float64 in ``tests/generated``.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import kpt
from autotune_db import overlay
from kpt.ops import cross_entropy, flash_attention, fp8_matmul, layer_norm, linear_act, quantize_fp8, rms_norm
from kpt.ops.layer_norm.kernels import layer_norm_fwd
from kpt.ops.registry import get
from kpt_dsl import ConfigError
from kpt_dsl.space import Config
from tests.ops.calls import OPS, arguments, served
from tests.tolerances import assert_close

BACKENDS = ("numpy", "triton", "pallas")
SEVERAL_WAYS = ("flash_attention", "flash_attention_backward")
"""Ops that choose between kernels by what was measured."""


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def fp8(*shape: int, dtype: torch.dtype = torch.float8_e4m3fn) -> torch.Tensor:
    return randn(*shape).to(dtype)


def heads_last(batch: int, length: int, heads: int, dim: int) -> torch.Tensor:
    return randn(batch, length, heads, dim).transpose(1, 2)


Q, KV = heads_last(2, 9, 4, 32), heads_last(2, 13, 2, 32)
LENGTHS = torch.tensor([13, 0], dtype=torch.int32)
ONE = torch.tensor(0.5)
CLASSES = torch.tensor([7, 0, 3])

CALLS: dict[str, Callable[[], Any]] = {
    "attention": lambda: flash_attention(Q, KV, KV),
    "attention, causal, fewer queries, lse": lambda: flash_attention(Q, KV, KV, causal=True, return_lse=True),
    "attention, causal, rows without keys, lse": lambda: flash_attention(KV, Q[:, :2], Q[:, :2], causal=True, return_lse=True),
    "attention, window": lambda: flash_attention(Q, KV, KV, window=3, return_lse=True),
    "attention, causal window": lambda: flash_attention(Q, KV, KV, window=1, causal=True),
    "attention, key lengths": lambda: flash_attention(Q, KV, KV, key_lengths=LENGTHS, return_lse=True),
    "attention, key lengths out of range": lambda: flash_attention(Q, KV, KV, key_lengths=LENGTHS * 100 - 5, return_lse=True),
    "attention, causal, key lengths": lambda: flash_attention(Q, KV, KV, key_lengths=LENGTHS - 4, causal=True),
    "attention, scale": lambda: flash_attention(Q, KV, KV, scale=1.0),
    "attention, transposed": lambda: flash_attention(*[randn(1, 2, 32, 7).mT] * 3),
    "attention, part of a fused projection": lambda: flash_attention(*randn(2, 7, 3, 2, 32).permute(2, 0, 3, 1, 4)),
    "linear, relu": lambda: linear_act(randn(2, 3, 9), randn(7, 9), randn(7), activation="relu"),
    "linear, gelu, no bias": lambda: linear_act(randn(5, 9), randn(7, 9), activation="gelu"),
    "linear, gelu_tanh, one row": lambda: linear_act(randn(9), randn(7, 9), randn(7), activation="gelu_tanh"),
    "linear, silu, transposed": lambda: linear_act(randn(9, 5).T, randn(9, 7).T, randn(7), activation="silu"),
    "linear": lambda: linear_act(randn(9, 4, 5).transpose(0, 1), randn(7, 5)),
    "layer norm": lambda: layer_norm(randn(3, 40), (40,)),
    "layer norm, two dims": lambda: layer_norm(randn(2, 3, 4, 5), (4, 5), randn(4, 5), randn(4, 5)),
    "layer norm, both dims of a matrix": lambda: layer_norm(randn(4, 5), (4, 5)),
    "layer norm, one element": lambda: layer_norm(randn(3, 1), (1,), randn(1), randn(1), 0.5),
    "layer norm, all of it": lambda: layer_norm(randn(40), (40,), randn(40)),
    "layer norm, transposed": lambda: layer_norm(randn(40, 3).T, (40,), None, randn(40)),
    "layer norm, rows apart": lambda: layer_norm(randn(3, 80)[:, ::2], (40,), randn(80)[::2]),
    "layer norm, wide weight": lambda: layer_norm(randn(3, 40, dtype=torch.float16), (40,), randn(40), randn(40)),
    "rms norm": lambda: rms_norm(randn(3, 40), (40,)),
    "rms norm, two dims": lambda: rms_norm(randn(2, 3, 4, 5), [4, 5], randn(4, 5), 0.1),
    "cross-entropy, lse": lambda: cross_entropy(randn(3, 8), CLASSES, return_lse=True),
    "cross-entropy, rows, strided": lambda: cross_entropy(
        randn(8, 3).T, CLASSES.repeat_interleave(2)[::2], reduction="none", ignore_index=3, label_smoothing=0.1
    ),
    "fp8, tensor-wise": lambda: fp8_matmul(fp8(16, 32), fp8(48, 32).T, ONE, ONE.view(1), out_dtype=torch.float32),
    "fp8, row-wise": lambda: fp8_matmul(
        fp8(16, 32), fp8(48, 32).T, randn(16, 1).abs(), randn(1, 48).abs(), bias=randn(48), out_dtype=torch.float32
    ),
    "fp8, row-major b": lambda: fp8_matmul(fp8(16, 32), fp8(32, 48), ONE, ONE, out_dtype=torch.float32),
    "fp8, mixed": lambda: fp8_matmul(
        fp8(5, 9, dtype=torch.float8_e5m2), fp8(7, 9).T, randn(5, 1).abs(), ONE, bias=randn(7, dtype=torch.bfloat16),
        out_dtype=torch.float32,
    ),
    "quantize, row": lambda: quantize_fp8(randn(2, 3, 40), "row"),
    "quantize, tensor": lambda: quantize_fp8(randn(3, 40)),
    "quantize, vector, e5m2": lambda: quantize_fp8(randn(40), "row", torch.float8_e5m2),
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CALLS)
def test_kernels_do_what_the_reference_does(name: str, backend: str) -> None:
    call = CALLS[name]
    expected, got = call(), None
    with kpt.ops.prefer(backend):  # type: ignore[arg-type]
        got = call()
    expected, got = (r if isinstance(r, tuple) else (r,) for r in (expected, got))
    for e, g in zip(expected, got, strict=True):
        assert (g.dtype, g.shape, g.stride()) == (e.dtype, e.shape, e.stride())
        narrow = {torch.float16: "f16", torch.float8_e4m3fn: "f8e4m3", torch.float8_e5m2: "f8e5m2"}.get(e.dtype, "f32")
        assert_close(g.float(), e.float(), narrow, 40)


@pytest.mark.parametrize("op", OPS)
def test_half_precision(op: str) -> None:
    call = arguments(op, "bf16")
    public = getattr(torch.ops.kpt, op)
    expected, before = public(*call), served(op).get("numpy", 0)
    with kpt.ops.prefer("numpy"):
        got = public(*call)
    assert served(op)["numpy"] == before + 1
    flat = [r if isinstance(r, list | tuple) else [r] for r in (expected, got)]
    for e, g in zip(*flat, strict=True):
        assert g.dtype == e.dtype
        assert_close(g.float(), e.float(), "f8e4m3" if e.dtype == torch.float8_e4m3fn else "bf16", 48)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: layer_norm(randn(3, 8).double(), (8,)), "kernels do not compute on torch.float64"),
        (lambda: layer_norm(randn(0, 8), (8,)), "a tensor is empty"),
        (lambda: quantize_fp8(randn(3, 8).requires_grad_()), "an input needs grad"),
        (lambda: flash_attention(*[randn(1, 1, 3, 264)] * 3), "the head dim is above 256"),
        (lambda: flash_attention(*[randn(1, 1, 3, 8)] * 3, scale=float("nan")), "scale is NaN"),
        (lambda: cross_entropy(randn(3, 8), CLASSES, randn(8).abs()), "classes have weights"),
        (lambda: cross_entropy(randn(3, 8), randn(3, 8).softmax(1)), "targets are probabilities"),
        (lambda: cross_entropy(randn(3, 8), CLASSES, ignore_index=2**31), "ignore_index does not fit 32 bits"),
        (lambda: cross_entropy(randn(3, 8), CLASSES, softcap=1e-40), "softcap is below 1.18e-38"),
        (lambda: cross_entropy(randn(3, 8), CLASSES, softcap=1e38), r"softcap is above 8.51e\+37"),
        (lambda: flash_attention(*[randn(1, 1, 3, 8)] * 3, softcap=1e300), r"softcap is above 8.51e\+37"),
        (lambda: cross_entropy(randn(1, 8, 3), CLASSES[None]), "the classes of a row do not lie side by side"),
    ],
)
def test_what_kernels_do_not_serve(call: Callable[[], Any], reason: str) -> None:
    call()
    with (
        kpt.ops.prefer("triton"),
        pytest.raises(kpt.InputError, match=f"triton is preferred but cannot serve this call: {reason}"),
    ):
        call()


def test_explain_names_the_kernel_its_config_and_provenance() -> None:
    with kpt.ops.prefer("triton"):
        explained = kpt.ops.explain("quantize_fp8", randn(3, 40), "row")
    (kernel,) = explained.kernels
    assert explained.implementation == "triton"
    assert kernel.kernel == "quantize_rows"
    assert "num_warps=" in kernel.config
    assert kernel.provenance
    assert f"kernel      quantize_rows: {kernel.config} ({kernel.provenance})" in str(explained)


@pytest.mark.parametrize("op", OPS)
def test_instances_are_what_a_call_launches(op: str) -> None:
    given = arguments(op)
    spec = get(op)
    launched = [p.kernel.name for p in spec.record(given)]
    with kpt.ops.prefer("numpy"):
        explained = kpt.ops.explain(op, **dict(zip(_parameters(spec.public), given, strict=False)))  # a schema may have more
    others = iter(launched)  # of several ways to go, one is explained and all are tuned
    assert all(k.kernel in others for k in explained.kernels)
    assert len(launched) == len(explained.kernels) or op in SEVERAL_WAYS


def _parameters(function: Callable[..., Any]) -> list[str]:
    import inspect

    return list(inspect.signature(function).parameters)


def test_a_compiled_graph_runs_the_preferred_kernel() -> None:
    x = randn(3, 40)
    compiled = torch.compile(lambda x: layer_norm(x, (40,)) + 1, fullgraph=True, backend="aot_eager")
    before = served("layer_norm").get("numpy", 0)
    with torch.no_grad(), kpt.ops.prefer("numpy"):
        assert_close(compiled(x), layer_norm(x, (40,)) + 1, "f32", 40)
    assert served("layer_norm")["numpy"] == before + 2


def test_an_overlay_reaches_calls_that_are_remembered() -> None:
    x = randn(3, 40)
    with kpt.ops.prefer("numpy"):
        before = layer_norm(x, (40,))
        with overlay({layer_norm_fwd: Config(whole_row=False, block_M=3)}), pytest.raises(ConfigError, match="overlay"):
            layer_norm(x, (40,))
        assert torch.equal(layer_norm(x, (40,)), before)
