"""Replaced attention under torch.compile: one graph, the same answers, and what kpt can tell of a mask while it is traced."""

from typing import Any

import pytest
import torch

import kpt
from tests.ops.models import HOLES, IDS, RIGHT, attended, bert, gemma4, llama, mistral, passed_by
from tests.tolerances import assert_close


@pytest.mark.parametrize("build", [bert, llama, mistral, gemma4])
@pytest.mark.parametrize("mask", [None, RIGHT, HOLES], ids=["none", "right", "holes"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_compiles_into_one_graph(build: Any, mask: torch.Tensor | None, use_cache: bool) -> None:
    options = {"attention_mask": mask, **({} if build is bert else {"use_cache": use_cache})}
    subject = build()
    tokens = torch.ones_like(IDS, dtype=torch.bool) if mask is None else mask.bool()
    torch._dynamo.reset()
    with torch.no_grad():
        expected = subject(IDS, **options).last_hidden_state
        kpt.replace_modules(subject)
        compiled = torch.compile(subject, fullgraph=True, backend="eager")
        before, outside = attended(), passed_by()
        assert_close(compiled(IDS, **options).last_hidden_state[tokens], expected[tokens], "f32", 256)
        assert attended() > before
        assert passed_by() == outside


@pytest.mark.parametrize("dynamic", [False, True])
def test_training_compiles_and_is_served_without_a_cache(dynamic: bool) -> None:
    """Where Transformers takes every batch for a packed one, for it cannot look at the positions."""
    plain, replaced = llama(), llama()
    kpt.replace_modules(replaced)
    torch._dynamo.reset()
    compiled = torch.compile(replaced, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    before = attended()
    for length in (9, 7):
        plain(IDS[:, :length], use_cache=False).last_hidden_state.square().sum().backward()
        compiled(IDS[:, :length], use_cache=False).last_hidden_state.square().sum().backward()
    for a, b in zip(plain.parameters(), replaced.parameters(), strict=True):
        if a.grad is not None:
            assert_close(b.grad, a.grad, "f32", 512)
    assert attended() > before
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]).expand(2, 9)
    with torch.no_grad():
        packed = {"position_ids": positions, "use_cache": False}
        got, expected = compiled(IDS, **packed).last_hidden_state, plain(IDS, **packed).last_hidden_state
    assert_close(got, expected, "f32", 64)


def test_layers_that_are_compiled_alone_take_our_masks() -> None:
    subject = mistral()
    torch._dynamo.reset()
    with torch.no_grad():
        expected = subject(IDS, attention_mask=RIGHT).last_hidden_state
        kpt.replace_modules(subject)
        for layer in subject.layers:
            layer.compile(fullgraph=True, backend="aot_eager")
        before = attended()
        got = subject(IDS, attention_mask=RIGHT).last_hidden_state
    assert_close(got[RIGHT.bool()], expected[RIGHT.bool()], "f32", 64)
    assert attended() > before
