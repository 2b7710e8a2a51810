"""Every refused argument: the error names the op and the argument, says what it was, and what is accepted."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import kpt
from kpt.ops import (
    cross_entropy,
    flash_attention,
    fp8_matmul,
    layer_norm,
    linear_act,
    linear_cross_entropy,
    prefer,
    quantize_fp8,
    rms_norm,
)
from kpt.ops.registry import get

X = torch.zeros(3, 8)
Q = torch.zeros(2, 4, 5, 16)
KV = torch.zeros(2, 2, 7, 16)
A = torch.zeros(16, 32).to(torch.float8_e4m3fn)
ONE = torch.ones(())
CLASSES = torch.zeros(3, dtype=torch.int64)


def lengths(*values: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


BAD: list[tuple[str, Callable[[], Any]]] = [
    ("flash_attention: q is of shape (3, 8), rank 2; accepted: rank 4", lambda: flash_attention(X, KV, KV)),
    ("flash_attention: q is [1, 2] (list); accepted: a torch.Tensor: rank 4", lambda: flash_attention([1, 2], KV, KV)),
    ("flash_attention: k is of shape (8,), rank 1; accepted: rank 4", lambda: flash_attention(Q, X[0], KV)),
    ("flash_attention: k is of shape (1, 2, 7, 16); accepted: the batch and head dim of q, (2, heads, keys, 16)",
     lambda: flash_attention(Q, KV[:1], KV[:1])),
    ("flash_attention: k is of shape (2, 2, 7, 8)", lambda: flash_attention(Q, KV[..., :8], KV)),
    ("flash_attention: v is of shape (2, 2, 6, 16); accepted: the batch, heads and keys of k, (2, 2, 7, any head dim)",
     lambda: flash_attention(Q, KV, KV[:, :, :6])),
    ("flash_attention: q is of 3 heads; accepted: a multiple of the 2 key-value heads of k",
     lambda: flash_attention(Q[:, :3], KV, KV)),
    ("flash_attention: q is of dtype torch.int32; accepted: torch.float32",
     lambda: flash_attention(Q.int(), KV.int(), KV.int())),
    ("flash_attention: v is of dtype torch.float16; accepted: the dtype of q, torch.float32",
     lambda: flash_attention(Q, KV, KV.half())),
    ("flash_attention: k is on meta; accepted: the device of q, cpu", lambda: flash_attention(Q, KV.to("meta"), KV)),
    ("flash_attention: window is -1; accepted: None, a whole number of keys, 1 or more, or a pair",
     lambda: flash_attention(Q, KV, KV, window=-1)),
    ("flash_attention: window is 0", lambda: flash_attention(Q, KV, KV, window=0)),
    ("flash_attention: window is 2.5", lambda: flash_attention(Q, KV, KV, window=2.5)),
    ("flash_attention: scale is 'big' (str); accepted: a number", lambda: flash_attention(Q, KV, KV, scale="big")),
    ("flash_attention: causal is 1 (int); accepted: True or False", lambda: flash_attention(Q, KV, KV, causal=1)),
    ("flash_attention: key_lengths is of shape (3,); accepted: (batch,), here (2,)",
     lambda: flash_attention(Q, KV, KV, key_lengths=lengths(1, 2, 3))),
    ("flash_attention: key_lengths is of dtype torch.int16; accepted: torch.int32, torch.int64",
     lambda: flash_attention(Q, KV, KV, key_lengths=lengths(1, 2, dtype=torch.int16))),
    ("linear_act: x is of shape (3, 8); accepted: (..., 9), as weight is of shape (4, 9)",
     lambda: linear_act(X, torch.zeros(4, 9))),
    ("linear_act: x is of shape (); accepted: (..., 8)", lambda: linear_act(torch.zeros(()), torch.zeros(4, 8))),
    ("linear_act: weight is of shape (8,), rank 1; accepted: rank 2", lambda: linear_act(X, X[0])),
    ("linear_act: bias is of shape (3,); accepted: (features out,), here (4,)",
     lambda: linear_act(X, torch.zeros(4, 8), torch.zeros(3))),
    ("linear_act: activation is 'selu'; accepted: none, relu, gelu, gelu_tanh, silu",
     lambda: linear_act(X, torch.zeros(4, 8), activation="selu")),
    ("linear_act: weight is of dtype torch.bfloat16; accepted: the dtype of x, torch.float32",
     lambda: linear_act(X, torch.zeros(4, 8, dtype=torch.bfloat16))),
    ("linear_act: x is of dtype torch.int64", lambda: linear_act(X.long(), X.long())),
    ("linear_act: weight is on meta; accepted: the device of x, cpu", lambda: linear_act(X, X.to("meta"))),
    ("layer_norm: input is array", lambda: layer_norm(np.zeros((3, 8)), (8,))),
    ("layer_norm: input is of shape (3, 8); accepted: a shape that ends with normalized_shape (9,)",
     lambda: layer_norm(X, (9,))),
    ("layer_norm: input is of shape (3, 8); accepted: a shape that ends with normalized_shape (2, 3, 8)",
     lambda: layer_norm(X, (2, 3, 8))),
    ("layer_norm: normalized_shape is 8; accepted: a sequence of one or more extents", lambda: layer_norm(X, 8)),
    ("layer_norm: normalized_shape is (); accepted: a sequence of one or more extents", lambda: layer_norm(X, ())),
    ("layer_norm: weight is of shape (7,); accepted: normalized_shape, here (8,)", lambda: layer_norm(X, (8,), torch.ones(7))),
    ("layer_norm: bias is of dtype torch.float64; accepted: torch.float32",
     lambda: layer_norm(X, (8,), None, torch.ones(8, dtype=torch.float64))),
    ("layer_norm: weight is on meta; accepted: the device of input, cpu",
     lambda: layer_norm(X, (8,), torch.ones(8, device="meta"))),
    ("layer_norm: eps is None (NoneType); accepted: a number", lambda: layer_norm(X, (8,), eps=None)),
    ("rms_norm: input is of dtype torch.complex64", lambda: rms_norm(X.to(torch.complex64), (8,))),
    ("rms_norm: weight is of shape (3, 8); accepted: normalized_shape, here (8,)", lambda: rms_norm(X, (8,), X)),
    ("rms_norm: eps is 'small' (str); accepted: a number", lambda: rms_norm(X, (8,), eps="small")),
    ("rms_norm: weight_offset is None (NoneType); accepted: a number", lambda: rms_norm(X, (8,), X[0], 1e-5, None)),
    ("rms_norm: weight_offset is 1.0; accepted: 0.0, as there is no weight", lambda: rms_norm(X, (8,), weight_offset=1.0)),
    ("add_rms_norm: residual is of shape (2, 8); accepted: the shape of input, here (3, 8)",
     lambda: kpt.ops.add_rms_norm(X, X[:2], (8,))),
    ("add_rms_norm: weight_offset is -1; accepted: 0.0, as there is no weight",
     lambda: kpt.ops.add_rms_norm(X, X, (8,), weight_offset=-1)),
    ("add_layer_norm: residual is of dtype torch.float16; accepted: the dtype of input, torch.float32",
     lambda: kpt.ops.add_layer_norm(X, X.half(), (8,))),
    ("add_layer_norm: residual is on meta; accepted: the device of input, cpu",
     lambda: kpt.ops.add_layer_norm(X, X.to("meta"), (8,))),
    ("add_layer_norm: residual is None (NoneType); accepted: a torch.Tensor: the shape of input",
     lambda: kpt.ops.add_layer_norm(X, None, (8,))),
    ("cross_entropy: input is of rank 0; accepted: (C,), (N, C)", lambda: cross_entropy(ONE, ONE)),
    ("cross_entropy: input is of dtype torch.int64", lambda: cross_entropy(X.long(), CLASSES)),
    ("cross_entropy: target is of shape (2,); accepted: one class a row, here (3,)", lambda: cross_entropy(X, CLASSES[:2])),
    ("cross_entropy: target is of shape (3, 8); accepted: one class a row, here (3,)", lambda: cross_entropy(X, X.long())),
    ("cross_entropy: target is of dtype torch.uint8; accepted: torch.int64, torch.int32",
     lambda: cross_entropy(X, CLASSES.to(torch.uint8))),
    ("cross_entropy: target is of shape (3,); accepted: classes, or of the shape of input, here (3, 8)",
     lambda: cross_entropy(X, X[:, 0])),
    ("cross_entropy: target is on meta; accepted: the device of input, cpu", lambda: cross_entropy(X, CLASSES.to("meta"))),
    ("cross_entropy: weight is of shape (3,); accepted: (C,), here (8,)", lambda: cross_entropy(X, CLASSES, X[:, 0])),
    ("cross_entropy: weight is of dtype torch.float64", lambda: cross_entropy(X, CLASSES, X[0].double())),
    ("cross_entropy: ignore_index is 1.0; accepted: a whole number", lambda: cross_entropy(X, CLASSES, ignore_index=1.0)),
    ("cross_entropy: reduction is 'max'; accepted: mean, sum, none", lambda: cross_entropy(X, CLASSES, reduction="max")),
    ("cross_entropy: label_smoothing is 1.5; accepted: a number from 0 to 1",
     lambda: cross_entropy(X, CLASSES, label_smoothing=1.5)),
    ("cross_entropy: z_loss is None (NoneType); accepted: a number", lambda: cross_entropy(X, CLASSES, z_loss=None)),
    ("cross_entropy: softcap is 0; accepted: None, or a finite number above zero",
     lambda: cross_entropy(X, CLASSES, softcap=0)),
    ("cross_entropy: softcap is inf;", lambda: cross_entropy(X, CLASSES, softcap=float("inf"))),
    ("linear_cross_entropy: softcap is '30' (str); accepted: a number",
     lambda: linear_cross_entropy(X, X, CLASSES, softcap="30")),
    ("cross_entropy: return_lse is 1 (int); accepted: True or False", lambda: cross_entropy(X, CLASSES, return_lse=1)),
    ("linear_cross_entropy: x is of shape (3, 8); accepted: (..., 9), as weight is of shape (4, 9)",
     lambda: linear_cross_entropy(X, torch.zeros(4, 9), CLASSES)),
    ("linear_cross_entropy: weight is of shape (8,), rank 1; accepted: rank 2", lambda: linear_cross_entropy(X, X[0], CLASSES)),
    ("linear_cross_entropy: target is of shape (2,); accepted: one class a row, here (3,)",
     lambda: linear_cross_entropy(X, X, CLASSES[:2])),
    ("linear_cross_entropy: target is of dtype torch.float32", lambda: linear_cross_entropy(X, X, X[:, 0])),
    ("linear_cross_entropy: bias is of shape (8,); accepted: (classes,), here (3,)",
     lambda: linear_cross_entropy(X, X, CLASSES, X[0])),
    ("linear_cross_entropy: weight is of dtype torch.float64; accepted: the dtype of x",
     lambda: linear_cross_entropy(X, X.double(), CLASSES)),
    ("linear_cross_entropy: reduction is 'max'; accepted: mean", lambda: linear_cross_entropy(X, X, CLASSES, reduction="max")),
    ("cross_entropy_backward: first is 2; accepted: from 0 to 1, as there are 9 classes",
     lambda: get("cross_entropy_backward").public(X[:, 0], X, CLASSES, X[:, 0], first=2, classes=9)),
    ("cross_entropy_backward: lse is None (NoneType); accepted: a torch.Tensor: one number a row",
     lambda: get("cross_entropy_backward").public(X[:, 0], X, CLASSES, None)),
    ("cross_entropy_backward: count is of shape (1,); accepted: one number, here ()",
     lambda: get("cross_entropy_backward").public(X[:, 0], X, CLASSES, X[:, 0], ONE.view(1))),
    ("cross_entropy_backward: dloss is of dtype torch.float64; accepted: torch.float32",
     lambda: get("cross_entropy_backward").public(X[:, 0].double(), X, CLASSES, X[:, 0])),
    ("fp8_matmul: a is of shape (16, 32, 1), rank 3; accepted: rank 2, (M, K)",
     lambda: fp8_matmul(A[..., None], A.T, ONE, ONE)),
    ("fp8_matmul: b is of shape (16, 32); accepted: (K, N) with the K of a, 32", lambda: fp8_matmul(A, A, ONE, ONE)),
    ("fp8_matmul: a is of dtype torch.float32; accepted: torch.float8_e4m3fn, torch.float8_e5m2",
     lambda: fp8_matmul(A.float(), A.T, ONE, ONE)),
    ("fp8_matmul: scale_a is of shape (16,); accepted: one element, or the row-wise shape (16, 1)",
     lambda: fp8_matmul(A, A.T, torch.ones(16), ONE)),
    ("fp8_matmul: scale_b is of shape (16, 1); accepted: one element, or the row-wise shape (1, 16)",
     lambda: fp8_matmul(A, A.T, ONE, torch.ones(16, 1))),
    ("fp8_matmul: scale_b is of dtype torch.bfloat16; accepted: torch.float32",
     lambda: fp8_matmul(A, A.T, ONE, ONE.bfloat16())),
    ("fp8_matmul: scale_a is 1.0 (float); accepted: a torch.Tensor", lambda: fp8_matmul(A, A.T, 1.0, ONE)),
    ("fp8_matmul: bias is of shape (32,); accepted: (N,), here (16,)",
     lambda: fp8_matmul(A, A.T, ONE, ONE, bias=torch.zeros(32))),
    ("fp8_matmul: out_dtype is of dtype torch.float64; accepted: torch.float32, torch.float16, torch.bfloat16",
     lambda: fp8_matmul(A, A.T, ONE, ONE, out_dtype=torch.float64)),
    ("fp8_matmul: scale_a is on meta; accepted: the device of a, cpu", lambda: fp8_matmul(A, A.T, ONE.to("meta"), ONE)),
    ("quantize_fp8: granularity is 'column'; accepted: tensor, row", lambda: quantize_fp8(X, "column")),
    ("quantize_fp8: dtype is of dtype torch.int8; accepted: torch.float8_e4m3fn", lambda: quantize_fp8(X, dtype=torch.int8)),
    ("quantize_fp8: x is of rank 0; accepted: rank 1 or more", lambda: quantize_fp8(torch.zeros(()))),
    ("quantize_fp8: x is of dtype torch.uint8", lambda: quantize_fp8(X.byte())),
    ("prefer: implementation 'cuda' is unknown; accepted: reference, triton, pallas, numpy",
     lambda: prefer("cuda").__enter__()),
    ("op 'attention' is unknown; kpt has", lambda: kpt.ops.explain("attention", Q)),
    ("layer_norm: missing a required argument: 'normalized_shape'", lambda: kpt.ops.explain("layer_norm", X)),
    ("layer_norm: dims are M, N; given were M", lambda: get("layer_norm").instances({"M": 3}, "f32")),
    ("layer_norm: extents {'N': 0} are not positive", lambda: get("layer_norm").instances({"M": 3, "N": 0}, "f32")),
    ("layer_norm has no flags ['causal']; it has weight, bias",
     lambda: get("layer_norm").instances({"M": 3, "N": 8}, "f32", causal=True)),
    ("layer_norm: flag bias is 1 (int); accepted: bool", lambda: get("layer_norm").instances({"M": 3, "N": 8}, "f32", bias=1)),
    ("cross_entropy: reduction is 'max'; accepted: mean",
     lambda: get("cross_entropy").instances({"M": 3, "N": 8}, "f32", reduction="max")),
    *((message, lambda flags=flags: get("flash_attention").instances(dict.fromkeys("BHGMND", 16), "f32", **flags))
      for message, flags in [
          ("flash_attention: flag window is 'two' (str); accepted: int | tuple[int, int] | None", {"window": "two"}),
          ("flash_attention: flag page is True (bool); accepted: int | None", {"page": True}),
          ("flash_attention: flag softcap is True (bool); accepted: float | None", {"softcap": True}),
          ("flash_attention: flag mask is 'bias' (str); accepted: Optional[Literal['seen', 'added']]", {"mask": "bias"}),
          ("flash_attention: page is 0; accepted: None, or a whole number, 1 or more", {"page": 0}),
          ("flash_attention: value_dim is -3; accepted: None, or a whole number, 1 or more", {"value_dim": -3}),
          ("flash_attention: window is 0; accepted", {"window": 0}),
          ("flash_attention: mask is given; accepted: None with cu_seqlens_q", {"packed": True, "mask": "seen"}),
          ("flash_attention: cache_lengths is given; accepted: None with cu_seqlens_q", {"packed": True, "page": 16}),
          ("flash_attention: cache_lengths is given; accepted: one of", {"key_lengths": True, "page": 16}),
      ]),
    ("dtype 'f12' is not one that kernels can hold", lambda: get("layer_norm").instances({"M": 3, "N": 8}, "f12")),
    ("dtype 'i32' is not one that ops take", lambda: get("layer_norm").instances({"M": 3, "N": 8}, "i32")),
]  # fmt: skip


@pytest.mark.parametrize(("message", "call"), BAD, ids=[message[:60] for message, _ in BAD])
def test_bad_input_is_named(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(kpt.InputError) as caught:
        call()
    assert message in str(caught.value)


def test_the_warm_path_still_refuses() -> None:
    """A call like one that was fine, but for one argument, is a new kind of call."""
    layer_norm(X, (8,), torch.ones(8))
    with pytest.raises(kpt.InputError, match="weight is of dtype"):
        layer_norm(X, (8,), torch.ones(8, dtype=torch.float64))
    flash_attention(Q, KV, KV, causal=True)
    with pytest.raises(kpt.InputError, match=r"causal is 1 \(int\)"):
        flash_attention(Q, KV, KV, causal=1)


def test_a_traced_call_fails_with_the_same_words() -> None:
    with pytest.raises(Exception, match=r"normalized_shape \(9,\)"):
        torch.compile(lambda x: layer_norm(x, (9,)), backend="eager", fullgraph=True)(X)
