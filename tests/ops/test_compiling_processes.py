"""Another process compiles indeed, and what it makes is taken over without compiling; the rest is in
``test_while_compiling.py``."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import kpt
from kpt.ops import behind, while_compiling
from kpt_dsl.build import cache
from kpt_dsl.build import triton as build
from tests.ops.pretended_gpu import pretended_gpu


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    build.binary.cache_clear()
    known = build.binary
    with pretended_gpu(monkeypatch):
        while_compiling("reference")
        yield
        if behind._asked.behind._thread is not None:
            behind._asked.behind._end()
    known.cache_clear()


def served() -> dict[str, int]:
    return kpt.ops.counters()["rms_norm"]["served"]


def test_a_program_and_its_gradients_are_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("compiled in this process")

    monkeypatch.setattr("triton.compiler.compiler.ASTSource.make_ir", too_late)
    x = torch.ones(700, 64, requires_grad=True)
    until = time.monotonic() + 120
    slowest = 0.0
    kpt.ops.rms_norm(x, (64,))
    while "triton" not in served():
        assert time.monotonic() < until, kpt.ops.explain("rms_norm", x, (64,))
        began = time.monotonic()
        kpt.ops.rms_norm(x, (64,)).sum().backward()
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.002)
    assert slowest < 2.0, "nobody waited for a compiler"
    assert kpt.ops.counters()["rms_norm_backward"]["served"] == {"triton": 1}, "it was compiled with its forward"


def test_a_full_disk_is_said_and_pytorch_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behind.cache, "binaries", lambda: str(tmp_path / "another"))
    x = torch.ones(700, 64)
    until = time.monotonic() + 120
    while not any("failed" in reason for reason in kpt.ops.counters()["rms_norm"]["fallbacks"]):
        assert time.monotonic() < until
        kpt.ops.rms_norm(x, (64,))
        time.sleep(0.01)
    assert set(served()) == {"reference"}
    assert "cannot be handed over" in str(kpt.ops.explain("rms_norm", x, (64,)))


def test_a_child_that_is_forked_off_leaves_its_parents_processes_alone() -> None:
    x = torch.ones(16, 64)  # of which PyTorch makes no work for several threads, which a child does not have
    kpt.ops.rms_norm(x, (64,))
    theirs: Any = behind._asked
    child = os.fork()
    if not child:
        kpt.ops.rms_norm(x, (64,))
        asked = behind._asked
        mine = asked is not theirs and len(asked.classes) == 1 and asked.behind._thread is not theirs.behind._thread
        os._exit(0 if mine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    until = time.monotonic() + 120
    while "triton" not in served():
        assert time.monotonic() < until
        kpt.ops.rms_norm(x, (64,))
        time.sleep(0.01)
