"""What a report says of a model that ran: who served it, why not kernels, and shares of a run."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import kpt
from kpt.ops.replace.rates import microseconds
from kpt.ops.replace.served import Served, Shares, Watch
from kpt_dsl import targets
from kpt_dsl.errors import TargetError
from tests.ops.pretended_gpu import pretended_gpu

X = torch.randn(6, 16, generator=torch.Generator().manual_seed(20))


def model() -> nn.Sequential:
    torch.manual_seed(20)
    return nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16), nn.LayerNorm(16))


def test_nothing_is_claimed_before_a_run() -> None:
    kpt.ops.layer_norm(X, (16,))
    report = kpt.replace_modules(model())
    assert report.served().by == {
        "layer_norm": {}, "layer_norm_backward": {}, "linear_act": {}, "linear_act_backward": {}, "linear_act_saving": {},
    }  # fmt: skip
    assert str(report.served()).count("nothing yet") == 5


def test_what_served_is_counted_from_replacing_on() -> None:
    subject = model()
    report = kpt.replace_modules(subject)
    subject(X)
    with kpt.ops.prefer("numpy"):
        subject(X).sum().backward()
    by = report.served().by
    assert by["layer_norm"] == {"reference": 2, "numpy": 2}
    assert by["layer_norm_backward"] == {"numpy": 2}
    assert by["linear_act_saving"] == {"numpy": 1}
    assert "numpy 2, PyTorch 2" in str(report.served())
    assert kpt.replace_modules(model()).served().by["layer_norm"] == {}


def test_why_kernels_did_not_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = model().double()
    with pretended_gpu(monkeypatch):
        report = kpt.replace_modules(subject, only=["layer_norm"])
        subject(X.double())
        (reason,) = report.served().reasons["layer_norm"]
        assert "kernels do not compute on torch.float64" in reason
        assert f"{reason} (2)" in str(report.served())


def test_the_table_says_who_serves_where_the_model_is() -> None:
    words = "on cpu PyTorch serves linear_act, layer_norm, unless kernels are preferred"
    assert words in str(kpt.replace_modules(model()))
    assert "PyTorch serves" not in str(kpt.replace_modules(nn.Linear(2, 2)))


def test_attention_of_pytorch_is_counted_by_the_op_inside() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    report = kpt.optimize(layer)
    assert "flash_attention" in report.ops
    with torch.no_grad():
        layer(X[None])
    assert sum(report.served().by["flash_attention"].values()) == 1


def watched(subject: nn.Module, run: Callable[[], Any]) -> Served:
    report = kpt.replace_modules(subject)
    with report.watching():
        run()
    return report.served("nvidia-h200")


def test_shares_of_operations_and_of_time() -> None:
    """Per run: a norm, a linear layer and its activation, a linear layer, a norm."""
    subject = model()

    def run() -> None:
        with torch.no_grad(), kpt.ops.prefer("numpy"):
            subject(X)

    shares = watched(subject, run).shares
    assert isinstance(shares, Shares)
    assert shares.kernels == {"layer_norm": 2, "linear_act": 1}
    assert shares.pytorchs == 1, "the second linear layer; the transposed weight is a view"
    moved = 4 * (6 * 32 + 32 * 16 + 16 + 6 * 16)
    chip = targets.get("nvidia-h200")
    expected = microseconds(chip, moved, 2 * 6 * 32 * 16, torch.float32)
    assert shares.pytorchs_microseconds == pytest.approx(expected)
    assert shares.kernels_microseconds is not None
    assert min(shares.kernels_microseconds.values()) > 0
    text = str(shares)
    assert text.startswith("of 4 operations kernels were 3; of about ")
    assert "on nvidia-h200, roughly estimated:\n  layer_norm: " in text


def test_what_pytorch_serves_is_no_kernels() -> None:
    subject = model()
    shares = watched(subject, lambda: subject(X)).shares
    assert shares is not None
    assert shares.kernels == {}
    assert shares.pytorchs >= 4


def test_time_of_pytorchs_operations() -> None:
    chip = targets.get("nvidia-h200")
    assert microseconds(chip, 4_800_000, 0, torch.float32) == pytest.approx(1 / 0.6)
    assert microseconds(chip, 0, 989_400_000, torch.bfloat16) == pytest.approx(1 / 0.7)
    assert microseconds(chip, 0, round(chip.vector_flops_per_s), torch.float32) == pytest.approx(1e6 / 0.7)
    with Watch() as watch:
        torch.mm(torch.ones(4, 8, dtype=torch.bfloat16), torch.ones(8, 2, dtype=torch.bfloat16))
    assert watch.pytorchs[-1] == (2 * (32 + 16 + 8), 2 * 4 * 8 * 2, torch.bfloat16)


def test_unknown_targets() -> None:
    report = kpt.replace_modules(model())
    with report.watching():
        pass
    with pytest.raises(TargetError, match="unknown target 'h200'"):
        report.served("h200")
