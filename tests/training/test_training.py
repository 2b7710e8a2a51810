"""The training comparison in miniature: generated backwards train as PyTorch's do, and what is wrong does not pass."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from training import __main__ as command
from training import comparison, ops, text
from training.comparison import KPT, PRESETS, PYTORCH, Comparison, compare
from training.model import GPT, Ops, Size, rotations
from training.run import Place, Schedule
from training.verdict import windows

MINIATURE = PRESETS["miniature"]
RAGGED = replace(MINIATURE, size=Size(1, 32, 2, 1, 40, 37), batch=1, steps=2)
"""For the interpreter, which takes seconds a step: grouped heads, lengths that no tile divides."""

LOSS, GRADIENT = 1e-6, 1e-6
"""Largest relative errors in float32: some units in the last place."""


def quietly(preset: comparison.Preset, preferred: Any = "numpy", roundings: int = 2) -> Comparison:
    return compare(preset, Place("cpu", preferred), 0, roundings, lambda _: None)


@pytest.mark.parametrize(
    ("preset", "preferred"),
    [
        pytest.param(MINIATURE, "numpy", id="numpy"),
        pytest.param(RAGGED, "triton", id="triton", marks=pytest.mark.slow),
        pytest.param(RAGGED, "pallas", id="pallas", marks=pytest.mark.slow),
    ],
)
def test_generated_kernels_train_as_pytorch_does(preset: comparison.Preset, preferred: str) -> None:
    found = quietly(preset, preferred, roundings=1)
    assert found.failures == []
    losses, expected = (found.runs[name].losses for name in (KPT, PYTORCH))
    assert losses == pytest.approx(expected, rel=LOSS)
    assert max(g.kpt for g in found.gradients) < GRADIENT
    assert {op for op in found.served if op.endswith("_backward")} == set(comparison.BACKWARDS)
    assert all(set(calls) == {preferred} for calls in found.served.values())
    if preset.steps >= 8:
        assert losses[-1] < losses[0] - 0.3, "nothing was learnt"


# ------------------------------------------------------------------ what must not pass
class _Scaled(torch.autograd.Function):
    """A gradient that is a little off."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * (1 + 1e-4)


def _shifted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(-1)
    mask[0, 0] = True
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


RIGHT = ops.of_pytorch()
WRONG: dict[str, Callable[[], Ops]] = {
    "gradient": lambda: replace(RIGHT, attention=lambda q, k, v: RIGHT.attention(_Scaled.apply(q), k, v)),
    "value": lambda: replace(RIGHT, gated_silu=lambda gate, up: RIGHT.gated_silu(gate, up) * (1 + 1e-3)),
    "positions": lambda: replace(RIGHT, rotary=lambda q, k, cos, sin: RIGHT.rotary(q, k, cos, -sin)),
    "mask": lambda: replace(RIGHT, attention=_shifted),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "of_kpt", WRONG[mistake])
    failures = quietly(MINIATURE, roundings=1).failures
    assert any(f.startswith("gradients:") for f in failures), failures
    assert any(f.startswith("curves:") for f in failures) or mistake == "gradient", failures


def test_pytorch_in_kpts_place_is_said() -> None:
    failures = quietly(RAGGED, "reference").failures
    assert any("gated_act_backward" in f or "PyTorch served" in f for f in failures), failures


def test_curves_are_judged_by_their_distance_to_other_roundings() -> None:
    base = [5.0] * 40
    nearby = [5.0 + (-1) ** i * 1e-3 for i in range(40)]
    within, beyond = ([5.0 + (-1) ** i * d for i in range(40)] for d in (1.9e-3, 2.1e-3))
    assert all(w.passed for w in windows(within, [base, nearby]))
    assert not any(w.passed for w in windows(beyond, [base, nearby]))
    late = [*base[:30], *beyond[30:]]
    assert [w.passed for w in windows(late, [base, nearby])] == [True, True, True, False]
    assert not any(w.passed for w in windows([float("nan")] * 40, [base, nearby]))
    assert [(w.first, w.last) for w in windows(base[:3], [base[:3], nearby[:3]])] == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_roundings_are_one_rounding_large(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    gate, up = (torch.randn(64, 48, generator=generator).to(dtype).requires_grad_() for _ in range(2))
    results = []
    for chosen in (RIGHT, ops.rounded_at_random(RIGHT, 1, "cpu")):
        y = chosen.gated_silu(gate, up)
        results.append((y, *torch.autograd.grad(y.float().sum(), (gate, up))))
    unit = torch.finfo(dtype).eps / 2
    assert y.dtype == dtype
    for one, other in zip(*results, strict=True):
        apart = (other.float() - one.float()) / one.float()
        assert 0.1 * unit < apart.abs().mean() < unit
        assert apart.abs().max() <= 3 * unit  # moved, then rounded again
        assert apart.mean().abs() < 0.2 * apart.abs().mean()  # to either side


# ------------------------------------------------------------------ the model, its text, its command
def test_the_text_is_pythons_and_the_held_out_part_is_not_learnt() -> None:
    read = text.read(("topics",))
    assert read.size > 300_000
    assert b"assert_stmt" in bytes(read.learnt.tolist())
    batches = text.batches(read.learnt, 3, 4, 100, seed=1)
    assert batches.shape == (3, 4, 101)
    assert torch.equal(batches, text.batches(read.learnt, 3, 4, 100, seed=1))
    assert bytes(batches[1, 2].tolist()) in bytes(read.learnt.tolist())


def test_docstrings_are_read_from_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "a.py": '"""A module."""\nclass A:\n    """A class."""\n    def f(self):\n        """A method."""\n    x = "no"\n',
        "b/c.py": "raise SystemExit\nasync def f():\n    'A coroutine.'\n",
        "test/d.py": '"""A test."""',
        "broken.py": "def",
    }
    for name, source in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    monkeypatch.setattr(text.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    assert text.docstrings().split("\n\n") == ["A module.", "A class.", "A method.", "A coroutine."]


def test_a_byte_is_predicted_from_those_before_it_only() -> None:
    model = GPT(RAGGED.size, RIGHT, seed=0)
    tokens = torch.randint(256, (2, 37), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 20] = (changed[:, 20] + 1) % 256
    apart = (model(tokens) - model(changed)).abs().amax((0, 2))
    assert not apart[:20].any()
    assert apart[20:].all()


def test_rotations_keep_lengths_and_depend_on_distance_only() -> None:
    turned = ops.rotated(torch.ones(1, 1, 37, 16), *rotations(37, 16))
    assert torch.allclose(turned.norm(dim=-1), torch.tensor(4.0))
    products = turned[0, 0] @ turned[0, 0].T
    assert torch.allclose(products.diagonal(5), products[0, 5], atol=1e-4)


def test_the_learning_rate_rises_then_falls() -> None:
    rates = [Schedule(200, 1.0).at(step) for step in range(200)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == rates[19] == 1.0
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert 0.1 <= rates[-1] < 0.11


def test_the_command_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = command.main(["--preset", "miniature", "--steps", "4", "--roundings", "1", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "PyTorch's within noise, by every criterion" in printed
    assert status == 0
    found = json.loads((tmp_path / "training.json").read_text())
    assert found["within noise"] is True
    assert found["command"].startswith("python -m training")
    assert {"device", "versions", "date", "criteria", "text"} <= found.keys()
    assert set(found["runs"]) == {KPT, PYTORCH, f"{PYTORCH}, rounding 1"}
    assert all(len(run["losses"]) == 4 and run["tokens a second"] > 0 for run in found["runs"].values())
    assert (tmp_path / "training.png").stat().st_size


def test_the_command_fails_where_a_criterion_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ops, "of_kpt", WRONG["gradient"])
    assert command.main(["--steps", "1", "--preset", "miniature", "--out", str(tmp_path)]) == 1
    assert "not PyTorch's within noise" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--steps", "0"], ["--steps", "ten"], ["--preset", "huge"], ["--prefer", "cuda"]])
def test_bad_words_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(words)
    assert stopped.value.code == 2
    assert words[1] in capsys.readouterr().err
