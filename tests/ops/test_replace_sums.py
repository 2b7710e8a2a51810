"""Layers that take the norm of a sum: both are one op, by the text of their forward, and all else stays as it is written."""

import ast
import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kpt
from kpt.ops.replace.rewriting import sums, text
from tests.ops import models
from tests.ops.calls import served
from tests.tolerances import assert_close

KINDS = ("layer_norm", "rms_norm", "add_norm")
X = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(20))


class Layer(nn.Module):
    """As a layer of Llama, which norms before."""

    def __init__(self, norm: type[nn.Module] = nn.RMSNorm) -> None:
        super().__init__()
        torch.manual_seed(20)
        self.norm, self.second = norm(16), norm(16)
        self.mix, self.mlp, self.drop = nn.Linear(16, 16), nn.Linear(16, 16), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None, **keywords: Any) -> Any:
        residual = x
        x = self.mix(self.norm(x), **keywords)
        x = residual + self.drop(x)
        if scale is not None:
            x = x * scale
        residual = x
        x = self.second(x)
        return residual + self.mlp(x)


class Nested(Layer):
    """As nanoGPT's and timm's."""

    def forward(self, x: torch.Tensor, factor: float = 2.0) -> Any:
        x = x + factor * self.drop(self.mix(self.norm(x)))
        return x + self.mlp(self.second(x))


class After(Layer):
    """As BERT's, which norms after."""

    def forward(self, x: torch.Tensor) -> Any:
        x = self.norm(self.drop(self.mix(x)) + x)
        return self.second(x + self.mlp(x))


LAYERS = {"before": (Layer, 1), "nested": (Nested, 1), "after": (After, 2)}


def joined() -> int:
    return sum(sum(served(f"add_{norm}").values()) for norm in ("rms_norm", "layer_norm"))


def replaced(layer: Any) -> Any:
    again = copy.deepcopy(layer)
    report = kpt.replace_modules(again, only=KINDS)
    assert "add_norm" in [c.kind for c in report.changes], report
    return again


def gradients(layer: Any, *inputs: torch.Tensor) -> list[torch.Tensor]:
    x = X.clone().requires_grad_()
    torch.manual_seed(7)
    out = layer(x, *inputs)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("training", [False, True])
def test_layers_are_rewritten(name: str, norm: type[nn.Module], training: bool) -> None:
    make, expected_sums = LAYERS[name]
    own = make(norm).train(training)
    layer, before = replaced(own), joined()
    found, expected = gradients(layer), gradients(own)
    assert joined() == before + expected_sums
    for got, wanted in zip(found, expected, strict=True):
        assert_close(got, wanted, "f32", 16)


def test_a_branch_between_keeps_its_norm() -> None:
    own, scale = Layer().eval(), torch.full((16,), 3.0)
    layer, before = replaced(own), joined()
    assert_close(layer(X, scale), own(X, scale), "f32", 16)
    assert joined() == before
    assert not torch.allclose(layer(X, scale), layer(X))


def test_classes_copies_and_pickles_hold() -> None:
    own = Layer().eval()
    layer = replaced(own)
    assert isinstance(layer, Layer)
    assert inspect.signature(type(layer).forward) == inspect.signature(Layer.forward)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        before = joined()
        assert type(again) is type(layer)
        assert torch.equal(again(X), layer(X))
        assert joined() == before + 2
    kpt.restore_modules(layer)
    assert type(layer) is Layer
    assert torch.equal(layer(X), own(X))


def test_hooks_see_what_they_saw() -> None:
    layer = replaced(Layer().eval())
    seen: list[torch.Tensor] = []
    handle = layer.second.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    before, expected = joined(), layer(X)
    assert joined() == before
    assert len(seen) == 1
    handle.remove()
    assert_close(layer(X), expected, "f32", 16)
    layer.second = nn.Identity()
    before = joined()
    layer(X)
    assert joined() == before


def test_parts_that_are_not_alike_are_added_as_written() -> None:
    own = Nested().eval()
    layer, before = replaced(own), joined()
    with torch.autocast("cpu", torch.bfloat16):
        x = X.bfloat16()
        assert layer(x).dtype is own(x).dtype
        assert_close(layer(x), own(x), "bf16", 16)
    own.mix = layer.mix = nn.Linear(16, 1)
    assert_close(layer(X), own(X), "f32", 16)
    assert joined() == before


def test_a_norm_that_kpt_does_not_serve_stays_with_its_sum() -> None:
    report = kpt.replace_modules(Layer(), only=["add_norm"])
    assert [(s.kind, s.reason) for s in report.skipped] == [("add_norm", "it adds before second, of which kpt serves none")]
    assert not [c for c in kpt.replace_modules(Layer()).changes if c.kind == "add_norm"]  # unless it is asked for


class Elsewhere(Layer):
    def forward(self, x: torch.Tensor) -> Any:
        y = x + self.mix(x)
        x = F.relu(y)
        return x + self.second(y)


class InPlace(Layer):
    def forward(self, x: torch.Tensor) -> Any:
        y = x + self.mix(x)
        y.mul_(2)
        return self.second(y)


class Sometimes(Layer):
    def forward(self, x: torch.Tensor) -> Any:
        y = x + self.mix(x)
        return self.second(y) if self.training else y


class Asks(Layer):
    def forward(self, x: torch.Tensor, more: torch.Tensor | None = None) -> Any:
        more = x + self.mix(x)
        if more is not None:
            more = self.mlp(more)
        return self.second(more)


class Renamed(Layer):
    def forward(self, x: torch.Tensor) -> Any:
        y = x + self.mix(x)
        total = y
        y = x
        return total + self.second(y)


class AsksWhatItNames(Layer):
    """Asks for a name that it gives between: before the sum that means something else."""

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None, other: torch.Tensor | None = None) -> Any:
        x = x + self.mix(x)
        scale = other
        if scale is not None:
            x = x * scale
        return self.norm(x)


class AsksALaterName(Layer):
    """And one that means nothing yet."""

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> Any:
        x = x + self.mix(x)
        scale = other
        if scale is not None:
            x = x * scale
        return self.norm(x)


class HandsOn(Layer):
    """Gives the sum to something that modifies it, before the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> Any:
        x = x + self.mix(x)
        return self.act(x) + self.norm(x)


class HandsOnInside(HandsOn):
    """And in a call that the norm is given to as well."""

    def forward(self, x: torch.Tensor) -> Any:
        x = x + self.mix(x)
        y = x
        return torch.add(self.act(y), self.norm(x))


@pytest.mark.parametrize(
    "kind", [Elsewhere, InPlace, Sometimes, Asks, Renamed, AsksWhatItNames, AsksALaterName, HandsOn, HandsOnInside]
)
def test_other_texts_stay(kind: type[Layer]) -> None:
    report = kpt.replace_modules(kind(), only=KINDS)
    assert {c.kind for c in report.changes} == {"rms_norm"}
    assert not report.skipped


def test_a_text_that_is_not_what_runs_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert text.text_of(Layer.forward) is not None
    monkeypatch.setattr(inspect, "getsource", lambda _: "def forward(self, x):\n    x = x + x\n    return self.second(x)\n")
    assert text.text_of(Layer.forward) is None


def swapped(call: ast.Call, parts: ast.BinOp) -> ast.Call:
    return ast.Call(ast.Name(sums.JOINED, ast.Load()), [call.func, parts.left, parts.left], [])


def other_norm(call: ast.Call, parts: ast.BinOp) -> ast.Call:
    other = ast.Attribute(ast.Name("self", ast.Load()), "mlp", ast.Load())
    return ast.Call(ast.Name(sums.JOINED, ast.Load()), [other, parts.left, parts.right], [])


@pytest.mark.parametrize("plant", [swapped, other_norm])
@pytest.mark.parametrize("name", LAYERS)
def test_a_text_rewritten_wrongly_is_refused(name: str, plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "_joined", plant)
    report = kpt.replace_modules(LAYERS[name][0](), only=KINDS)
    assert not [c for c in report.changes if c.kind == "add_norm"]
    (reason,) = [s.reason for s in report.skipped]
    assert "could not be shown to stay the same" in reason


class Thrice(Layer):
    """Each sum but the last is where the one before ends, and the call that has its norm hands keywords on."""

    def forward(self, x: torch.Tensor, **keywords: Any) -> Any:
        x = x + self.mlp(x)
        x = x + self.mix(self.norm(x), **keywords)
        x = x + self.mlp(self.second(x))
        return x * 2


def test_sums_that_follow_one_another() -> None:
    own = Thrice().eval()
    layer, before = replaced(own), joined()
    assert_close(layer(X), own(X), "f32", 16)
    assert joined() == before + 2


# ------------------------------------------------------------------ Transformers
def test_llama_generates_and_trains_as_before() -> None:
    import transformers

    torch.manual_seed(20)
    config = transformers.LlamaConfig(**models.SMALL, num_key_value_heads=2)
    own = transformers.LlamaForCausalLM(config).eval()
    model, options = replaced(own), {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    before = joined()
    assert torch.equal(model.generate(models.IDS, **options), own.generate(models.IDS, **options))
    assert joined() == before + 4 * 2
    losses = []
    for each in (own, model):
        each.train().gradient_checkpointing_enable()
        loss = each(models.IDS, labels=models.IDS, use_cache=False).loss
        loss.backward()
        losses.append(loss.detach())
    assert_close(losses[1], losses[0], "f32", 64)
    for (name, p), q in zip(model.named_parameters(), own.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None, name
        assert_close(p.grad, q.grad, "f32", 64)
    assert joined() == before + 4 * 2 + 2 * 2  # once more in the backward


def test_compiled() -> None:
    own = models.llama()
    model = replaced(own)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    before = joined()
    with torch.no_grad():
        got = compiled(models.IDS, use_cache=False).last_hidden_state
        assert_close(got, own(models.IDS, use_cache=False).last_hidden_state, "f32", 64)
    assert joined() == before + 2


@pytest.mark.parametrize("name", ["Bert", "GPT2", "Gemma2", "ViT"])
def test_other_models(name: str) -> None:
    import transformers

    torch.manual_seed(20)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{name}Config")(**(sizes if name == "GPT2" else models.SMALL))
    own = getattr(transformers, f"{name}Model")(config).eval()
    model, before = replaced(own), joined()
    given = {"pixel_values": torch.randn(1, 3, 224, 224)} if name == "ViT" else {"input_ids": models.IDS}
    with torch.no_grad():
        assert_close(model(**given).last_hidden_state, own(**given).last_hidden_state, "f32", 64)
    assert joined() == before + {"Bert": 4}.get(name, 2)
