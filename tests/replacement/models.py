"""Tiny models with random weights, and how each is called: Transformers', timm's, torchvision's and plain PyTorch's."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests import architectures

TRANSFORMERS = (
    "albert", "bart", "bert", "blip_vision_model", "bloom", "clip_vision_model", "cohere", "cohere2", "convnext", "deepseek_v3",
    "dinov2", "distilbert", "electra", "gemma", "gemma2", "gemma3_text", "gemma4_text", "glm4", "gpt2", "gpt_neox", "gpt_oss",
    "granite", "llama", "llama4_text", "mistral", "mixtral", "modernbert", "olmo2", "opt", "paligemma", "phi3", "qwen2_vl",
    "qwen3", "qwen3_moe", "roberta", "siglip_vision_model", "starcoder2", "t5", "vit", "wav2vec2", "whisper",
)  # fmt: skip
"""Model types: decoders, encoders and both; experts; images, sounds and texts; norms, gates and attention of every make."""

BESIDE = Path(__file__).parents[2] / "build" / "vision"
"""Where ``make vision`` puts timm and torchvision."""

WIDTH, HEADS, LAYERS, TOKENS = 64, 4, 2, 11


@dataclass(frozen=True)
class Subject:
    """A model in eval mode, a call of it, and the tokens that it generates, where it does."""

    model: nn.Module
    call: Callable[[Any], list[torch.Tensor]]
    generate: Callable[[Any], torch.Tensor] | None = None


def subject(name: str) -> Subject:
    """A model of this name, of ``TRANSFORMERS`` or ``OTHERS`` or any other type that Transformers knows."""
    torch.manual_seed(20)
    found = OTHERS[name]() if name in OTHERS else _of_transformers(name)
    generator = torch.Generator().manual_seed(20)
    with torch.no_grad():
        for parameter in found.model.parameters():  # weights of norms and biases that are not all alike
            if parameter.ndim == 1 and parameter.is_floating_point():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    found.model.eval()
    return found


def subject_here(name: str) -> Subject:
    """The same; skips the test where its package is not installed."""
    try:
        return subject(name)
    except ModuleNotFoundError as missing:
        if missing.name not in ("timm", "torchvision"):
            raise
        pytest.skip(f"{missing.name} is not installed: make vision")


def _of_transformers(name: str) -> Subject:
    model = architectures.build(name)
    given = architectures.inputs(model)

    def generate(model: Any) -> torch.Tensor:
        options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        options |= {"decoder_start_token_id": 1} if model.config.is_encoder_decoder else {}
        tokens: torch.Tensor = model.generate(given["input_ids"], **options)
        return tokens

    writes = "input_ids" in given and model.can_generate()
    return Subject(model, lambda model: architectures.outputs(model(**given)), generate if writes else None)


def _of_one_input(model: nn.Module, *shape: int) -> Subject:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(20))
    return Subject(model, lambda model: [model(x)])


# ------------------------------------------------------------------ plain PyTorch
def _encoder(norm_first: bool) -> Subject:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 96, batch_first=True, norm_first=norm_first, activation="gelu")
    encoder = nn.TransformerEncoder(layer, LAYERS, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)
    return _of_one_input(encoder, 2, TOKENS, WIDTH)


class SelfAttention(nn.Module):
    """As nanoGPT's: one product for queries, keys and values, and PyTorch's attention function."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = (t.view(B, T, HEADS, C // HEADS).transpose(1, 2) for t in self.c_attn(x).split(C, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        projected: torch.Tensor = self.c_proj(y.transpose(1, 2).reshape(B, T, C))
        return projected


class LayerNorm(nn.Module):
    """As nanoGPT's: PyTorch's function, with a bias or none."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.bias = nn.Parameter(torch.zeros(WIDTH)) if bias else None

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return F.layer_norm(input, self.weight.shape, self.weight, self.bias, 1e-5)


class MLP(nn.Module):
    """As nanoGPT's."""

    def __init__(self) -> None:
        super().__init__()
        self.c_fc, self.gelu, self.c_proj = nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.c_proj(self.gelu(self.c_fc(x)))
        return y


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2, self.mlp = LayerNorm(True), SelfAttention(), LayerNorm(False), MLP()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class NanoGPT(nn.Module):
    """As Karpathy's, without dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(100, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.h, self.ln_f = nn.ModuleList([Block() for _ in range(LAYERS)]), nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, 100, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        logits: torch.Tensor = self.lm_head(self.ln_f(x))
        return logits


def _nanogpt() -> Subject:
    tokens = torch.randint(0, 100, (2, TOKENS), generator=torch.Generator().manual_seed(20))
    return Subject(NanoGPT(), lambda model: [model(tokens)])


def _sequential() -> Subject:
    layers = (nn.Linear(WIDTH, 96), nn.GELU(), nn.Linear(96, WIDTH), nn.RMSNorm(WIDTH), nn.Linear(WIDTH, 8), nn.ReLU())
    return _of_one_input(nn.Sequential(*layers), 5, WIDTH)


# ------------------------------------------------------------------ images
def _vision(build: Callable[[], nn.Module]) -> Callable[[], Subject]:
    def of_images() -> Subject:
        sys.path.insert(0, str(BESIDE))
        try:
            _import_torchvision()
            return _of_one_input(build(), 2, 3, 32, 32)
        finally:  # Transformers' lazy imports, here and in processes that are started, are not to see them
            sys.path.remove(str(BESIDE))

    return of_images


def _import_torchvision() -> None:
    """PyPI's is built for CUDA's torch: beside another its operators do not load, and its import asks for these two."""
    try:
        import torchvision
    except RuntimeError:
        for op in ("nms", "qnms"):
            torch.library.define(f"torchvision::{op}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401


def _timm_vit() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(32, 8, num_classes=10, embed_dim=WIDTH, depth=LAYERS, num_heads=HEADS, qk_norm=True)


def _timm_convnext() -> nn.Module:
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(num_classes=10, depths=(1, 1, 1, 1), dims=(16, 24, 32, 48), patch_size=2)


def _timm_swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(32, 2, num_classes=10, embed_dim=32, depths=(2, 2), num_heads=(2, 4), window_size=4)


def _timm_eva() -> nn.Module:
    from timm.models.eva import Eva

    more = {"use_rot_pos_emb": True, "swiglu_mlp": True, "qkv_fused": False}
    return Eva(32, 8, num_classes=10, embed_dim=WIDTH, depth=LAYERS, num_heads=HEADS, mlp_ratio=1.5, **more)


def _torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, LAYERS, HEADS, WIDTH, 96, num_classes=10)


def _torchvision_swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([4, 4], 32, [1, 1], [2, 4], [2, 2], num_classes=10, stochastic_depth_prob=0.0)


def _torchvision_convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(32, WIDTH, 1), CNBlockConfig(WIDTH, None, 1)], num_classes=10)


OTHERS: dict[str, Callable[[], Subject]] = {
    "nn.Sequential": _sequential,
    "nn.TransformerEncoder": lambda: _encoder(False),
    "nn.TransformerEncoder, norms first": lambda: _encoder(True),
    "nanoGPT": _nanogpt,
    "timm's ViT": _vision(_timm_vit),
    "timm's ConvNeXt": _vision(_timm_convnext),
    "timm's Swin": _vision(_timm_swin),
    "timm's EVA": _vision(_timm_eva),
    "torchvision's ViT": _vision(_torchvision_vit),
    "torchvision's ConvNeXt": _vision(_torchvision_convnext),
    "torchvision's Swin": _vision(_torchvision_swin),
}
