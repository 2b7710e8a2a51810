"""Models of many makes, replaced: outputs, gradients, tokens and states are what they were, all is undone, and as much is
replaced and served as the table says. ``python -m tests.replacement`` writes it anew."""

import pytest

pytest.importorskip("transformers")

from tests.replacement import table
from tests.replacement.judge import judge
from tests.replacement.models import OTHERS, TRANSFORMERS, subject_here

TABLE = table.read()

COMPILED = ("gpt2", "llama", "nanoGPT", "nn.TransformerEncoder", "phi3", "t5", "timm's ViT", "vit")
"""Those that run under torch.compile here; all do in ``make soak``."""


def test_the_table_has_every_model() -> None:
    assert sorted(TABLE) == sorted((*TRANSFORMERS, *OTHERS))
    assert len(TRANSFORMERS) >= 40


@pytest.mark.parametrize("name", TABLE)
def test_a_replaced_model_is_what_it_was(name: str) -> None:
    assert judge(subject_here(name), compiled=name in COMPILED) == TABLE[name]
