"""The benchmarks, tiny and on a CPU: cases are made, peers found or named as missing, rows timed, written and drawn."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import kpt.ops
from autotune_db import measure
from benchmarks import attention, attention_backward, linear, linear_training, peers, report, timing
from benchmarks.case import Case, OpCase
from kpt_dsl import KptError, targets

CPU = targets.get("cpu")

TINY: dict[str, Callable[[], Case | OpCase]] = {
    "attention": partial(attention.case, "tiny", 1, 2, 40, 16, True, "cpu"),
    "attention_backward": partial(attention_backward.case, "tiny", 1, 2, 40, 16, True, "cpu"),
    "linear": partial(linear.case, 24, 40, 16, "cpu"),
    "linear_training": partial(linear_training.case, 24, 40, 16, "cpu"),
}


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling for a CPU takes a minute and shows nothing here."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def timed(case: Case | OpCase) -> dict[str, Any]:
    return timing.row(case, CPU, measure.clock(CPU), 0.0, 0.01)


@pytest.mark.parametrize("suite", TINY)
def test_a_tiny_case_becomes_a_row_and_a_picture(suite: str, tmp_path: Path) -> None:
    with kpt.ops.prefer("numpy"):
        row = timed(TINY[suite]())
    assert {"kpt", row["best peer"]} <= row["microseconds"].keys() == row["rate"].keys()
    assert row["ratio"] == pytest.approx(row["microseconds"][row["best peer"]] / row["microseconds"]["kpt"], rel=0.01)
    assert row["case"] in timing.line(row)
    path = report.write(tmp_path, suite, "Tiny", [row])
    assert json.loads(path.read_text())["rows"] == [row]
    assert report.plot(path).stat().st_size


def test_a_peer_that_is_not_here_is_named() -> None:
    row = timed(TINY["attention"]())
    assert "FA CuTe" in row["missing"]
    assert "FA CuTe" in timing.line(row)
    assert "SDPA flash" in row["rate"]


def test_a_peer_that_fails_is_missing_and_costs_nothing_else() -> None:
    def broken() -> peers.Run:
        raise RuntimeError("no kernel image\nfor this device")

    found, missing = peers.available({"works": lambda: lambda: 1, "broken": broken, "fails later": lambda: broken})
    assert list(found) == ["works"]
    assert missing == dict.fromkeys(("broken", "fails later"), "RuntimeError: no kernel image")


def test_backwards_are_of_the_same_gradients() -> None:
    """Every attention, and kpt's generated one, differentiates the same function of the same tensors."""
    with kpt.ops.prefer("numpy"):
        case = attention_backward.case("tiny", 1, 2, 40, 16, True, "cpu")
        generated = case.kpt["kpt"]()
    (served,) = (c["served"] for op, c in kpt.ops.counters().items() if op == "flash_attention_backward")
    assert served.get("numpy")
    for peer in case.peers.values():
        for one, other in zip(peers.as_tensors(generated), peers.as_tensors(peer()), strict=True):
            assert torch.allclose(one.float(), other.float(), atol=0.05)


def test_a_wrong_gradient_is_not_timed() -> None:
    x = torch.randn(8)
    case = OpCase("wrong", (), {"kpt": lambda: x * 1.1}, 1.0, "GB/s", {"right": lambda: x})
    with pytest.raises(KptError, match="from right"):
        timed(case)


@pytest.mark.parametrize("suite", [attention, attention_backward, linear, linear_training], ids=lambda s: s.__name__)
def test_names_of_cases_are_known_before_they_are_made(suite: Any) -> None:
    names = [name for name, _ in suite.cases()]
    assert len(set(names)) == len(names) > 1
