"""What a call costs on the host: microseconds a warm call of an op and of its PyTorch peer, tensors too small to matter."""

import time
from argparse import Namespace
from collections.abc import Callable
from statistics import median

import torch
from torch.nn import functional

from benchmarks.case import Found
from benchmarks.report import Picture
from kpt import ops

TITLE = "Host cost of a warm call"

CALLS, ROUNDS = 300, 15


def measure(given: Namespace) -> Found:
    """One row an op: medians of interleaved rounds, in microseconds a call."""
    kind = {"device": "cuda", "dtype": torch.bfloat16}
    x, w, b = torch.randn(128, 1024, **kind), torch.randn(1024, **kind), torch.randn(1024, **kind)
    q = torch.randn(1, 8, 128, 64, **kind)
    weight = torch.randn(1024, 1024, **kind)
    pairs: dict[str, dict[str, Callable[[], object]]] = {
        "layer_norm": {
            "kpt": lambda: ops.layer_norm(x, (1024,), w, b),
            "torch": lambda: functional.layer_norm(x, (1024,), w, b),
        },
        "rms_norm": {"kpt": lambda: ops.rms_norm(x, (1024,), w), "torch": lambda: functional.rms_norm(x, (1024,), w)},
        "linear_act": {
            "kpt": lambda: ops.linear_act(x, weight, b, activation="gelu"),
            "torch": lambda: functional.gelu(functional.linear(x, weight, b)),
        },
        "flash_attention": {
            "kpt": lambda: ops.flash_attention(q, q, q),
            "torch": lambda: functional.scaled_dot_product_attention(q, q, q),
        },
    }
    rows: list[dict[str, object]] = []
    with torch.no_grad():
        for name, candidates in pairs.items():
            if given.only not in name:
                continue
            taken: dict[str, list[float]] = {c: [] for c in candidates}
            for call in candidates.values():
                call()
            for _ in range(ROUNDS):
                for candidate, call in candidates.items():
                    torch.cuda.synchronize()
                    start = time.perf_counter()
                    for _ in range(CALLS):
                        call()
                    taken[candidate].append((time.perf_counter() - start) / CALLS * 1e6)
            torch.cuda.synchronize()
            rows.append({"case": name, "microseconds": {c: median(t) for c, t in taken.items()}})
    return Found(rows, picture=Picture("microseconds", "µs a call"))
