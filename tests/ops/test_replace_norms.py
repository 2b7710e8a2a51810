"""Norms of Transformers' models: which are replaced, and that the models compute what they did, and come back as they were."""

import copy
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("transformers")

import kpt
from tests.architectures import build
from tests.ops.calls import served
from tests.tolerances import assert_close

EXPECTED = {
    "llama": {"LlamaRMSNorm": 5},
    "mistral": {"MistralRMSNorm": 5},
    "qwen3": {"Qwen3RMSNorm": 9},  # queries and keys of each head too
    "gemma": {"GemmaRMSNorm": 5},
    "gemma2": {"Gemma2RMSNorm": 9},
    "gemma3_text": {"Gemma3RMSNorm": 13},
    "gemma4_text": {"Gemma4RMSNorm": 30},  # some without a weight
    "t5": {"T5LayerNorm": 12},
    "olmo2": {"Olmo2RMSNorm": 9},
    "glm4": {"Glm4RMSNorm": 9},
    "phi3": {"Phi3RMSNorm": 5},
    "llama4_text": {"Llama4TextL2Norm": 2, "Llama4TextRMSNorm": 5},
    "cohere": {"CohereLayerNorm": 3},
}
"""What is replaced in tiny models of two layers or more, by class; all of them norms that are not PyTorch's."""

IDS = torch.randint(3, 100, (2, 7), generator=torch.Generator().manual_seed(20))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(model: torch.nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and gradients of the parameters that have one."""
    decoder = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    logits = model(input_ids=IDS, use_cache=False, **decoder).logits
    model.zero_grad()
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", EXPECTED)
def test_models_with_norms_of_their_own(name: str) -> None:
    model = build(name)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "norm" in path:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(20)))
    state, expected, slopes = copy.deepcopy(model.state_dict()), *run(model)
    kinds = [type(module) for module in model.modules()]
    report = kpt.replace_modules(model, only=["rms_norm", "layer_norm"])
    assert Counter(change.before for change in report.changes) == EXPECTED[name]
    assert report.skipped == ()
    op = report.changes[0].kind
    before = sum(served(op).values())
    logits, gradients = run(model)
    assert sum(served(op).values()) - before >= len(report.changes)
    assert_close(logits, expected, "f32", 2048)
    assert gradients.keys() == slopes.keys()
    for path, gradient in gradients.items():
        assert_close(gradient, slopes[path], "f32", 4096)
    assert model.state_dict().keys() == state.keys()
    model.load_state_dict(state)
    assert len(kpt.restore_modules(model).changes) == len(report.changes)
    assert [type(module) for module in model.modules()] == kinds
    assert torch.equal(run(model)[0], expected)
