"""Attention forward, 16k tokens, H * D = 2048, against PyTorch's FlashAttention-2 and cuDNN."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.case import Case, Run
from kpt.ops.flash_attention.kernels import flash_attention_fwd
from kpt_dsl.problem import Problem

TITLE = "Attention forward, bf16 (causal counted at half the work)"

TOKENS, WIDTH = 16384, 2048


def cases() -> Iterator[Callable[[], Case]]:
    for head_dim in (128, 64):
        for length in (4096, 16384):
            for causal in (False, True):
                yield partial(_case, head_dim, length, causal)


def _case(head_dim: int, length: int, causal: bool) -> Case:
    b, h = TOKENS // length, WIDTH // head_dim
    q, k, v = (torch.randn(b, h, length, head_dim, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    arrays = dict(
        q=q, k=k, v=v, key_lengths=None, o=torch.empty_like(q), lse=torch.empty(b, h, length, device="cuda"),
        scale=head_dim**-0.5, window=None, causal=causal,
    )  # fmt: skip
    problem = Problem.bind(flash_attention_fwd, arrays)

    def sdpa(backend: SDPBackend) -> Run:
        def run() -> object:
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

        return run

    flops = 4 * b * h * length * length * head_dim / (2 if causal else 1)
    peers = {"SDPA flash": sdpa(SDPBackend.FLASH_ATTENTION), "SDPA cuDNN": sdpa(SDPBackend.CUDNN_ATTENTION)}
    name = f"D{head_dim} S{length // 1024}k" + (" causal" if causal else "")
    return Case(name, problem, arrays, flops, "TFLOP/s", peers)
