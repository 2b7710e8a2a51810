"""What calls cost the host: microseconds a warm call, tensors too small to matter, with gradients and without; and a step of a
small Llama under DistributedDataParallel, which is many such calls.

Beside the peers stands an autograd function in Python that does nothing: what no op with a gradient of its own comes below.
"""

import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn import functional

from benchmarks import peers
from benchmarks.case import Found, Run, Stopping
from benchmarks.norms_backward import EPS, liger
from benchmarks.report import Picture
from kpt import ops, replace_modules

TITLE = "Host cost of a warm call, and of a training step of small tensors"

CALLS, ROUNDS = 300, 15

PICTURE = Picture("microseconds", "µs a call", logarithmic=True)

LLAMA = {
    "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 4, "vocab_size": 1024,
}  # fmt: skip
BATCH, LENGTH = 2, 128
STEP = "6 layers of a Llama under DDP, a step"

Function = Callable[..., torch.Tensor]


class Nothing(torch.autograd.Function):
    """Gives its first input, and its gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, *others)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        _, *others = ctx.saved_tensors
        return (gradient, *others)


def measure(given: Namespace) -> Found:
    return compared("cuda", CALLS, ROUNDS, given.only)


def compared(device: str, calls: int, rounds: int, only: str = "", llama: Mapping[str, int] = LLAMA) -> Found:
    """A row an op without gradients, one with, and one of the step: medians of interleaved rounds."""
    rows: list[dict[str, Any]] = []
    with Stopping() as cases:
        for name, (inputs, functions) in _functions(device).items():
            for case, makers in (
                (name, _forwards(inputs, functions)),
                (f"{name}, forward and backward", _backwards(inputs, functions)),
            ):
                if only in case:
                    rows.append(_row(case, makers, calls, rounds))
                    print(_line(rows[-1]), flush=True)
        if only in STEP:
            with _one_process(device):
                makers = {side: partial(_step, side, device, llama) for side in ("kpt", "torch")}
                rows.append(_row(STEP, makers, max(1, calls // 60), rounds))
            print(_line(rows[-1]), flush=True)
    return Found(rows, sum("kpt" in row["missing"] for row in rows), picture=PICTURE, stopped=cases.stopped)


Makers = Mapping[str, Callable[[], Function]]
"""Of candidates, what makes each as a function of the inputs."""


def _forwards(inputs: Sequence[torch.Tensor], functions: Makers) -> dict[str, Callable[[], Run]]:
    def made(make: Callable[[], Function]) -> Run:
        return peers.forward(make(), *inputs)

    return {name: partial(made, make) for name, make in functions.items()}


def _backwards(inputs: Sequence[torch.Tensor], functions: Makers) -> dict[str, Callable[[], Run]]:
    gradient = torch.ones_like(functions["torch"]()(*inputs))

    def made(make: Callable[[], Function]) -> Run:
        return peers.forward_backward(make(), gradient, *inputs)

    found = {name: partial(made, make) for name, make in functions.items()}
    return {**found, "an empty autograd function": partial(made, lambda: Nothing.apply)}


def _functions(device: str) -> dict[str, tuple[Sequence[torch.Tensor], Makers]]:
    """Of each op the inputs, and what makes a function of them, with kpt and with its peers."""
    kind: dict[str, Any] = {"device": device, "dtype": torch.bfloat16}
    x, w, b = torch.randn(128, 1024, **kind), torch.randn(1024, **kind), torch.randn(1024, **kind)
    q, k, v = (torch.randn(1, 8, 128, 64, **kind) for _ in range(3))
    weight = torch.randn(1024, 1024, **kind)
    gelu = partial(ops.linear_act, activation="gelu")
    return {
        "layer_norm": ((x, w, b), {
            "kpt": lambda: lambda x, w, b: ops.layer_norm(x, (1024,), w, b, EPS),
            "torch": lambda: lambda x, w, b: functional.layer_norm(x, (1024,), w, b, EPS),
            "Liger": lambda: liger("layer_norm"),
        }),
        "rms_norm": ((x, w), {
            "kpt": lambda: lambda x, w: ops.rms_norm(x, (1024,), w, EPS),
            "torch": lambda: lambda x, w: functional.rms_norm(x, (1024,), w, EPS),
            "Liger": lambda: liger("rms_norm"),
        }),
        "linear_act": ((x, weight, b), {
            "kpt": lambda: gelu,
            "torch": lambda: lambda x, weight, b: functional.gelu(functional.linear(x, weight, b)),
        }),
        "flash_attention": ((q, k, v), {
            "kpt": lambda: ops.flash_attention,
            "torch": lambda: functional.scaled_dot_product_attention,
        }),
    }  # fmt: skip


def _row(case: str, makers: Mapping[str, Callable[[], Run]], calls: int, rounds: int) -> dict[str, Any]:
    runs, missing = peers.available(makers)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():  # kinds of calls that come again are made quick once
        for _ in range(20):
            run()
    for _ in range(rounds):
        for name, run in runs.items():
            _wait()
            start = time.perf_counter()
            for _ in range(calls):
                run()
            taken[name].append((time.perf_counter() - start) / calls * 1e6)
    _wait()
    microseconds = {name: round(median(each), 2) for name, each in taken.items()}
    ratios = {name: round(microseconds["kpt"] / of, 3) for name, of in microseconds.items() if "kpt" in microseconds}
    return {"case": case, "microseconds": microseconds, "kpt over": ratios, "missing": missing}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _line(row: Mapping[str, Any]) -> str:
    ratio = row["kpt over"].get("torch")
    each = "  ".join(f"{name} {microseconds:.1f}" for name, microseconds in row["microseconds"].items())
    missing = "".join(f"\n{'':<42} missing: {name}: {why}" for name, why in row["missing"].items())
    return f"{row['case']:<42} {each}  | kpt / torch: {ratio}{missing}"


@contextmanager
def _one_process(device: str) -> Iterator[None]:
    """A group of this process alone."""
    with tempfile.TemporaryDirectory() as folder:
        store = torch.distributed.FileStore(str(Path(folder, "store")), 1)
        torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo", store=store, rank=0, world_size=1)
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()


def _step(side: str, device: str, sizes: Mapping[str, int]) -> Run:
    """The forward and backward of a model that DDP holds; with kpt, it is replaced. Raises ImportError where
    transformers is not installed."""
    from torch.nn.parallel import DistributedDataParallel
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes)).to(device, torch.bfloat16)
    if side == "kpt":
        replace_modules(model)
    held = DistributedDataParallel(model)
    tokens = torch.randint(sizes["vocab_size"], (BATCH, LENGTH), device=device)

    def step() -> None:
        held(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)

    return step
