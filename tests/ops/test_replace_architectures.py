"""Architectures of Transformers, replaced: each computes what it did, or is left alone for a reason that names the layer.

``python -m tests.architectures`` runs all of them.
"""

import ast
import copy
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import kpt
from kpt.ops.replace import source
from kpt.ops.replace.keywords import not_understood
from tests.architectures import build, cases, flat, judge
from tests.ops.models import attended, passed_by, transformers

SPARSE = ("axk2", "deepseek_v32", "dots3_note_text", "glm_moe_dsa", "minimax_m3_vl_text", "mistral_large4_text")
"""They hand their selection to attention functions that are called neither "eager" nor "sdpa"."""

SERVED = (
    "bart", "bert", "bloom", "clip_vision_model", "cohere2", "deepseek_v3", "distilbert", "electra", "gemma3_text",
    "gemma4_text", "gpt2", "gpt_neox", "granite", "llama", "llama4_text", "ministral3", "mistral", "mixtral",
    "modernbert", "moonshine", "olmo2", "opt", "paligemma", "phi3", "qwen2", "qwen2_vl", "qwen3", "roberta",
    "siglip_text_model", "smollm3", "t5", "vit", "wav2vec2", "whisper", "gemma2", "gpt_oss", "mimo_v2_flash", "t5gemma",
)  # fmt: skip
"""A few dozen that build quickly; among them shared keys, windows, chunks, position bias, values narrower than
keys, soft caps, sinks in some layers or all, and layers that contradict their mask."""

ALONE = "bloom"
"""Attention of its own."""


@pytest.mark.parametrize("name", SERVED)
def test_replaced_models_compute_what_they_did(name: str) -> None:
    verdict = judge(name)
    assert verdict.cases
    assert set(verdict.cases.values()) == {"equal"}, verdict
    assert (verdict.served > 0) == (name != ALONE), verdict
    assert not verdict.fallbacks, verdict


@pytest.mark.parametrize("name", SPARSE)
def test_sparse_models_are_left_alone(name: str) -> None:
    verdict = judge(name)
    assert set(verdict.cases.values()) == {"equal"}, verdict
    assert (verdict.served, verdict.fallbacks) == (0, 0)
    assert "self_attn (" in verdict.note
    assert 'asks whether its attention is "sdpa" by name' in verdict.note


def test_a_model_that_reads_its_mask_is_left_alone() -> None:
    """Doge adds the mask to one of its own; in Transformers 5.17, where PyTorch's is None, its attention is not causal."""
    verdict = judge("doge")
    assert set(verdict.cases.values()) == {"equal"}, verdict
    assert (verdict.served, verdict.fallbacks) == (0, 0)
    assert "self_attn (DogeAttention) works out a mask of its own" in verdict.note


def test_a_model_whose_layers_look_no_function_up_is_left_alone() -> None:
    """Its code adds masks to scores itself; that of its images does look up."""
    verdict = judge("git")
    assert set(verdict.cases.values()) == {"equal"}, verdict
    assert "none of its layers calls an attention function that it looks up" in verdict.note


def test_the_selection_of_these_tests_matters() -> None:
    """As other libraries do it: the name alone is changed, and the selection dropped."""
    subject = build("deepseek_v32")
    ids = torch.randint(3, 100, (2, 11), generator=torch.Generator().manual_seed(20))
    with torch.no_grad():
        expected = subject(ids).logits
        kpt.replace_modules(build("llama"))  # lets Transformers know of kpt's
        subject.config._attn_implementation = "kpt"
        with pytest.raises(kpt.InputError, match="DeepseekV32Attention passes indices, which neither kpt's"):
            subject(ids)
        subject.config._attn_implementation = "sdpa"
        subject.config.index_topk = 11
        for layer in subject.model.layers:
            layer.self_attn.indexer.index_topk = 11
        assert (subject(ids).logits - expected).abs().max() > 0.01


def test_a_keyword_that_nobody_understands_is_refused_at_the_call() -> None:
    subject = build("llama")
    kpt.replace_modules(subject)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        subject(ids, indices=None, num_items_in_batch=3)
        with pytest.raises(kpt.InputError) as caught:
            subject(ids, indices=torch.tensor([0]))
    assert "attention of LlamaForCausalLM: model.layers.0.self_attn (LlamaAttention) passes indices" in str(
        caught.value
    )
    assert "kpt.restore_modules(model)" in str(caught.value)


class _Checked(transformers.LlamaConfig):  # type: ignore[misc]
    """As HRM's in Transformers 5.17: its property takes names, and not the dicts that set a config alone."""

    @property
    def _attn_implementation(self) -> Any:
        return self._attn_implementation_internal

    @_attn_implementation.setter
    def _attn_implementation(self, value: Any) -> None:
        assert not value.startswith("flash")
        self._attn_implementation_internal = value


class _Unmoved(transformers.LlamaConfig):  # type: ignore[misc]
    """Always says the same."""

    @property
    def _attn_implementation(self) -> Any:
        return "sdpa"


class _Frozen(transformers.LlamaConfig):  # type: ignore[misc]
    def __setattr__(self, name: str, value: Any) -> None:
        if "_attn_implementation_internal" in vars(self):
            raise AttributeError(f"cannot assign to {name}")
        object.__setattr__(self, name, value)


def test_a_config_that_checks_names_is_replaced_and_restored() -> None:
    subject = build("llama")
    subject.config.__class__ = _Checked
    assert [c.kind for c in kpt.replace_modules(subject, only=["attention"]).changes] == ["attention"]
    before = attended()
    with torch.no_grad():
        subject(torch.tensor([[5, 6, 7]]))
    assert attended() > before
    assert len(kpt.restore_modules(subject).changes) == 1
    assert subject.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", [_Unmoved, _Frozen])
def test_a_config_that_does_not_follow_is_left_alone(kind: type) -> None:
    subject = build("llama")
    subject.config.__class__ = kind
    held = dict(vars(subject.config))
    report = kpt.replace_modules(subject, only=["attention"])
    assert report.changes == ()
    assert f"{kind.__name__} does not keep the name of its attention as Transformers' configs do" in str(report)
    assert vars(subject.config) == held
    assert not any(hasattr(module, "_kpt_place") for module in subject.modules())


def test_a_config_is_named_without_those_inside_it() -> None:
    subject = build("paligemma")
    subject.config.text_config._attn_implementation = "eager"
    kpt.replace_modules(subject)
    found = [c._attn_implementation for c in (subject.config, subject.config.vision_config, subject.config.text_config)]
    assert found == ["kpt", "kpt", "eager"]


def test_selections_sinks_and_masks_of_heads_are_not_understood() -> None:
    names = ["indices", "block_indices", "sinks", "s_aux", "softcap", "head_mask", "something_new"]
    assert not_understood([*names, "sliding_window", "position_bias"]) == names


def findings(body: str, former: str = "sdpa", **names: Any) -> source.Findings:
    """Of a class whose forward has this body, and that runs a former function."""
    lines = "\n".join(f"        {line}" for line in body.splitlines())
    return source._of_code(ast.parse(f"class Layer:\n    def forward(self):\n{lines}\n"), names, former)


@pytest.mark.parametrize(
    "body",
    [
        'if self.config._attn_implementation in ("eager", "sdpa"): pass',
        'if self.config._attn_implementation != "sdpa": pass',
        'x = 1 if "sdpa" == config._attn_implementation else 2',
        'name = self.config._attn_implementation\nif name == "sdpa": pass',
        "if self.config._attn_implementation in DENSE: pass",
        "if self.config._attn_implementation in self.dense: pass",
        'if self.config._attn_implementation.startswith("sdpa"): pass',
        "f = FUNCTIONS[self.config._attn_implementation]",
        "f = FUNCTIONS.get(self.config._attn_implementation, eager)",
        'match self.config._attn_implementation:\n    case "sdpa": pass',
        'if self.config._attn_implementation == "sdpa" and mask is not None: pass',
    ],
)
def test_code_that_tells_names_apart(body: str) -> None:
    found = findings(body, DENSE=("eager", "sdpa"), FUNCTIONS={"sdpa": print})
    assert len(found.refusals) == 1
    assert "by name" in found.refusals[0]


@pytest.mark.parametrize(
    "body",
    [
        'if self.config._attn_implementation == "eager": pass',
        'if self.config._attn_implementation in ("flash_attention_2", "flex_attention"): pass',
        "if self.config._attn_implementation in DENSE: pass",
        "f = FUNCTIONS[self.config._attn_implementation]",
        "f = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager)",
        'if self.config._attn_implementation == "sdpa" and any(mask is None for mask in masks): pass',
        "if self.config._attn_implementation != config._attn_implementation: pass",
    ],
)
def test_code_that_does_not(body: str) -> None:
    found = findings(body, DENSE=("eager",), FUNCTIONS={"sdpa": print, "kpt": print})
    assert found.refusals == ()


def test_keywords_in_code() -> None:
    found = findings(
        "attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)\n"
        "attend(self, q, k, v, mask, scaling=1.0, cache=b, softcap=self.cap, chosen=c, nothing=None, **kwargs)\n"
        "other(self, thing=1)"
    )
    assert (found.attends, found.pytorchs, found.scores) == (True, ("cache",), (("softcap", "cap"),))
    assert found.refusals == ("passes chosen, which neither kpt's nor PyTorch's attention understands",)


@pytest.mark.parametrize(
    "body",
    [
        "mask = self.dynamic(attention_mask)",
        "mask = attention_mask\nif mask is not None: mask = mask + bias",
        "mask = bias\nmask += attention_mask",
        "mask = torch.where(attention_mask, 0, least)[:, :, :, :keys]",
    ],
)
def test_code_that_works_out_its_mask(body: str) -> None:
    for call in ("attend(self, q, k, v, mask)", "attend(self, q, k, v, attention_mask=mask, dropout=0.0)"):
        found = findings(f"{body}\nattend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)\n{call}")
        assert found.refusals == ("works out a mask of its own from the one that it is given, or from none",)


@pytest.mark.parametrize(
    "body",
    [
        "mask = attention_mask[:, :, :, : k.size(2)]",
        "mask = encoder_attention_mask if crosses else attention_mask",
        'mask = masks.get("causal")',
        "mask = None",
        "scores = mask + bias",
    ],
)
def test_code_that_passes_its_mask_on(body: str) -> None:
    lines = f"{body}\nattend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)\n"
    assert findings(f"{lines}attend(self, q, k, v, mask)").refusals == ()
    assert findings(f"{lines}attend(self, q, k, v, attention_mask=mask)").refusals == ()


@pytest.mark.parametrize("name", ["deepseek_v3", "gemma3_text", "llama"])
def test_what_pytorch_serves_is_called_as_before(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout. To the last bit: a router of experts under autocast takes another one for a difference in the last."""
    attend, calls = torch.nn.functional.scaled_dot_product_attention, []

    def recorded(*tensors: torch.Tensor, attn_mask: torch.Tensor | None = None, **more: Any) -> torch.Tensor:
        calls.append((attn_mask is None, more))
        return attend(*tensors, attn_mask=attn_mask, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
    subject = build(name).train()
    for module in subject.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    replaced = copy.deepcopy(subject)
    assert kpt.replace_modules(replaced, only=["attention"]).changes
    for case, call in cases(subject):
        calls.clear()
        torch.manual_seed(3)
        expected, before = call(subject), calls.copy()
        calls.clear()
        torch.manual_seed(3)
        assert all(torch.equal(a, b) for a, b in zip(flat(call(replaced)), flat(expected), strict=True)), case
        assert calls == before, case


@pytest.mark.parametrize("dropout", [0.0, 1e-9])
@pytest.mark.parametrize("window", [None, 3, 5, 6])
@pytest.mark.parametrize("queries", [5, 3, 1])
@pytest.mark.parametrize(("layer", "call"), [(True, None), (True, False), (False, None), (False, True)], ids=str)
def test_a_mask_that_pytorch_does_without_is_kept_where_it_says_more(
    window: int | None, queries: int, layer: bool, call: bool | None, dropout: float
) -> None:
    """Calls with dropout, here of next to nothing, go to PyTorch, with the mask of a window, of the last queries, and of calls
    that do not say that they are causal; kpt's own read it alike."""
    from transformers import masking_utils

    from kpt.ops.replace.attention_forward import attention_forward
    from kpt.ops.replace.attention_mask import attention_mask

    module = torch.nn.Module()
    module.is_causal = layer  # type: ignore[assignment]
    q, k, v = torch.randn(2, 4, queries, 16), torch.randn(2, 4, 5, 16), torch.randn(2, 4, 5, 8)
    function = masking_utils.causal_mask_function
    if window is not None:
        function = masking_utils.sliding_window_causal_mask_function(window)
    mask = attention_mask(batch_size=2, q_length=5, kv_length=5, mask_function=function, local_size=window)
    assert mask is not None
    seen = torch.ones(5, 5, dtype=torch.bool)
    if queries < 5 or layer or call or window in (3, 5):
        seen = seen.tril().triu(1 - (window or 5))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen[-queries:])
    outside = passed_by()
    got, _ = attention_forward(module, q, k, v, mask[:, :, -queries:], is_causal=call, dropout=dropout)
    assert passed_by() - outside == (dropout > 0)
    assert (got.transpose(1, 2) - expected).abs().max() < 1e-5
