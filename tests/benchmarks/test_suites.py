"""The benchmarks, tiny and on a CPU: cases are made, peers found or named as missing, rows timed, written and drawn."""

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import autotune_db
import kpt.ops
from autotune_db import measure
from benchmarks import __main__ as command
from benchmarks import (
    attention,
    attention_backward,
    decode,
    features,
    heads,
    linear,
    linear_training,
    norms_backward,
    peers,
    report,
    timing,
    varlen,
)
from benchmarks.case import Case, Found, OpCase
from benchmarks.report import Picture
from kpt.ops import backends
from kpt_dsl import KptError, configs, targets
from tests.autotune_db.instances import softmax

CPU = targets.get("cpu")

TINY: dict[str, Callable[[], Case | OpCase]] = {
    "attention": partial(attention.case, "tiny", 1, 2, 40, 16, True, "cpu"),
    "attention_backward": partial(attention_backward.case, "tiny", 1, 2, 40, 16, True, "cpu"),
    "decode": partial(decode.case, "tiny", 2, 4, 2, 1, 40, 16, False, "cpu"),
    "decode, paged": partial(decode.paged, "tiny", 2, 4, 2, 3, 48, 16, 16, "cpu"),
    "decode, lengths": partial(decode.case, "tiny", 2, 4, 2, 3, 40, 16, True, "cpu"),
    "features, softcap": partial(features.case, "softcap", 1, 4, 2, 24, 16, "cpu"),
    **{
        f"features, {name}": partial(features.case, name, 1, 4, 2, 24, 16, "cpu")
        for name in ("bias", "sinks", "alibi", "mask")
    },
    "varlen": partial(varlen.packed, "tiny", (5, 1, 34), 4, 2, 16, False, "cpu"),
    "varlen, dense": partial(varlen.dense, "tiny", (17, 17), 4, 2, 16, True, "cpu"),
    "layer_norm_backward": partial(norms_backward.case, "layer_norm", 40, 24, "cpu"),
    "rms_norm_backward": partial(norms_backward.case, "rms_norm", 40, 24, "cpu"),
    "linear": partial(linear.case, "24x40x16", 24, 40, 16, "gelu", "cpu"),
    "heads": partial(heads.product, "tiny", 24, 41, 16, False, "cpu"),
    "heads, trained": partial(heads.product, "tiny", 24, 41, 16, True, "cpu"),
    "heads, loss": partial(heads.loss, "tiny", 24, 41, 16, "cpu"),
    "linear_training": partial(linear_training.case, "24x40x16", 24, 40, 16, "gelu", "cpu"),
}


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling for a CPU takes a minute and shows nothing here."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def timed(case: Case | OpCase) -> dict[str, Any]:
    with timing.chooser(0.0) as choose:
        return timing.row(case, CPU, measure.clock(CPU), choose, 0.01)


@pytest.mark.parametrize("suite", TINY)
def test_a_tiny_case_becomes_a_row_and_a_picture(suite: str, tmp_path: Path) -> None:
    with kpt.ops.prefer("numpy"):
        row = timed(TINY[suite]())
    assert {"kpt", row["best peer"]} <= row["microseconds"].keys() == row["rate"].keys()
    assert row["ratio"] == pytest.approx(row["microseconds"][row["best peer"]] / row["microseconds"]["kpt"], rel=0.01)
    assert row["ratios"][row["best peer"]] == row["ratio"]
    assert row["ratios"].keys() == {name for name in row["rate"] if not name.startswith("kpt")}
    assert row["case"] in timing.line(row)
    path = report.write(tmp_path, suite, "Tiny", [row])
    assert json.loads(path.read_text())["rows"] == [row]
    assert report.plot(path).stat().st_size


def test_of_lengths_the_same_bytes_of_one_length_stand_beside_and_are_no_peer() -> None:
    with kpt.ops.prefer("numpy"):
        row = timed(TINY["decode, lengths"]())
    assert row["best peer"] == "SDPA with a mask"
    assert row["difference"]["from"] == "SDPA with a mask"
    assert decode.AS_MANY in row["ratios"]


def test_a_peer_that_is_not_here_is_named() -> None:
    row = timed(TINY["attention"]())
    assert "FA CuTe" in row["missing"]
    assert "FA CuTe" in timing.line(row)
    assert "SDPA flash" in row["rate"]


def test_where_no_peer_does_it() -> None:
    """PyTorch has no gradients of packed attention on a CPU."""
    with kpt.ops.prefer("numpy"):
        row = timed(varlen.packed("tiny", (5, 1, 34), 4, 2, 16, True, "cpu"))
    assert row["rate"].keys() == {"kpt"}
    assert {"FlexAttention", "varlen_attn", "SDPA jagged", "flash-attn"} == row["missing"].keys()
    assert len(row["configs"]) == 8


def test_a_peer_that_fails_is_missing_and_costs_nothing_else() -> None:
    def broken() -> peers.Run:
        raise RuntimeError("no kernel image\nfor this device")

    found, missing = peers.available({"works": lambda: lambda: 1, "broken": broken, "fails later": lambda: broken})
    assert list(found) == ["works"]
    assert missing == dict.fromkeys(("broken", "fails later"), "RuntimeError: no kernel image")


def test_peers_of_a_forward_compute_the_same() -> None:
    peers_of = TINY["attention"]().peers
    assert "FlexAttention" in peers_of
    (expected,) = peers.as_tensors(peers_of["SDPA flash"]())
    for run in peers_of.values():
        (got,) = peers.as_tensors(run())
        assert torch.allclose(got.float(), expected.float(), atol=0.05)


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


def test_the_way_that_was_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the deterministic one is timed beside."""
    apart, together = (["rows", "dq", "dkdv"], ["rows", "dkdv", "scale"])
    with kpt.ops.prefer("numpy"):
        assert [name.removeprefix("flash_attention_") for name in timed(TINY["attention_backward"]())["launches"]] == apart
        monkeypatch.setattr(backends, "_quickest", lambda ways, _: len(ways) - 1)
        autotune_db.forget()  # and with it, what is remembered of calls
        case = TINY["attention_backward"]()
        assert isinstance(case, OpCase)
        row = timed(case)
        assert [name.removeprefix("flash_attention_") for name in row["launches"]] == together
        assert len(row["configs"]) == len(case.problems) == 6
    assert {"kpt", "kpt deterministic"} < row["rate"].keys()
    assert row["ratio deterministic"] > 0


@pytest.mark.parametrize("suite", ["attention", "attention_backward"])
def test_cute_gets_its_own_layout(suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package: (B, S, H, D) tensors in and out, the log-sum-exp beside."""

    def flash_attn_func(q: Any, k: Any, v: Any, causal: bool) -> tuple[torch.Tensor, None]:
        assert q.shape == (1, 40, 2, 16)
        assert q.is_contiguous()
        swapped = (t.transpose(1, 2) for t in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(*swapped, is_causal=causal).transpose(1, 2), None

    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", SimpleNamespace(flash_attn_func=flash_attn_func))
    case = TINY[suite]()
    assert "FA CuTe" not in case.missing
    for one, other in zip(*(peers.as_tensors(case.peers[name]()) for name in ("FA CuTe", "SDPA flash")), strict=True):
        assert torch.allclose(one.float(), other.float(), atol=0.05)


def test_a_wrong_gradient_is_not_timed() -> None:
    x = torch.randn(8)
    case = OpCase("wrong", (), {"kpt": lambda: x * 1.1}, 1.0, "GB/s", {"right": lambda: x})
    with pytest.raises(KptError, match="from right"):
        timed(case)


@pytest.mark.parametrize(
    "suite", [attention, attention_backward, heads, linear, linear_training, norms_backward, varlen], ids=lambda s: s.__name__
)
def test_names_of_cases_are_known_before_they_are_made(suite: Any) -> None:
    names = [name for name, _ in suite.cases()]
    assert len(set(names)) == len(names) > 1


def test_a_case_that_fails_costs_its_own_row_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Case:
        raise ZeroDivisionError("no such case")

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a processor")
    monkeypatch.setattr(targets, "of_device", lambda _: CPU)
    suite: Any = SimpleNamespace(cases=lambda: iter([("broken", broken), ("tiny", TINY["linear"]), ("other", broken)]))
    given = Namespace(only="n", tune=0.0, seconds=0.01)
    found = command._measure(suite, given)
    assert [row["case"] for row in found.rows] == ["24x40x16"]
    assert found.failed == 1
    printed = capsys.readouterr()
    assert "no such case" in printed.err
    assert "24x40x16" in printed.out


@pytest.mark.parametrize("kind", ["bars", "sorted"])
def test_a_suite_may_measure_in_its_own_way(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for its rows, for a word on all of them, and how they are drawn."""

    def measure(given: Namespace) -> Found:
        if given.only:
            return Found([])
        values: Any = {"kpt": 2.5, "PyTorch": 1000.0} if kind == "bars" else 0.98
        rows = [{"case": f"case {i}", "milliseconds": values} for i in range(3)]
        return Found(rows, 1, {"all": 3}, Picture("milliseconds", "ms", kind, logarithmic=kind == "bars"))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(report, "device", lambda: "a processor")
    monkeypatch.setattr(command, "import_module", lambda _: SimpleNamespace(TITLE="Own", measure=measure))
    words = ["benchmarks", "lengths", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    assert command.main() == 1
    written = json.loads((tmp_path / "lengths.json").read_text())
    assert (written["all"], len(written["rows"])) == (3, 3)
    assert (tmp_path / "lengths.png").stat().st_size
    monkeypatch.setattr(sys, "argv", [*words, "--only", "none"])
    assert command.main() == 2


def test_kernels_are_tuned_first_where_it_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was found is stored, where dispatch finds it."""
    monkeypatch.setenv("KPT_DB", str(tmp_path / "kpt.sqlite"))
    autotune_db.forget()
    kernels = [softmax("f32", M=200, N=n) for n in (48, 96)]
    with timing.chooser(0.5) as choose:
        found = [choose(problem, CPU) for problem in kernels]
    assert [origin for _, origin in found] == ["measured", "measured"]
    assert [configs.choose(problem, CPU) for problem in kernels] == found
