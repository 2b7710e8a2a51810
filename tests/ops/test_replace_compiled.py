"""Replaced attention under torch.compile: one graph, the same answers, and what kpt can tell of a mask while it is traced."""

import copy
from typing import Any

import pytest
import torch

import kpt
from tests.ops.models import (
    COPIES,
    HOLES,
    IDS,
    LEFT,
    RIGHT,
    attended,
    bert,
    gemma4,
    gpt_oss,
    llama,
    mistral,
    model,
    modernbert,
    passed_by,
    transformers,
)
from tests.tolerances import assert_close

CALLS = [(build, {}, mask) for build in (bert, modernbert) for mask in (None, HOLES)]
CALLS += [(llama, {"use_cache": cached}, mask) for cached in (True, False) for mask in (None, HOLES)]
CALLS += [
    (build, {"use_cache": cached}, mask)
    for build in (mistral, gemma4, gpt_oss)
    for cached, mask in ((True, HOLES), (False, None))
]
CALLS = [pytest.param(*call, marks=COPIES if call[:2] == (gemma4, {"use_cache": True}) else ()) for call in CALLS]


@pytest.mark.parametrize(("build", "options", "mask"), CALLS)
def test_compiles_into_one_graph(build: Any, options: dict[str, Any], mask: torch.Tensor | None) -> None:
    """Nobody knows the values of a mask that is traced, so that any may come."""
    options = {"attention_mask": mask, **options}
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


def test_graphs_of_any_size_with_a_mask_and_without() -> None:
    subject = llama()
    replaced = copy.deepcopy(subject)
    kpt.replace_modules(replaced, only=["attention"])
    torch._dynamo.reset()
    compiled = torch.compile(replaced, fullgraph=True, backend="eager", dynamic=True)
    before, outside = attended(), passed_by()
    for mask in (HOLES, None):
        for length in (9, 7):
            given = {"input_ids": IDS[:, :length], "attention_mask": None if mask is None else mask[:, :length]}
            with torch.no_grad():
                expected, got = (each(**given).last_hidden_state for each in (subject, compiled))
            tokens = slice(None) if mask is None else mask[:, :length].bool()
            assert_close(got[tokens], expected[tokens], "f32", 256)
    assert attended() > before
    assert passed_by() == outside


@pytest.mark.parametrize("dynamic", [False, True])
def test_training_compiles_and_is_served_without_a_cache(dynamic: bool) -> None:
    """Where Transformers takes every batch for a packed one, for it cannot look at the positions."""
    plain, replaced = (model("Llama", num_key_value_heads=2, num_hidden_layers=1) for _ in range(2))
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


def test_a_mask_that_is_made_by_vmap_is_traced() -> None:
    """As Transformers makes it of a model's own function (T5Gemma 2's windows of two sides)."""
    subject, states = bert(), torch.zeros(2, 9, 64)

    def made(states: torch.Tensor) -> Any:
        return transformers.masking_utils.create_bidirectional_mask(
            config=subject.config,
            inputs_embeds=states,
            attention_mask=None,
            and_mask_function=lambda batch, head, query, key: (query - key).abs() < 3,
        )

    expected = made(states)
    kpt.replace_modules(subject)
    torch._dynamo.reset()
    got = torch.compile(made, fullgraph=True, backend="eager")(states)
    assert torch.equal(got.expand(expected.shape), expected)


@pytest.mark.parametrize("queries", [1, 3])
def test_a_static_cache_is_followed_without_being_read(queries: int) -> None:
    subject = llama()
    replaced = copy.deepcopy(subject)
    kpt.replace_modules(replaced, only=["attention"])
    torch._dynamo.reset()
    compiled = torch.compile(replaced, fullgraph=True, backend="eager")
    with torch.no_grad():
        caches = [transformers.StaticCache(config=subject.config, max_cache_len=12) for _ in range(2)]
        for model, cache in zip((subject, replaced), caches, strict=True):
            model(IDS[:, :3], attention_mask=LEFT[:, :3], past_key_values=cache)
        before, outside = attended(), passed_by()
        for end in range(3 + queries, 10, queries):
            given = {"attention_mask": LEFT[:, :end], "position_ids": torch.arange(end - queries, end)[None]}
            expected, got = (
                model(IDS[:, end - queries : end], past_key_values=cache, **given).last_hidden_state
                for model, cache in zip((subject, compiled), caches, strict=True)
            )
            tokens = LEFT[:, end - queries : end].bool()
            assert_close(got[tokens], expected[tokens], "f32", 256)
    assert attended() > before
    assert passed_by() == outside


def test_a_model_that_was_compiled_is_exported() -> None:
    """Which traces in another way, where nothing that torch.compile found out holds."""
    subject = llama()
    kpt.replace_modules(subject)
    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(subject, fullgraph=True, backend="eager")(IDS, use_cache=False)
        program = torch.export.export(subject, (IDS,), {"use_cache": False}, strict=False)
        found = program.module()(IDS, use_cache=False).last_hidden_state
        assert_close(found, subject(IDS, use_cache=False).last_hidden_state, "f32", 256)
