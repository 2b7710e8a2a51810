"""Calls whose kernels are not compiled yet: PyTorch serves them while another process compiles, then kpt does.

On the CPU: its tensors count as those of a GPU, launches start nothing, and the other process works when a test says so.
``test_compiling_processes.py`` has real ones.
"""

import copy
import logging
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import autotune_db
import kpt
import kpt_dsl as kd
from autotune_db import handover
from autotune_db.crew import Reply
from kpt.ops import behind, capture, compile_job, compiling, explain, while_compiling
from kpt_dsl import targets
from kpt_dsl.errors import CompileError
from kpt_dsl.runtime import triton, triton_launch
from tests.ops.pretended_gpu import pretended_gpu

H200 = targets.get("nvidia-h200")
REASON = "triton: compiling in another process"


class Elsewhere:
    """Stands for the other processes: jobs wait until they are asked to be done, or are told to fail."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Any, Callable[[Reply], None]]] = []
        self.compiled: list[str] = []

    def submit(self, function: Any, argument: Any, seconds: float, done: Callable[[Reply], None]) -> None:
        assert function is compile_job.make and seconds > 0
        self.jobs.append((copy.deepcopy(argument), done))

    def work(self) -> int:
        """Do all that was asked for; gives how many jobs that were."""
        jobs, self.jobs = self.jobs, []
        for request, done in jobs:
            done(Reply(0, compile_job.make(compile_job.pickle.dumps(request))))
        return len(jobs)

    def fail(self, **reply: Any) -> None:
        for _, done in self.jobs:
            done(Reply(0, **reply))
        self.jobs = []


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    found = Elsewhere()

    def binary(source: Any, *where: Any, launched: bool = False) -> Any:
        if launched:  # by another process: here it is to be compiled
            found.compiled.append(source.name)
        return SimpleNamespace(
            name=source.name, n_regs=128, metadata=SimpleNamespace(num_warps=4, shared=1000),
            metadata_group={"cubin": "/binaries/kernel.cubin"},
        )  # fmt: skip

    monkeypatch.setattr(handover, "binary", binary)
    monkeypatch.setattr(behind.cache, "binaries", lambda: "/binaries")
    monkeypatch.setattr(compile_job, "_settle", lambda _: None)
    with pretended_gpu(monkeypatch):
        behind._asked.behind = found  # type: ignore[assignment]
        while_compiling("reference")
        yield found


def norm(rows: int = 700, columns: int = 64, **more: Any) -> torch.Tensor:
    return kpt.ops.rms_norm(torch.ones(rows, columns, **more), (columns,))


def served(op: str = "rms_norm") -> dict[str, int]:
    return kpt.ops.counters()[op]["served"]


def test_pytorch_serves_until_it_is_compiled(elsewhere: Elsewhere) -> None:
    for _ in range(3):
        assert norm().eq(1).all()
    assert len(elsewhere.jobs) == 1 and not elsewhere.compiled, "asked once, and nothing compiled here"
    assert kpt.ops.counters()["rms_norm"] == {"served": {"reference": 3}, "fallbacks": {REASON: 3}}
    elsewhere.work()
    assert elsewhere.compiled == ["rms_norm_fwd"]
    for _ in range(2):
        norm()
    assert kpt.ops.counters()["rms_norm"] == {"served": {"reference": 3, "triton": 2}, "fallbacks": {REASON: 3}}


def test_other_lengths_of_a_class_do_not_ask_again(elsewhere: Elsewhere) -> None:
    for rows in (704, 720, 736, 752):
        norm(rows)
    assert elsewhere.work() == 1
    for rows in (768, 784, 800):
        norm(rows)
    assert served() == {"reference": 4, "triton": 3} and not elsewhere.jobs


def test_what_is_done_before_the_call_is_served_is_taken_over(
    elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = elsewhere.submit

    def at_once(*job: Any) -> None:
        submit(*job)
        elsewhere.work()

    monkeypatch.setattr(elsewhere, "submit", at_once)
    norm()
    norm()
    assert kpt.ops.counters()["rms_norm"] == {"served": {"reference": 1, "triton": 1}, "fallbacks": {REASON: 1}}


def test_threads_ask_once(elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    together, look = threading.Barrier(8), behind._look

    def all_look(*call: Any) -> Any:
        together.wait(30.0)
        return look(*call)

    monkeypatch.setattr(behind, "_look", all_look)
    threads = [threading.Thread(target=norm) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(elsewhere.jobs) == 1 and served() == {"reference": 8}
    monkeypatch.setattr(behind, "_look", look)
    elsewhere.work()
    norm()
    assert served() == {"reference": 8, "triton": 1}


def test_texts_that_other_lengths_have_are_asked_for_in_their_turn(elsewhere: Elsewhere) -> None:
    norm(704)
    norm(701)
    elsewhere.work()
    while norm(701) is not None and elsewhere.jobs:
        elsewhere.work()
    norm(704)
    norm(701)
    assert not elsewhere.jobs and served()["triton"] >= 2


def test_the_log_says_it_once_a_class(elsewhere: Elsewhere, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "kpt"):
        for rows in (700, 700, 704, 3000, 3000):
            norm(rows)
        elsewhere.work()
        norm()
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "rms_norm(float32[700, 64]) compiles in another process; PyTorch serves until then",
        "rms_norm(float32[3000, 64]) compiles in another process; PyTorch serves until then",
    ]


def test_explain_says_since_when(elsewhere: Elsewhere) -> None:
    x = torch.ones(700, 64)
    asked = str(explain("rms_norm", x, (64,)))
    assert "served by   reference" in asked and "its first call has another process" in asked and not elsewhere.jobs
    norm()
    told = explain("rms_norm", x, (64,))
    assert told.implementation == "reference"
    assert any("since 0." in p.reason and p.reason.endswith("s; PyTorch serves") for p in told.passed_over)
    elsewhere.work()
    assert explain("rms_norm", x, (64,)).implementation == "triton"
    with kpt.ops.prefer("numpy"):
        assert explain("rms_norm", x, (64,)).implementation == "numpy"


@pytest.mark.parametrize("reply", [
    {"failure": "error", "detail": "Triton does not compile it"}, {"failure": "crash", "detail": "signal 9"},
    {"failure": "timeout"}, {"failure": "start", "detail": "no memory"}, {"value": "no answer"},
])  # fmt: skip
def test_what_fails_is_pytorchs(
    elsewhere: Elsewhere, caplog: pytest.LogCaptureFixture, reply: dict[str, Any]
) -> None:
    norm()
    elsewhere.fail(**reply)
    caplog.clear()
    for _ in range(3):
        norm()
    assert not elsewhere.jobs and served() == {"reference": 4}
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and "compiling in another process failed: " in said[0]
    assert "compiling in another process failed" in str(explain("rms_norm", torch.ones(700, 64), (64,)))
    while_compiling("wait")
    norm()
    assert served() == {"reference": 4, "triton": 1}, "who waits hears of it himself"


def test_what_does_not_load_is_pytorchs(elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("out of memory")

    norm()
    monkeypatch.setattr(triton_launch, "starter", refuse)
    elsewhere.work()
    norm()
    (reason,) = set(kpt.ops.counters()["rms_norm"]["fallbacks"]) - {REASON}
    assert reason.endswith("cannot be loaded on NVIDIA H200: out of memory")


def test_what_was_made_and_does_not_serve_is_not_made_for_ever(
    elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "take", lambda *_: None)
    norm()
    elsewhere.work()
    norm()
    norm()
    assert not elsewhere.jobs and served() == {"reference": 3}


def test_a_binary_that_the_cache_does_not_keep_cannot_be_handed_over() -> None:
    (instance,) = kpt.ops.Call("rms_norm", (torch.empty(700, 64, device="meta"), (64,), None, None)).instances(H200)
    assert handover.make(instance, H200, "/binaries").instance == instance
    with pytest.raises(CompileError, match="cannot be handed over"):
        handover.make(instance, H200, "/elsewhere")


def test_the_setting(monkeypatch: pytest.MonkeyPatch, elsewhere: Elsewhere) -> None:
    with while_compiling("wait"):
        norm()
        assert served() == {"triton": 1} and not elsewhere.jobs
        with while_compiling("reference"):
            norm(3000)
        assert served() == {"triton": 1, "reference": 1}
        norm(3000)
        assert served() == {"triton": 2, "reference": 1}, "what waits again compiles"
    assert compiling.is_behind()
    threads: list[bool] = []
    thread = threading.Thread(target=lambda: threads.append(compiling.is_behind()))
    thread.start()
    thread.join()
    assert threads == [True]
    for wrong in ("Reference", None, 3):
        with pytest.raises(kpt.InputError, match=r"while_compiling: .* accepted: wait, reference"):
            while_compiling(wrong)  # type: ignore[arg-type]
    monkeypatch.setattr(compiling, "_mode", None)
    assert not compiling.is_behind()
    monkeypatch.setattr(compiling, "_said", "reference")
    assert compiling.is_behind()
    monkeypatch.setattr(compiling, "_said", "never")
    with pytest.raises(kpt.InputError, match="KPT_WHILE_COMPILING: 'never'"):
        norm(5000)


def test_who_prefers_kernels_waits_for_them(elsewhere: Elsewhere) -> None:
    with kpt.ops.prefer("triton"):
        norm()
    assert served() == {"triton": 1} and not elsewhere.jobs


def test_checked_indices_are_waited_for(elsewhere: Elsewhere) -> None:
    with kd.checking():
        norm()
    assert not elsewhere.jobs


def test_a_gradient_is_compiled_with_its_forward(elsewhere: Elsewhere) -> None:
    x = torch.ones(700, 64, requires_grad=True)
    y = kpt.ops.rms_norm(x, (64,))
    assert type(y.grad_fn).__name__ != "_FollowedBackward"
    y.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert elsewhere.work() == 1
    assert set(elsewhere.compiled) >= {"rms_norm_fwd", "rms_norm_bwd_dx"}, elsewhere.compiled
    kpt.ops.rms_norm(x, (64,)).sum().backward()
    assert served()["triton"] == 1


def test_a_backward_that_is_not_there_is_pytorchs_formula(elsewhere: Elsewhere) -> None:
    x = torch.ones(700, 64)
    norm()
    elsewhere.work()
    x.requires_grad_()
    y = kpt.ops.rms_norm(x, (64,))
    assert served() == {"reference": 1, "triton": 1}
    y.backward(torch.ones(64).expand(700, 64))
    assert served("rms_norm_backward") == {"reference": 1} and len(elsewhere.jobs) == 1
    assert x.grad is not None and x.grad.shape == x.shape


def test_attention_with_the_statistics_that_its_gradient_saves(elsewhere: Elsewhere) -> None:
    q = torch.randn(1, 2, 128, 64, dtype=torch.bfloat16, requires_grad=True)
    for _ in range(2):
        kpt.ops.flash_attention(q, q, q, causal=True).sum().backward()
    assert served("flash_attention") == {"reference": 2} and len(elsewhere.jobs) == 1
    elsewhere.work()
    for _ in range(3):
        kpt.ops.flash_attention(q, q, q, causal=True).sum().backward()
        elsewhere.work()
    assert served("flash_attention") == {"reference": 2, "triton": 3}
    assert served("flash_attention_backward")["triton"] >= 1
    assert not elsewhere.jobs


def test_a_captured_call_asks_nobody(elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behind, "is_capturing", lambda: True)
    norm()
    assert not elsewhere.jobs and served() == {"reference": 1}
    monkeypatch.setattr(behind, "is_capturing", lambda: False)
    norm()
    elsewhere.work()
    norm()
    assert kpt.ops.counters()["rms_norm"] == {"served": {"reference": 2, "triton": 1}, "fallbacks": {REASON: 2}}


def test_a_driver_without_captures_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not capture.is_capturing()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with capture.relaxed():
        pass


def test_configs_that_lie_over_the_database_go_with_it(elsewhere: Elsewhere) -> None:
    from kpt.ops.rms_norm.kernels import rms_norm_fwd

    (instance,) = kpt.ops.Call("rms_norm", (torch.empty(700, 64, device="meta"), (64,), None, None)).instances(H200)
    config = triton.configs.choose(instance, H200)[0] | {"num_warps": 8}
    with autotune_db.overlay({rms_norm_fwd: config}):
        norm()
        ((request, _),) = elsewhere.jobs
        assert request.surroundings.overlays == {rms_norm_fwd.qualname: config}
        elsewhere.work()
        norm()
        assert served() == {"reference": 1, "triton": 1}
    norm()
    assert len(elsewhere.jobs) == 1, "without it, another config"


def test_a_compiled_graph_decides_when_it_runs(elsewhere: Elsewhere) -> None:
    @torch.compile(backend="aot_eager", fullgraph=True)
    def model(x: torch.Tensor) -> torch.Tensor:
        return kpt.ops.rms_norm(x, (64,)) * 2

    x = torch.ones(700, 64, requires_grad=True)
    model(x).sum().backward()
    assert served()["reference"] >= 1
    while elsewhere.jobs:
        elsewhere.work()
    before = served().get("triton", 0)
    model(x).sum().backward()
    assert served()["triton"] == before + 1


def test_what_a_checkpoint_runs_again_is_served_as_it_was(elsewhere: Elsewhere) -> None:
    x = torch.ones(700, 64, requires_grad=True)

    def layer(x: torch.Tensor) -> torch.Tensor:
        return kpt.ops.rms_norm(torch.sin(kpt.ops.rms_norm(x, (64,))), (64,))

    first = checkpoint(layer, x, use_reentrant=False)

    def taken_over(x: torch.Tensor) -> torch.Tensor:
        y = kpt.ops.rms_norm(x, (64,))
        elsewhere.work()
        return kpt.ops.rms_norm(torch.sin(y), (64,))

    second = checkpoint(taken_over, x, use_reentrant=False)
    third = checkpoint(layer, x, use_reentrant=False)
    assert served() == {"reference": 4, "triton": 2}
    (first.sum() + second.sum() + third.sum()).backward()
    assert served() == {"reference": 8, "triton": 4}
    kpt.ops.rms_norm(x, (64,))
    assert served() == {"reference": 8, "triton": 5}


def test_a_child_that_is_forked_off_asks_for_itself(elsewhere: Elsewhere) -> None:
    norm()
    norm(3000)
    behind._start_anew()
    assert behind._asked.behind is not elsewhere and not behind._asked.classes
    behind._asked.behind = elsewhere  # type: ignore[assignment]
    norm()
    assert len(elsewhere.jobs) == 3
