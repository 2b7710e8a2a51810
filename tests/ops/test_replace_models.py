"""Norms and MLPs of Transformers' models: which are replaced; the models compute what they did, and come back as they were."""

import copy
from collections import Counter

import pytest
import torch

pytest.importorskip("transformers")

import kpt
from tests.architectures import build
from tests.ops.calls import served
from tests.tolerances import assert_close

EXPECTED = {
    "llama": {"LlamaRMSNorm": 5, "LlamaMLP": 2},
    "mistral": {"MistralRMSNorm": 5, "MistralMLP": 2},
    "qwen3": {"Qwen3RMSNorm": 9, "Qwen3MLP": 2},  # queries and keys of each head too
    "gemma": {"GemmaRMSNorm": 5, "GemmaMLP": 2},
    "gemma2": {"Gemma2RMSNorm": 9, "Gemma2MLP": 2},
    "gemma3_text": {"Gemma3RMSNorm": 13, "Gemma3MLP": 2},
    "gemma4_text": {"Gemma4RMSNorm": 30, "Gemma4TextMLP": 4},  # some norms without a weight
    "t5": {"T5LayerNorm": 12},
    "olmo2": {"Olmo2RMSNorm": 9, "Olmo2MLP": 2},
    "glm4": {"Glm4RMSNorm": 9, "Glm4MLP": 2},  # gate and up are one product
    "phi3": {"Phi3RMSNorm": 5, "Phi3MLP": 2},
    "llama4_text": {"Llama4TextL2Norm": 2, "Llama4TextRMSNorm": 5, "Llama4TextMLP": 2},
    "deepseek_v3": {"DeepseekV3RMSNorm": 9, "DeepseekV3MLP": 2},
    "cohere": {"CohereLayerNorm": 3, "CohereMLP": 2},
}
"""What is replaced in tiny models of two layers or more, by class; none of them is PyTorch's."""

KINDS = ("rms_norm", "layer_norm", "gated_act")

IDS = torch.randint(3, 100, (2, 7), generator=torch.Generator().manual_seed(20))


def calls() -> int:
    """Of the ops, so far."""
    return sum(sum(served(op).values()) for op in KINDS)


def run(model: torch.nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and gradients of the parameters that have one."""
    decoder = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    logits = model(input_ids=IDS, use_cache=False, **decoder).logits
    model.zero_grad()
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", EXPECTED)
def test_models_with_modules_of_their_own(name: str) -> None:
    model = build(name)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "norm" in path:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(20)))
    state, expected, slopes = copy.deepcopy(model.state_dict()), *run(model)
    kinds = [type(module) for module in model.modules()]
    report = kpt.replace_modules(model, only=KINDS)
    assert Counter(change.before for change in report.changes) == EXPECTED[name]
    assert report.skipped == ()
    before = calls()
    logits, gradients = run(model)
    assert calls() - before >= len(report.changes)
    assert_close(logits, expected, "f32", 2048)
    assert gradients.keys() == slopes.keys()
    for path, gradient in gradients.items():
        assert_close(gradient, slopes[path], "f32", 4096)
    assert model.state_dict().keys() == state.keys()
    model.load_state_dict(state)
    assert len(kpt.restore_modules(model).changes) == len(report.changes)
    assert [type(module) for module in model.modules()] == kinds
    assert torch.equal(run(model)[0], expected)
