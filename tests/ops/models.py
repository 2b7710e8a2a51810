"""Tiny models of Transformers with random weights, batches for them, and how their attention was served."""

import os
from typing import Any

import pytest
import torch

import kpt
from kpt.ops import counters
from tests.ops.calls import served

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}
IDS = torch.randint(0, 100, (2, 9), generator=torch.Generator().manual_seed(20))
RIGHT = torch.tensor([[1] * 9, [1] * 5 + [0] * 4])
LEFT = torch.tensor([[1] * 9, [0] * 4 + [1] * 5])
HOLES = torch.tensor([[1] * 9, [1, 0] * 4 + [1]])

COPIES = pytest.mark.skipif(
    torch.__version__ < "2.13",
    reason="Transformers copies Gemma 4's config for a cache: PyTorch 2.11 compiles no copy, replaced or not",
)


def model(name: str, **options: Any) -> Any:
    torch.manual_seed(20)
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **options})
    return getattr(transformers, f"{name}Model")(config).eval()


def bert() -> Any:
    return model("Bert")


def llama() -> Any:
    return model("Llama", num_key_value_heads=2)


def mistral() -> Any:
    return model("Mistral", num_key_value_heads=2, sliding_window=4)


def attended() -> int:
    return sum(served("flash_attention").values())


def passed_by(reason: str | None = None) -> int:
    """Calls of replaced attention that PyTorch's function served, all or for a reason."""
    counted = counters()["flash_attention"]["fallbacks"]
    return sum(counted.values()) if reason is None else counted.get(reason, 0)


def both(subject: Any, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Outputs before and after replacing, and how many calls kpt's attention served."""
    with torch.no_grad():
        expected = subject(**inputs).last_hidden_state
        kpt.replace_modules(subject)
        before = attended()
        got = subject(**inputs).last_hidden_state
    return got, expected, attended() - before


def gemma4() -> Any:
    from tests.architectures import build

    return build("gemma4_text").model


def gpt_oss() -> Any:
    from tests.architectures import build

    return build("gpt_oss").model


def modernbert() -> Any:
    from tests.architectures import build

    return build("modernbert")
