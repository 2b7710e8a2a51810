"""The models that ``python -m benchmarks models`` measures: how each is built, with drawn weights, and what it is given."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.nano_gpt import NanoGPT


class Subject(NamedTuple):
    """``build``: raises ImportError where a package is missing. ``given``: how its input is called; that is whole numbers below
    ``classes``, or normal numbers where that is None, of ``shape``. ``labels``: how what it shall foretell is called, which
    gives a loss; None where there is none. ``more``: what else it is called with."""

    build: Callable[[], nn.Module]
    given: str
    shape: tuple[int, ...]
    classes: int | None = None
    labels: str | None = None
    more: Mapping[str, Any] = {}

    def inputs(self, device: str) -> dict[str, torch.Tensor]:
        """Drawn ones."""
        if self.classes is None:
            return {self.given: torch.randn(self.shape, device=device, dtype=torch.bfloat16)}
        return {self.given: torch.randint(self.classes, self.shape, device=device)}


def _transformers(name: str, sizes: Mapping[str, Any]) -> nn.Module:
    import transformers

    kind = getattr(transformers, name)
    built: nn.Module = kind(kind.config_class(**sizes))
    return built


def causal(name: str, sizes: Mapping[str, Any], batch: int, length: int) -> Subject:
    """A model of Transformers that foretells the next token."""
    return Subject(
        partial(_transformers, name, sizes), "input_ids", (batch, length), sizes["vocab_size"], "labels", {"use_cache": False}
    )


def encoder(name: str, sizes: Mapping[str, Any], given: str, shape: tuple[int, ...], classes: int | None = None) -> Subject:
    """A model of Transformers that gives states."""
    return Subject(partial(_transformers, name, sizes), given, shape, classes)


def _timm(name: str) -> nn.Module:
    import timm

    built: nn.Module = timm.create_model(name)
    return built


def _torchvision(name: str) -> nn.Module:
    import torchvision

    built: nn.Module = getattr(torchvision.models, name)()
    return built


SUBJECTS: Mapping[str, Subject] = {
    "Llama": causal("LlamaForCausalLM", {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 32000,
    }, 4, 2048),
    "Qwen3": causal("Qwen3ForCausalLM", {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 16, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32000,
    }, 8, 2048),
    "Gemma3": causal("Gemma3ForCausalLM", {
        "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 13, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 32000,
    }, 8, 2048),
    "GPT-2": causal("GPT2LMHeadModel", {
        "vocab_size": 50257, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    }, 16, 1024),
    "nanoGPT": Subject(partial(NanoGPT, 12, 12, 768, 1024, 50304), "tokens", (16, 1024), 50304, "targets"),
    "BERT": encoder("BertModel", {
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }, "input_ids", (64, 512), 30522),
    "ViT": encoder("ViTModel", {}, "pixel_values", (128, 3, 224, 224)),
    "ViT of timm": Subject(partial(_timm, "vit_base_patch16_224"), "x", (128, 3, 224, 224)),
    "ViT of torchvision": Subject(partial(_torchvision, "vit_b_16"), "x", (128, 3, 224, 224)),
}  # fmt: skip
"""Sizes that are not given are those of the class: GPT-2 small, BERT base, ViT-B/16. Nothing is dropped out, since candidates
would drop other things. Batches are so large that an H200, not its host, sets the pace of PyTorch's steps."""
