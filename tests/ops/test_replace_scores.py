"""Soft caps, sinks and position bias of Transformers models, and models that run an attention function of their own code."""

import contextlib
import copy
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from transformers.models.gpt_oss import modeling_gpt_oss as gpt_oss

import kpt
from kpt.ops import prefer
from kpt.ops.replace import own_attention
from kpt.ops.replace.attention_forward import attention_forward
from tests.architectures import build
from tests.ops.calls import served
from tests.ops.models import HOLES, IDS, LEFT, attended, passed_by, transformers
from tests.tolerances import assert_close

OWN = ("gemma2", "gpt_oss")


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "t5", "deepseek_v3"])
def test_kernels_serve(name: str) -> None:
    subject = build(name)
    given = {"attention_mask": LEFT, **({"decoder_input_ids": IDS[:, :4]} if name == "t5" else {})}
    tokens = slice(None) if name == "t5" else LEFT.bool()
    with torch.no_grad():
        expected = subject(IDS, **given).logits
        kpt.replace_modules(subject, only=["attention"])
        before, outside = served("flash_attention").get("numpy", 0), passed_by()
        with prefer("numpy"):
            got = subject(IDS, **given).logits
    assert_close(got[tokens], expected[tokens], "f32", 512)
    assert served("flash_attention")["numpy"] - before == (6 if name == "t5" else 2)
    assert passed_by() == outside


@pytest.mark.parametrize("name", ["gpt_oss", "t5"])
def test_gradients(name: str) -> None:
    """Of sinks and of a position bias, too."""
    plain = build(name)
    replaced = copy.deepcopy(plain)
    kpt.replace_modules(replaced, only=["attention"])
    given = {"decoder_input_ids": IDS[:, :4]} if name == "t5" else {}
    before = attended()
    for subject in (plain, replaced):
        subject(IDS, attention_mask=HOLES, **given).logits[:1].square().mean().backward()
    assert attended() > before
    kept = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    assert any("sinks" in n or "relative_attention_bias" in n for n in kept)
    for n, p in replaced.named_parameters():
        if n in kept:
            assert_close(p.grad, kept[n], "f32", 512)


@pytest.mark.parametrize("name", OWN)
def test_a_model_that_offers_no_sdpa_runs_kpts_and_goes_back_to_its_own(name: str) -> None:
    subject = build(name)
    with torch.no_grad():
        expected = subject(IDS).logits
        report = kpt.replace_modules(subject, only=["attention"])
        assert "eager -> kpt_own" in str(report)
        assert "stays" not in str(report)
        assert kpt.replace_modules(subject, only=["attention"]).changes == ()
        kpt.restore_modules(subject)
        before = attended()
        assert torch.equal(subject(IDS).logits, expected)
    assert (subject.config._attn_implementation, attended()) == ("eager", before)


@pytest.mark.parametrize("mask", [None, LEFT], ids=["none", "left"])
def test_what_kpt_does_not_serve_goes_to_the_function_that_was_replaced(mask: torch.Tensor | None) -> None:
    """To the last bit, with its attention weights where those are asked for."""
    subject = build("gpt_oss").train()
    for module in subject.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    replaced = copy.deepcopy(subject)
    kpt.replace_modules(replaced, only=["attention"])
    reasons = [f"GptOssForCausalLM: {why}" for why in ("dropout is on", "attention weights are asked for")]
    for reason, more in zip(reasons, ({}, {"output_attentions": True}), strict=True):
        before, found = passed_by(reason), []
        for each in (subject, replaced):
            torch.manual_seed(3)
            with torch.no_grad():
                found.append(each(IDS, attention_mask=mask, **more))
        assert torch.equal(found[0].logits, found[1].logits)
        assert passed_by(reason) == before + 2
    assert all(torch.equal(a, b) for a, b in zip(found[0].attentions, found[1].attentions, strict=True))


def test_an_attention_function_that_computes_something_else_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    known = gpt_oss.eager_attention_forward

    def doubled(module: Any, *tensors: Any, scaling: float, **more: Any) -> Any:
        return known(module, *tensors, scaling=2 * scaling, **more)

    def unlike(module: Any, *tensors: Any, **more: Any) -> Any:
        return module.unheard_of

    for function, why in ((doubled, "computes something else than kpt's"), (unlike, "could not be tried: AttributeError")):
        monkeypatch.setattr(gpt_oss, "eager_attention_forward", function)
        report = kpt.replace_modules(build("gpt_oss"), only=["attention"])
        assert report.changes == ()
        assert f"model.layers.0.self_attn (GptOssAttention) has an attention function that {why}" in str(report)


def test_an_own_function_is_tried_outside_of_autocast() -> None:
    """Whose roundings would pass for something else, and be remembered."""
    own_attention._why_not.cache_clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert [c.kind for c in kpt.replace_modules(build("gpt_oss"), only=["attention"]).changes] == ["attention"]


def test_a_config_that_asks_for_attention_weights_is_left_alone() -> None:
    subject = build("gpt_oss")
    subject.config.output_attentions = True
    assert "left alone, (model).config: it asks for attention weights" in str(kpt.replace_modules(subject, only=["attention"]))


def test_a_cap_that_pytorchs_attention_drops_is_not_taken_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 5.21 Transformers let Gemma 2 run "sdpa", which computes no cap: nor does what comes in its place."""
    monkeypatch.setattr(transformers.Gemma2PreTrainedModel, "_supports_sdpa", True)
    for implementation, cap, name in (("sdpa", 2.0, "sdpa"), ("sdpa", None, "kpt"), ("eager", 2.0, "kpt_own")):
        config = build("gemma2").config
        config.attn_logit_softcapping = cap
        subject = transformers.Gemma2Model._from_config(config, attn_implementation=implementation)
        report = str(kpt.replace_modules(subject, only=["attention"]))
        assert subject.config._attn_implementation == name
        said = "passes softcap, which PyTorch's attention drops; load it with attn_implementation=\"eager\"" in report
        assert said == (name == "sdpa"), report


def test_a_function_that_drops_what_layers_pass_is_found_out() -> None:
    known = gpt_oss.eager_attention_forward
    assert own_attention._why_not(known, (("s_aux", "sinks"),), 2) is None
    assert "something else" in str(own_attention._why_not(known, (("s_aux", "sinks"), ("softcap", "cap")), 2))
    assert "could not be tried" in str(own_attention._why_not(known, (), 2)), "it looks for sinks"


def test_a_keyword_that_an_own_function_does_not_understand_is_refused() -> None:
    subject = build("gpt_oss")
    kpt.replace_modules(subject, only=["attention"])
    with pytest.raises(kpt.InputError, match="passes indices, which neither kpt's attention nor its own understands"):
        subject(IDS, indices=torch.tensor([0]))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["none", "bools", "added", "holes"])
def test_a_position_bias_and_a_mask_are_one(kind: str, bias: bool) -> None:
    layer, sdpa = torch.nn.Module(), transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS["sdpa"]
    layer.is_causal = kind == "none"  # type: ignore[assignment]
    q, k, v = torch.randn(2, 4, 5, 16), torch.randn(2, 4, 9, 16), torch.randn(2, 4, 9, 8)
    seen = HOLES.bool()[:, None, None, :].expand(2, 1, 5, 9)
    mask = {"none": None, "bools": seen, "holes": seen, "added": torch.zeros(2, 1, 5, 9).masked_fill(~seen, -1e9)}[kind]
    more = {"position_bias": torch.randn(1, 4, 5, 9)} if bias else {}
    expected, _ = sdpa(layer, q, k, v, mask, **more)
    if kind == "holes":
        subject = build("bert")
        kpt.replace_modules(subject, only=["attention"])
        create = transformers.masking_utils.create_bidirectional_mask
        mask = create(subject.config, torch.empty(2, 5, 64), HOLES, encoder_hidden_states=torch.empty(2, 9, 64))
        assert mask.tokens is not None
    outside = passed_by()
    got, _ = attention_forward(layer, q, k, v, mask, **more)
    assert_close(got, expected, "f32", 64)
    assert passed_by() == outside


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"position_bias": torch.zeros(1, 4, 5, 8)}, "the position bias was made for other lengths"),
        ({"cache": 3}, "the layer passes cache"),
    ],
)
def test_what_does_not_fit_is_pytorchs(more: dict[str, Any], why: str) -> None:
    layer, q = torch.nn.Module(), torch.randn(2, 4, 5, 16)
    before = passed_by(f"Module: {why}")
    with contextlib.suppress(RuntimeError):  # PyTorch's own
        attention_forward(layer, q, q, q, None, is_causal=False, **more)
    assert passed_by(f"Module: {why}") == before + 1
