"""Programs whose lengths change with every call, with kpt or with PyTorch: what a process of ``benchmarks.lengths`` does.

``prepare`` is what a program has behind it before its first call, whoever computes: imports, a device that is up, weights.
Then ``measure`` makes the calls and times each, from call to result.
"""

import gc
import os
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from statistics import median
from typing import Any, Literal

import torch
from torch.nn import functional

import kpt.ops
from kpt.ops.choice import Name, prefer
from kpt_dsl.buckets import bucket
from training import ops as sides
from training.model import GPT, Size

Side = Literal["kpt", "PyTorch"]
Call = Callable[[], object]
AtLength = Callable[[int], Call]
"""Makes the inputs of a length, and gives the call on them."""

FOLDERS = ("KPT_CACHE_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
DATABASE = "KPT_DB"

IMPORTED = (
    "triton", "triton.compiler", "triton.experimental.gluon", "triton.backends.nvidia.driver",
    "kpt_dsl.space.gpu.rules", "kpt_dsl.space.warps.rules", "kpt_dsl.emit.triton.module", "kpt_dsl.emit.gluon.module",
    "kpt_dsl.build.triton", "kpt_dsl.runtime.triton", "autotune_db.lookup", "autotune_db.snapshot",
)  # fmt: skip
"""What first calls would import."""

AGAIN = 3
"""How often a further length is called again, beside the first time."""


@dataclass(frozen=True)
class Program:
    """What calls compute, on which side, eager or under torch.compile. ``preferred``: who serves kpt's ops."""

    name: str
    side: Side
    compiled: bool
    device: str = "cuda"
    backend: str = "inductor"
    preferred: Name | None = None


@dataclass(frozen=True)
class Scale:
    """``width``, ``heads`` and ``kv_heads`` of the ops alone; the model's size; the lengths of calls, and how many others are
    drawn afterwards from the same classes."""

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    size: Size
    lengths: tuple[int, ...]
    further: int


@dataclass(frozen=True)
class Times:
    """Milliseconds of each length when it was new, and again; ``further``: the median microseconds by which the first call of
    another length of the same classes takes longer than the same call again.

    ``compiled`` and ``found``: binaries of kpt, made and read from the disk; ``compiled_further``: for the other lengths.
    ``graphs``: what torch.compile made.
    """

    new: tuple[float, ...]
    again: tuple[float, ...]
    further: float | None
    compiled: int
    found: int
    compiled_further: int
    graphs: int


def prepare(program: Program, scale: Scale, folder: str) -> None:
    """Make a program ready for its first call, in a process that does nothing else. ``folder``: for its caches."""
    for variable in (*FOLDERS, DATABASE):
        os.environ[variable] = os.path.join(folder, variable.lower())  # noqa: PTH118
    global _ready
    _ready = _Ready(program, scale)


def measure() -> Times:
    """The times of what was prepared."""
    assert _ready is not None, "nothing was prepared"
    return _ready.times()


class _Ready:
    """A program before its first call."""

    def __init__(self, program: Program, scale: Scale) -> None:
        self._program, self._scale = program, scale
        self._listened: list[bool] = []
        torch.manual_seed(0)
        if program.device == "cuda":
            self._warm_up()
        if program.compiled:
            self._compile(lambda x: x + 1)(torch.ones(64, device=program.device))
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
        self._at = PROGRAMS[program.name](program, scale, self._compile if program.compiled else _as_it_is)

    def times(self) -> Times:
        lengths = self._scale.lengths
        calls = [self._at(length) for length in lengths]
        new, again = ([self._timed(call) for call in calls] for _ in range(2))
        compiled, found = self._listened.count(False), self._listened.count(True)
        further = self._further(lengths)
        return Times(
            tuple(new),
            tuple(again),
            further,
            compiled,
            found,
            self._listened.count(False) - compiled,
            torch._dynamo.utils.counters["stats"]["unique_graphs"] if self._program.compiled else 0,
        )

    def _further(self, lengths: tuple[int, ...]) -> float | None:
        """Of lengths that were not called, but others of the same classes were."""
        known = {bucket(length) for length in lengths}
        others = [n for n in range(min(lengths), max(lengths)) if n not in lengths and bucket(n) in known]
        drawn = random.Random(0).sample(others, min(self._scale.further, len(others)))
        more = []
        for length in drawn:
            call = self._at(length)
            first = self._timed(call)
            more.append(first - median(self._timed(call) for _ in range(AGAIN)))
        return median(more) * 1e3 if more else None

    def _timed(self, call: Call) -> float:
        """Milliseconds of a call and of what it starts on the device."""
        self._wait()
        with prefer(self._program.preferred) if self._program.preferred else nullcontext():
            start = time.perf_counter()
            call()
            self._wait()
            return (time.perf_counter() - start) * 1e3

    def _wait(self) -> None:
        if self._program.device == "cuda":
            torch.cuda.synchronize()

    def _warm_up(self) -> None:
        """Imports, CUDA, cuBLAS in both types that the programs multiply; and from now on binaries are counted.

        Python's collector looks at all that imports brought once, in whichever call comes next (111 ms on a CPU): it does here.
        """
        for name in IMPORTED:
            import_module(name)
        for dtype in (torch.bfloat16, torch.float32):
            x = torch.ones(256, 256, device="cuda", dtype=dtype, requires_grad=True)
            (x @ x).sum().backward()
        torch.cuda.synchronize()
        gc.collect()
        listen(self._listened)

    def _compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, dynamic=True, fullgraph=True, backend=self._program.backend)


_ready: _Ready | None = None


def listen(heard: list[bool]) -> None:
    """From now on add, for each binary of kpt that Triton gives, whether it was found on the disk."""
    triton: Any = import_module("triton")

    def note(*, src: Any = None, cache_hit: bool, **_: Any) -> None:
        if not str(getattr(src, "name", "")).startswith("triton_"):  # as Inductor names its own
            heard.append(cache_hit)

    triton.knobs.compilation.listener = note


Compile = Callable[[Callable[..., Any]], Callable[..., Any]]


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _ops(program: Program, scale: Scale, compiled: Compile) -> AtLength:
    """RMS norm of (length, width), and causal attention of grouped queries (1, heads, length, head_dim)."""

    def with_pytorch(x: torch.Tensor, w: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> object:
        normed = functional.rms_norm(x, (scale.width,), w)
        return normed, functional.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True)

    def with_kpt(x: torch.Tensor, w: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> object:
        return kpt.ops.rms_norm(x, (scale.width,), w), kpt.ops.flash_attention(q, k, k, causal=True)

    function = compiled(with_kpt if program.side == "kpt" else with_pytorch)
    kind: dict[str, Any] = {"device": program.device, "dtype": torch.bfloat16}
    w = torch.ones(scale.width, **kind)

    def at(length: int) -> Call:
        q, k = (torch.randn(1, heads, length, scale.head_dim, **kind) for heads in (scale.heads, scale.kv_heads))
        return partial(function, torch.randn(length, scale.width, **kind), w, q, k)

    return at


def _model(program: Program, scale: Scale) -> GPT:
    parts = sides.of_kpt() if program.side == "kpt" else sides.of_pytorch()
    return GPT(scale.size, parts, seed=0).to(program.device, torch.bfloat16)


def _prompts(program: Program, scale: Scale, compiled: Compile) -> AtLength:
    """The logits of a prompt, without gradients."""
    function = compiled(_model(program, scale))

    def at(length: int) -> Call:
        tokens = torch.randint(256, (1, length), device=program.device)

        def call() -> object:
            with torch.no_grad():
                return function(tokens)

        return call

    return at


def _training(program: Program, scale: Scale, compiled: Compile) -> AtLength:
    """A step of AdamW on one stretch of text: forward, backward, and the weights."""
    model = _model(program, scale)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=program.device == "cuda")
    loss = compiled(model.loss)

    def at(length: int) -> Call:
        stretch = torch.randint(256, (1, length + 1), device=program.device)

        def step() -> None:
            optimiser.zero_grad()
            loss(stretch).backward()
            optimiser.step()

        return step

    return at


PROGRAMS: dict[str, Callable[[Program, Scale, Compile], AtLength]] = {
    "ops": _ops,
    "prompts": _prompts,
    "training": _training,
}
