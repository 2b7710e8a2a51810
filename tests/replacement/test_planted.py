"""Parts that only look like what ops compute, planted in a whole model, are left alone, or served as what they are; and what
wrong replacements break, planted in them, is seen."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

import kpt
from kpt.ops.replace.modules import KptLayerNorm
from tests.replacement.judge import judge
from tests.replacement.models import Subject, subject

Forward = Callable[[Any, torch.Tensor], torch.Tensor]


def eps_outside(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    root = hidden_states.pow(2).mean(-1, keepdim=True).sqrt()
    return self.weight * hidden_states / (root + self.variance_epsilon)  # type: ignore[no-any-return]


def weight_before(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    x = self.weight * hidden_states
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)  # type: ignore[no-any-return]


def summed(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.down_proj(self.act_fn(self.gate_proj(x)) + self.up_proj(x))  # type: ignore[no-any-return]


def swapped(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.down_proj(self.gate_proj(x) * self.act_fn(self.up_proj(x)))  # type: ignore[no-any-return]


PLANTED: dict[str, tuple[str, Forward, str, bool]] = {
    "eps outside of the root": ("LlamaRMSNorm", eps_outside, "rms_norm", False),
    "the weight before the norm": ("LlamaRMSNorm", weight_before, "rms_norm", False),
    "gate and up are added": ("LlamaMLP", summed, "gated_act", False),
    "gate and up are swapped": ("LlamaMLP", swapped, "gated_act", True),
}
"""The class that is made another, its forward, and whether that kind may replace it all the same."""


def of_another_class(found: Subject, original: str, **changed: Any) -> int:
    """Makes the modules of a class those of another one, made of it, with what is changed; gives how many there are."""
    planted = [module for module in found.model.modules() if type(module).__name__ == original]
    other = type(original, (type(planted[0]),), changed)
    for module in planted:
        module.__class__ = other
    return len(planted)


@pytest.mark.parametrize("name", PLANTED)
def test_other_parts_of_a_model(name: str) -> None:
    original, forward, kind, may = PLANTED[name]
    found = subject("llama")
    planted = of_another_class(found, original, forward=forward)
    row = judge(found)
    assert row["replaced" if may else "left alone"].get(kind) == planted
    assert kind not in row["left alone" if may else "replaced"]


def kept(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    pooled = self.dense(hidden_states[:, 0])
    return self.activation(pooled) + pooled  # type: ignore[no-any-return]


def dropped(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    pooled = self.dense(hidden_states[:, 0])
    pooled = nn.functional.dropout(pooled, 0.1, self.training)
    return self.activation(pooled)  # type: ignore[no-any-return]


def activated_before(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    return self.dense(self.activation(hidden_states[:, 0]))  # type: ignore[no-any-return]


def another(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    return nn.functional.softsign(self.dense(hidden_states[:, 0]))


@pytest.mark.parametrize(("forward", "left"), [(kept, 0), (dropped, 0), (activated_before, 0), (another, 1)])
def test_other_calls_in_a_forward(forward: Forward, left: int) -> None:
    found = subject("vit")
    assert of_another_class(found, "ViTPooler", forward=forward) == 1
    row = judge(found)
    assert "inner_linear_act" not in row["replaced"]
    assert row["left alone"].get("inner_linear_act", 0) == left


def rotated(turned: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    """Llama's function with another one of what stands beside the sines."""

    def apply(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1) -> Any:
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return q * cos + turned(q) * sin, k * cos + turned(k) * sin

    return apply


def backwards(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((second, -first), -1)


def neighbours(x: torch.Tensor) -> torch.Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


def ends(x: torch.Tensor) -> torch.Tensor:
    first, second = x.flip(-1).chunk(2, -1)
    return torch.cat((-first, second), -1)


@pytest.mark.parametrize(("turned", "may"), [(backwards, False), (neighbours, True), (ends, False)])
def test_another_pairing(turned: Any, may: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of neighbours, for which the op has a way, of both ends, and turned the other way."""
    monkeypatch.setattr("transformers.models.llama.modeling_llama.apply_rotary_pos_emb", rotated(turned))
    row = judge(subject("llama"))
    assert row["replaced" if may else "left alone"].get("rotary") == 2
    assert "rotary" not in row["left alone" if may else "replaced"]


def attend(module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, scaling: float, **_: Any) -> Any:
    """Values and keys are swapped, and the mask is forgotten."""
    scores = (q @ v.repeat_interleave(module.num_key_value_groups, 1).mT * scaling).softmax(-1)
    return (scores @ k.repeat_interleave(module.num_key_value_groups, 1)).transpose(1, 2).contiguous(), scores


def test_attention_functions_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.models.llama.modeling_llama.eager_attention_forward", attend)
    found = subject("llama")
    of_another_class(found, "LlamaAttention")
    found.model.set_attn_implementation("eager")
    assert "attention" not in judge(found)["replaced"]


# ------------------------------------------------------------------ what the judge sees
def small() -> Subject:
    torch.manual_seed(20)
    x = torch.randn(3, 8)
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)).eval()
    return Subject(model, lambda model: [model(x)], lambda model: model(x).argmax(-1))


class OffGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> torch.Tensor:
        return dy * 1.001


def off_output(self: Any, x: torch.Tensor) -> torch.Tensor:
    return nn.LayerNorm.forward(self, x) * 1.001


def off_gradient(self: Any, x: torch.Tensor) -> torch.Tensor:
    return OffGradient.apply(nn.LayerNorm.forward(self, x))  # type: ignore[no-any-return]


def off_state(self: Any, x: torch.Tensor) -> torch.Tensor:
    y = nn.LayerNorm.forward(self, x)
    self.weight.data += 1e-6
    return y


def off_compiled(self: Any, x: torch.Tensor) -> torch.Tensor:
    return nn.LayerNorm.forward(self, x) * (1.001 if torch.compiler.is_compiling() else 1)


@pytest.mark.parametrize("forward", [off_output, off_gradient, off_state, off_compiled])
def test_a_wrong_replacement_is_seen(forward: Forward, monkeypatch: pytest.MonkeyPatch) -> None:
    assert judge(small(), compiled=True)["replaced"] ["layer_norm"] == 1
    monkeypatch.setattr(KptLayerNorm, "forward", forward)
    with pytest.raises(AssertionError):
        judge(small(), compiled=True)


def test_what_is_not_restored_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kpt, "restore_modules", lambda model: None)
    with pytest.raises(AssertionError):
        judge(small())
