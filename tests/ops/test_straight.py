"""Calls that come again, as straight-line Python: kernels are started with what the op's own run starts them with, wherever
things lie this time."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch

from kpt.ops import registry
from kpt.ops.backends import Launches
from kpt.ops.eager import below
from kpt.ops.linear_act import alignment
from kpt.ops.straight import OF_PYTORCH, WATCHED, Matrix, Repeated, _view
from kpt_dsl.errors import CompileError
from kpt_dsl.runtime import runtime
from kpt_dsl.runtime.triton_launch import Start
from tests.no_gpu import pretended, started_by

Arguments = tuple[Any, ...]

ROOT = Path(__file__).parents[2]


@dataclass
class Seen:
    """What was started, as (kernel, programs, values)."""

    started: list[tuple[str, int, list[Any]]] = field(default_factory=list)
    refuses: bool = False
    current: list[int] = field(default_factory=list)

    def starter(self, name: str) -> Start:
        def start(programs: int, _: int, values: list[Any]) -> None:
            if self.refuses:
                raise RuntimeError("out of resources")
            self.started.append((name, programs, list(values)))

        return started_by(start)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    found = Seen()
    with pretended(monkeypatch, found.starter) as found.current:
        monkeypatch.setattr("kpt.ops.backends._prepared", on_the_gpu)
        yield found


def on_the_gpu(kernel: Any, arguments: Arguments, backend: str, _: int | None) -> Any:
    from kpt.ops.backends import _Prepared

    return _Prepared.of(*runtime(backend).prepared(kernel, arguments, 0))


def run_of(op: str) -> Callable[..., Any]:
    run: Callable[..., Any] = registry.get(op).kernels[0].prepare.args[0]
    return run


def launches(run: Callable[..., Any], kin: str = "kin") -> Launches:
    """On the GPU, for calls of a run that have something in common."""
    return Launches("triton", 0, run, [(str, kin)])


def tensors(given: Any) -> list[torch.Tensor]:
    return list(given) if isinstance(given, list | tuple) else [given]


def told(seen: Seen, call: Callable[..., Any], arguments: Arguments) -> tuple[list[Any], list[Any]]:
    """What a call starts, with addresses by the argument that they lie in, else as one of the outputs or as other memory; and
    what it gives, without values."""
    seen.started.clear()
    outputs = tensors(call(*arguments))
    places = [(f"argument {i}", a) for i, a in enumerate(arguments) if isinstance(a, torch.Tensor)]
    places += [(f"output {i}", o) for i, o in enumerate(outputs)]

    def where(value: Any) -> Any:
        address = value.base.data_ptr() if hasattr(value, "base") else value
        if not isinstance(address, int) or address < 1 << 32:
            return address
        about = [value.shape, value.strides, value.block_shape] if hasattr(value, "base") else []
        for name, tensor in places:
            begin = tensor.data_ptr()
            if begin <= address < begin + max(1, extent(tensor)) * tensor.element_size():
                return (name, address - begin, *about)
        return ("elsewhere", *about)

    started = [(name, programs, [where(value) for value in values]) for name, programs, values in seen.started]
    return started, [(o.shape, o.stride(), o.dtype, o.storage_offset()) for o in outputs]


def extent(tensor: torch.Tensor) -> int:
    """From a tensor's first element to behind its last."""
    return 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))


def packed(batch: int = 2, heads: int = 4, length: int = 100, width: int = 64) -> list[torch.Tensor]:
    """Queries, keys and values as one projection gives them: in one piece of memory."""
    whole = torch.randn(batch, length, 3, heads, width, dtype=torch.bfloat16)
    return [whole[:, :, i].transpose(1, 2) for i in range(3)]


def drawn(op: str, dims: dict[str, int], **flags: Any) -> Callable[[], Arguments]:
    return partial(registry.get(op).arguments, dims, torch.bfloat16, "cpu", **flags)


ATTENTION = {"B": 2, "H": 4, "G": 2, "M": 100, "N": 100, "D": 64}
CALLS: dict[str, tuple[str, Callable[[], Arguments]]] = {
    "rms_norm": ("rms_norm", drawn("rms_norm", {"M": 37, "N": 256})),
    "rms_norm backward": ("rms_norm_backward", drawn("rms_norm_backward", {"M": 200, "N": 256})),
    "layer_norm": ("layer_norm", drawn("layer_norm", {"M": 37, "N": 200})),
    "layer_norm backward": ("layer_norm_backward", drawn("layer_norm_backward", {"M": 200, "N": 200})),
    "a sum's norm": ("add_rms_norm", drawn("add_rms_norm", {"M": 37, "N": 256}, weight_offset=1.0)),
    "a sum's norm backward": ("layer_norm_backward", drawn("layer_norm_backward", {"M": 200, "N": 200}, added=True)),
    "linear": ("linear_act", drawn("linear_act", {"M": 50, "N": 128, "K": 64}, activation="gelu")),
    "linear, transposed": (
        "linear_act_saving", drawn("linear_act_saving", {"M": 50, "N": 128, "K": 64}, activation="gelu", transposed=True)
    ),
    "linear backward, transposed": (
        "linear_act_backward", drawn("linear_act_backward", {"M": 300, "N": 128, "K": 64}, activation="silu", transposed=True)
    ),
    "linear backward": ("linear_act_backward", drawn("linear_act_backward", {"M": 300, "N": 128, "K": 64}, activation="silu")),
    "attention": ("flash_attention", drawn("flash_attention", ATTENTION, causal=True)),
    "attention backward": ("flash_attention_backward", drawn("flash_attention_backward", ATTENTION, causal=True)),
    "attention of entries": ("flash_attention", drawn("flash_attention", ATTENTION, causal=True, packed=True)),
    "attention of entries backward": (
        "flash_attention_backward", drawn("flash_attention_backward", ATTENTION, causal=True, packed=True),
    ),
    "attention in pages": ("flash_attention", drawn("flash_attention", ATTENTION, causal=True, page=16)),
    "decoding in pages": (
        "flash_attention", drawn("flash_attention", ATTENTION | {"M": 1, "N": 8192}, causal=True, page=16),
    ),
    "packed attention": ("flash_attention", lambda: (*packed(), True, None, None, None, True)),
    "rows of something wider": (
        "rms_norm", lambda: (torch.randn(3, 40, 300, dtype=torch.bfloat16)[..., :256], (256,), torch.ones(256), 1e-3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_it_starts_what_the_run_does(seen: Seen, name: str) -> None:
    op, draw = CALLS[name]
    general = partial(run_of(op), launches(run_of(op), name))
    ready = Repeated(run_of(op), launches(run_of(op), name))
    for number in range(1, WATCHED + 3):
        assert (ready.settled() is ready) == (number <= WATCHED)
        arguments = draw()
        assert told(seen, ready, arguments) == told(seen, general, arguments), number
    assert is_straight(ready)


def is_straight(ready: Repeated) -> bool:
    return isinstance(ready.settled(), FunctionType) and ready.settled().__name__ == "call"


def test_tensors_that_were_one_may_be_several(seen: Seen) -> None:
    """A function written where keys and values were one tensor reads both where they are two."""
    run = run_of("flash_attention")
    ready = Repeated(run, launches(run))
    q, k, v = (torch.randn(1, 2, 64, 64, dtype=torch.bfloat16) for _ in range(3))
    flags = (False, None, None, None, False)
    for _ in range(WATCHED):
        ready(q, q, q, *flags)
    assert is_straight(ready)
    started, _ = told(seen, ready, (q, k, v, *flags))
    assert [value[0] for value in started[0][2][:3]] == ["argument 0", "argument 1", "argument 2"]


def test_parts_of_tensors_are_where_they_begin(seen: Seen) -> None:
    """In arguments, and in memory that the run takes."""
    norm = run_of("rms_norm")

    def run(launch: Any, x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        both = x.new_empty((2, *x.shape))

        def into(kernel: Any, rows: torch.Tensor, weight: Any, _: torch.Tensor, *others: Any) -> None:
            launch(kernel, rows, weight, both[1, 8:], *others)

        norm(into, x[8:], shape, None, 1e-3)
        return both

    ready, general = Repeated(run, launches(run)), partial(run, launches(run, "other"))
    draws = [(torch.randn(40, 64), (64,)) for _ in range(WATCHED + 2)]
    for arguments in draws:
        answers = [told(seen, call, arguments) for call in (ready, general)]
        assert answers[0] == answers[1]
    assert is_straight(ready)
    (_, _, values), = answers[0][0]
    assert ("argument 0", 8 * 64 * 4) in values and ("output 0", 48 * 64 * 4) in values


def test_another_device_may_be_current(seen: Seen) -> None:
    asked: list[int] = []

    def run(launch: Any, *given: Any) -> Any:
        asked.append(1)
        return run_of("rms_norm")(launch, *given)

    ready = Repeated(run, launches(run))
    arguments = (torch.randn(8, 64), (64,), None, None)
    for _ in range(WATCHED + 1):
        ready(*arguments)
    seen.current[0] = 1
    ready(*arguments)
    assert len(asked) == WATCHED + 1
    assert len(seen.started) == WATCHED + 2


@pytest.mark.parametrize("transposed", [False, True])
def test_products_of_pytorchs_are_made_where_the_run_makes_them(
    seen: Seen, monkeypatch: pytest.MonkeyPatch, transposed: bool
) -> None:
    monkeypatch.setattr(import_module("kpt.ops.linear_act.backward"), "leaves_idle", lambda *_: True)
    run = run_of("linear_act_backward")
    ready, general = Repeated(run, launches(run)), below(partial(run, launches(run, "other")))
    for number in range(WATCHED + 2):
        wide = torch.randn(330, 64, dtype=torch.bfloat16)
        x, dy = wide[16 + number :][:300], torch.randn(300, 128, dtype=torch.bfloat16)
        weight = torch.randn(64, 128, dtype=torch.bfloat16).T if transposed else torch.randn(128, 64, dtype=torch.bfloat16)
        arguments = (dy, x.requires_grad_(), weight, None, None, "none", (True, True, True))
        assert told(seen, ready, arguments) == told(seen, general, arguments)
        _, dw, _ = ready(*arguments)
        assert torch.equal(dw, torch.mm(dy.T, x.detach()) if not transposed else torch.mm(x.detach().T, dy).T)
    assert is_straight(ready)


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("op", ["linear_act", "linear_act_backward"])
def test_copies_are_made_where_the_run_makes_them(
    seen: Seen, monkeypatch: pytest.MonkeyPatch, op: str, activation: str
) -> None:
    """Of rows that begin at no 16 bytes: a copy's come as the run's did, and are what lies there now."""
    monkeypatch.setattr(alignment, "COPIED", 0)
    monkeypatch.setattr(alignment, "WIDE", 1)
    run = run_of(op)
    ready, general = Repeated(run, launches(run)), below(partial(run, launches(run, "other")))
    copied: list[torch.Tensor] = []
    known = OF_PYTORCH[torch.ops.aten.copy_.default]

    def noted(to: Matrix, of: Matrix) -> None:
        known(to, of)
        copied.append(_view(to))

    monkeypatch.setitem(OF_PYTORCH, torch.ops.aten.copy_.default, noted)
    for number in range(WATCHED + 2):
        wide = torch.randn(330, 37, dtype=torch.bfloat16)
        x, weight = wide[16 + number :][:300], torch.randn(31, 37, dtype=torch.bfloat16)
        dy = torch.randn(300, 31, dtype=torch.bfloat16)
        z = None if activation == "none" else torch.randn_like(dy)
        given = (x, weight, None, "none", False) if op == "linear_act" else (dy, x, weight, None, z, activation, (True,) * 3)
        copied.clear()
        assert told(seen, ready, given) == told(seen, general, given)
    assert is_straight(ready)
    wanted = [x, weight] if op == "linear_act" or z is not None else [x, weight, dy]
    assert [any(torch.equal(c, w) for c in copied if c.shape == w.shape) for w in wanted] == [True] * len(wanted)
    assert len(copied) == len(wanted)


def test_a_part_is_copied_from_where_it_begins_to_where_it_is_meant(seen: Seen) -> None:
    norm = run_of("rms_norm")

    def run(launch: Any, x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        room = x.new_empty((48, 64))
        room[40:].copy_(x[4:12])
        norm(launch, x, shape, None, 1e-3)
        return room

    ready = Repeated(run, launches(run))
    for _ in range(WATCHED + 2):
        x = torch.randn(40, 64)
        assert torch.equal(ready(x, (64,))[40:], x[4:12])
    assert is_straight(ready)


def test_products_of_pytorchs_come_in_their_turn(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("kpt.ops.linear_act.backward"), "leaves_idle", lambda *_: True)
    before: list[int] = []
    monkeypatch.setitem(OF_PYTORCH, torch.ops.aten.mm.out, lambda *_: before.append(len(seen.started)))
    run = run_of("linear_act_backward")
    ready = Repeated(run, launches(run))
    draw = drawn("linear_act_backward", {"M": 300, "N": 128, "K": 64}, activation="silu")
    for _ in range(WATCHED + 1):
        seen.started.clear()
        ready(*draw())
    assert [name for name, *_ in seen.started] == [
        "linear_act_bwd_dz_sums", "linear_act_bwd_dx", "column_sums",
    ]  # fmt: skip
    assert before == [2]


def test_what_a_product_refuses_is_said_in_pytorchs_words(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("kpt.ops.linear_act.backward"), "leaves_idle", lambda *_: True)

    def no_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("a product needs room")

    monkeypatch.setitem(OF_PYTORCH, torch.ops.aten.mm.out, no_memory)
    run = run_of("linear_act_backward")
    ready = Repeated(run, launches(run))
    draw = drawn("linear_act_backward", {"M": 300, "N": 128, "K": 64}, activation="silu")
    for _ in range(WATCHED):
        ready(*draw())
    with pytest.raises(torch.OutOfMemoryError):
        ready(*draw())


def test_what_copies_stays_as_it_is(seen: Seen) -> None:
    run = run_of("rms_norm")
    ready = Repeated(run, launches(run))
    arguments = (torch.randn(256, 64).t(), (256,), None, None)  # no dense rows: each call copies
    for _ in range(WATCHED + 2):
        ready(*arguments)
    assert not is_straight(ready)


def test_what_computes_in_place_stays_as_it_is(seen: Seen) -> None:
    """Nothing in the addresses tells of it."""

    def run(launch: Any, *given: Any) -> Any:
        return run_of("rms_norm")(launch, *given).mul_(2.0)

    ready = Repeated(run, launches(run))
    for _ in range(WATCHED + 2):
        ready(torch.randn(8, 64), (64,), None, None)
    assert not is_straight(ready)


def test_it_asks_whether_to_be_deterministic(seen: Seen) -> None:
    run = run_of("flash_attention_backward")
    ready = Repeated(run, launches(run))
    arguments = registry.get("flash_attention_backward").arguments(ATTENTION, torch.bfloat16, "cpu", causal=True)
    asked: list[int] = []

    def counted(launch: Any, *given: Any) -> Any:
        asked.append(1)
        return run(launch, *given)

    ready = Repeated(counted, launches(counted))
    for _ in range(WATCHED + 1):
        ready(*arguments)
    assert len(asked) == WATCHED
    torch.use_deterministic_algorithms(True)
    try:
        ready(*arguments)
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(asked) == WATCHED + 1


def test_a_name_that_means_something_else_takes_the_run(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    from kpt.ops.flash_attention import kernels

    run = run_of("flash_attention")
    ready = Repeated(run, launches(run))
    arguments = (*packed(), True, None, None, None, False)
    for _ in range(WATCHED + 1):
        ready(*arguments)
    general = partial(run, launches(run, "other"))
    monkeypatch.setattr(kernels, "LOG2E", 2.0)
    assert told(seen, ready, arguments) == told(seen, general, arguments)


def test_a_refusal_of_the_driver_has_our_name(seen: Seen) -> None:
    ready = Repeated(run_of("rms_norm"), launches(run_of("rms_norm")))
    arguments = (torch.randn(8, 64), (64,), None, None)
    for _ in range(WATCHED + 1):
        ready(*arguments)
    seen.refuses = True
    with pytest.raises(CompileError, match="out of resources"):
        ready(*arguments)


CALLED_AGAIN = """
import sys
import pytest, torch
import kpt
from kpt.ops import backends, straight
from tests.ops.pretended_gpu import pretended_gpu

def step(grad):
    x, w = (torch.ones(s, dtype=torch.bfloat16, requires_grad=grad) for s in ((5, 64), (64,)))
    q = torch.ones(1, 2, 37, 64, dtype=torch.bfloat16, requires_grad=grad)
    for y in (kpt.ops.rms_norm(x, (64,), w), kpt.ops.flash_attention(q, q, q)):
        if grad:
            y.sum().backward()

with pytest.MonkeyPatch.context() as patch, pretended_gpu(patch):
    patch.setattr(backends, "Repeated", straight.Repeated)
    for grad in (False, True):
        step(grad), step(grad)
        before = set(sys.modules)
        for _ in range(50):
            step(grad)
        print(sorted(set(sys.modules) - before)[:5])
"""


def test_calls_that_come_again_import_nothing() -> None:
    """Importing torch.compile takes seconds, in the middle of a program that needs none of it."""
    ran = subprocess.run([sys.executable, "-c", CALLED_AGAIN], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.stdout.split("\n")[:2] == ["[]", "[]"], ran.stdout + ran.stderr
