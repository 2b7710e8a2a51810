"""generate() of replaced models: the tokens of PyTorch's attention, from kernels, whatever cache and search are asked for."""

from typing import Any

import pytest
import torch

import kpt
from kpt.ops import counters, prefer
from tests.ops.calls import served
from tests.ops.models import SMALL, transformers

PROMPT = torch.randint(3, 100, (2, 7), generator=torch.Generator().manual_seed(7))
LEFT = torch.tensor([[1] * 7, [0] * 3 + [1] * 4])
RIGHT = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
COMPILED = {
    "cache_implementation": "static",
    "compile_config": transformers.CompileConfig(backend="eager", fullgraph=True, mode=None),
}
NEW = 6
VARIANTS: dict[str, dict[str, Any]] = {
    "no padding": {},
    "left": {"attention_mask": LEFT},
    "right": {"attention_mask": RIGHT},
    "static": {"cache_implementation": "static", "attention_mask": LEFT, "disable_compile": True},
    "static, compiled": {**COMPILED, "attention_mask": LEFT},
    "beams": {"num_beams": 3, "attention_mask": LEFT},
    "sampled": {"do_sample": True, "attention_mask": LEFT},
    "prompt look-up": {"prompt_lookup_num_tokens": 3},
    "no cache": {"use_cache": False, "attention_mask": LEFT},
    "chunked prompt": {"prefill_chunk_size": 3, "attention_mask": LEFT},
}


MODELS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": 4},
    "Gemma2": {"sliding_window": 4, "head_dim": 8, "attn_logit_softcapping": 2.0, "tie_word_embeddings": False},
    "GptOss": {"sliding_window": 4, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
}
CASES = [(name, v) for name in ("Llama", "Mistral") for v in VARIANTS if name == "Llama" or v != "static, compiled"]
CASES += [("Gemma2", "left"), ("Gemma2", "static, compiled"), ("GptOss", "right"), ("GptOss", "static")]


def build(name: str) -> Any:
    """Of weights that let attention decide about tokens."""
    torch.manual_seed(20)
    small = {**SMALL, "hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 2, **MODELS[name]}
    config = getattr(transformers, f"{name}Config")(**small)
    own = {"attn_implementation": "eager"} if name in ("Gemma2", "GptOss") else {}
    subject = getattr(transformers, f"{name}ForCausalLM")._from_config(config, **own).eval()
    with torch.no_grad():
        for parameter in subject.parameters():
            parameter.normal_(0.0, 0.5)
    return subject


def generated(subject: Any, variant: str) -> tuple[torch.Tensor, int]:
    """The tokens, and how many graphs were compiled."""
    options = {k: v.to(subject.device) if isinstance(v, torch.Tensor) else v for k, v in VARIANTS[variant].items()}
    if "compile_config" in options:
        options["compile_config"]._compile_all_devices = True
    ids = (PROMPT[:1].repeat(1, 2) if variant == "prompt look-up" else PROMPT).to(subject.device)
    torch.manual_seed(3)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    made = subject.generate(ids, max_new_tokens=NEW, **{"do_sample": False, "pad_token_id": 0, **options})
    return made, torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_the_tokens_are_those_of_pytorchs_attention(device: str, name: str, variant: str) -> None:
    subject, kernels = build(name).to(device), "numpy" if device == "cpu" else "triton"
    expected = generated(subject, variant)
    kpt.replace_modules(subject, only=["attention"])
    before, outside = served("flash_attention"), counters()["flash_attention"]["fallbacks"]
    with prefer(kernels):
        found = generated(subject, variant)
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1], "as many graphs: none is of one token"
    after = served("flash_attention")
    assert after.pop(kernels) >= before.pop(kernels, 0) + 2 * (NEW - 3)
    assert (after, counters()["flash_attention"]["fallbacks"]) == (before, outside)
