"""``kpt.optimize``: what each level replaces, what stays since it would be slower."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import kpt
from kpt.ops.replace import slower
from kpt.ops.replace.candidates import Candidates
from kpt.ops.replace.rules import KINDS
from kpt_dsl import targets
from kpt_dsl.errors import InputError


class GatedMLP(nn.Module):
    def __init__(self, features: int = 8, width: int = 12) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(features, width), nn.Linear(features, width), nn.Linear(width, features)

    def forward(self, x: torch.Tensor) -> Any:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def model() -> nn.Sequential:
    """With a module of each kind that is one."""
    return nn.Sequential(
        nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 8), GatedMLP(), nn.RMSNorm(8), nn.Linear(8, 8),
        nn.Linear(8, 9, bias=False),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("level", "kinds"),
    [
        ("conservative", {"layer_norm", "rms_norm"}),
        ("balanced", {"layer_norm", "rms_norm", "linear_act", "gated_act", "bias_gradient", "unaligned_linear"}),
        ("aggressive", {"layer_norm", "rms_norm", "linear_act", "gated_act", "bias_gradient", "unaligned_linear"}),
    ],
)
def test_levels(level: str, kinds: set[str]) -> None:
    subject = model()
    classes = [type(m) for m in subject.modules()]
    report = kpt.optimize(subject, level)
    assert {c.kind for c in report.changes} == kinds
    assert kpt.optimize(subject, level).changes == ()
    kpt.restore_modules(subject)
    assert [type(m) for m in subject.modules()] == classes


def test_balanced_is_the_default() -> None:
    assert kpt.optimize(model()).changes == kpt.optimize(model(), "balanced").changes


def judged(module: nn.Module, dtype: str = "bf16", name: str = "nvidia-h200") -> str | None:
    rule: Any = Candidates(KINDS).of(module)
    return slower.slower_on(targets.get(name), module, rule.kind, rule.served, dtype)


def pair(features: int, width: int, act: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, width, device="meta"), act or nn.GELU("tanh"))


SLOWER = {
    ("nvidia-h200", "linear"): (slower.Measured("gelu_tanh", 4096, 4096, 0.95),),
    ("nvidia-h200", "linear_training"): (
        slower.Measured("gelu_tanh", 14336, 4096, 1.03), slower.Measured("gelu_tanh", 4096, 4096, 1.06),
    ),
    ("nvidia-h100", "linear_training"): (slower.Measured("gelu_tanh", 4096, 4096, 0.95),),
}  # fmt: skip


def test_what_was_measured_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slower, "MEASURED", SLOWER)
    words = "measured slower on nvidia-h200: 1.06 times as long, with 4096 features to 4096 (benchmarks linear_training)"
    assert judged(pair(4096, 4096)) == words
    assert "1.03 times as long, with 4096 features to 14336" in str(judged(pair(4096, 11008)))
    assert judged(pair(4096, 4096).eval()) is None
    assert judged(pair(4096, 4096), name="nvidia-h100") is None


class Spelled(nn.Module):
    """GPT-2's activation: eight operations of PyTorch's, each as long as the one that was measured."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x * (1.0 + torch.tanh(0.7978845608 * (x + 0.044715 * torch.pow(x, 3.0))))


class MLP(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(4096, 4096, device="meta"), act, nn.Linear(4096, 4096, device="meta")

    def forward(self, x: torch.Tensor) -> Any:
        return self.down(self.act(self.up(x)))


def test_an_activation_of_many_operations_is_not_the_one_that_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slower, "MEASURED", SLOWER)
    assert "measured slower" in str(judged(MLP(nn.GELU("tanh"))))
    assert judged(MLP(Spelled())) is None
    monkeypatch.setattr(slower, "estimate", lambda *_: _Estimate(1e9))
    moved = 8 * 2 * 8192 * 4096 * 2 / (0.6 * 4.8e12) * 1e6
    both = moved + 2 * 8192 * 4096 * 4096 / (0.7 * 989.4e12) * 1e6
    assert f"operations {both:.3g}" in str(judged(MLP(Spelled())))


def test_like_activations_come_before_like_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    known = (slower.Measured("gelu", 3072, 768, 1.2), slower.Measured("gelu_tanh", 4096, 4096, 0.9))
    monkeypatch.setattr(slower, "MEASURED", {("nvidia-h200", "linear"): known})
    estimated: list[Any] = []
    monkeypatch.setattr(slower, "estimate", lambda *given: estimated.append(given) or _Estimate(1e9))
    assert judged(pair(768, 3072).eval()) is None
    assert "1.2 times as long, with 768 features to 3072" in str(judged(pair(4096, 4096, nn.GELU()).eval()))
    assert "1.2 times" in str(judged(nn.TransformerEncoderLayer(8, 2, 16, activation="gelu").eval()))
    assert judged(nn.Sequential(*pair(8, 16), *pair(16, 8, nn.GELU())).eval()) is not None
    assert not estimated
    assert "predicted slower" in str(judged(pair(4096, 4096).eval(), "f32"))
    assert "predicted slower" in str(judged(pair(4096, 4096)))


def test_predictions_know_the_activation_and_the_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(slower, "estimate", lambda call, _: calls.append(call) or _Estimate(0.0))
    layer = nn.Sequential(nn.Linear(8, 16, bias=False, device="meta"), nn.SiLU())
    assert judged(layer, name="nvidia-a100") is None
    assert judged(GatedMLP(8, 16), name="nvidia-a100") is None
    (_, _, bias, activation, _), gated = (call.arguments for call in calls)
    assert (bias, activation, gated[2]) == (None, "silu", "silu")


RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize("suite", ["linear", "linear_training"])
@pytest.mark.parametrize("target", ["nvidia-h200", "nvidia-h100"])
def test_the_table_is_what_the_results_say(target: str, suite: str) -> None:
    rows = json.loads((RESULTS / target / f"{suite}.json").read_text())["rows"]
    expected = []
    for row in rows:
        size = dict(re.findall(r"(\w+)=(\w+)", row["problem"].partition("]")[0]))
        times = row["microseconds"]["kpt"] / row["microseconds"]["eager"]
        expected.append(slower.Measured(size["activation"], int(size["N"]), int(size["K"]), round(times, 3)))
    assert slower.MEASURED[target, suite] == tuple(expected)


@pytest.mark.parametrize(
    "module",
    [
        nn.LayerNorm(4096, device="meta"), nn.RMSNorm(1024, device="meta"), GatedMLP(64, 8192).eval(), pair(4096, 14336).eval(),
        nn.LayerNorm(4096, elementwise_affine=True, bias=False, device="meta"),
    ],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_what_is_faster_is_replaced(module: nn.Module) -> None:
    """By the times that were measured on an H200, where some were."""
    assert judged(module) is None


def test_what_is_predicted_slower_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's norm of 8192 rows of 4096 is taken to move 134 MB at 2.88 TB/s: 46.6 µs, of which the model is wrong
    by half at most."""
    norm = nn.LayerNorm(4096, device="meta")
    monkeypatch.setattr(slower, "estimate", lambda *_: _Estimate(69.8))
    assert judged(norm) is None
    monkeypatch.setattr(slower, "estimate", lambda *_: _Estimate(70.0))
    assert judged(norm) == "predicted slower on nvidia-h200: 70 µs for 8192 rows, PyTorch's operations 46.6"


class _Estimate:
    def __init__(self, microseconds: float) -> None:
        self.microseconds = microseconds


def test_gates_move_five_times_their_size_and_products_take_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slower, "estimate", lambda *_: _Estimate(1e9))
    moved = 8192 * 8192 * 2 / (0.6 * 4.8e12) * 1e6
    assert f"operations {5 * moved:.3g}" in str(judged(GatedMLP(64, 8192)))
    both = 2 * moved + 2 * 8192 * 8192 * 4096 / (0.7 * 989.4e12) * 1e6
    monkeypatch.setattr(slower, "MEASURED", {})
    assert f"operations {both:.3g}" in str(judged(pair(4096, 8192).eval()))


def test_what_no_kernel_serves_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slower, "estimate", lambda *_: None)
    assert judged(nn.LayerNorm(64, device="meta")) == "no kernel of layer_norm runs on nvidia-h200"


def test_what_stays_is_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kpt.ops.replace.levels.why_slower", lambda module, kind, served: slower_if_norm(kind))
    subject = model()
    report = kpt.optimize(subject)
    assert [(s.path, s.reason) for s in report.skipped] == [("2", "slower so"), ("5", "slower so")]
    assert type(subject[2]) is nn.LayerNorm
    assert {c.kind for c in report.changes} == {"linear_act", "gated_act", "bias_gradient", "unaligned_linear"}


def slower_if_norm(kind: str) -> str | None:
    return "slower so" if "norm" in kind else None


def test_a_cpu_is_not_asked() -> None:
    assert slower.why_slower(nn.Sequential(nn.Linear(8, 16), nn.GELU()), "linear_act", None) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("no model",), "model is str; accepted: a torch.nn.Module"),
        ((nn.Linear(2, 2), "fast"), "level is 'fast'; accepted: conservative, balanced, aggressive"),
    ],
)
def test_bad_input(given: tuple[Any, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        kpt.optimize(*given)


def test_optimizing_imports_no_compiler() -> None:
    """Counting an activation's operations did, which takes seconds."""
    text = "import sys, torch, kpt\nfrom torch import nn\nfrom tests.ops.test_optimize import MLP\n"
    text += "m = MLP(nn.GELU('tanh')).to_empty(device='cpu')\nkpt.optimize(m)\n"
    text += "print(type(m).__name__, 'torch._dynamo' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", text], cwd=RESULTS.parents[1], capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["KptMLP", "False"], ran.stdout + ran.stderr
