"""Heads and losses of Transformers' language models as one op: proven, restored, left alone where they are something else."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

import transformers

import kpt
from kpt.ops.linear_cross_entropy import chunks
from tests.architectures import build
from tests.ops.calls import served
from tests.replacement.lowered import assert_as_good
from tests.tolerances import assert_close


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


KIND = "linear_cross_entropy"

MODELS = ("llama", "cohere", "granite", "gpt2", "mixtral", "phi", "opt", "falcon_mamba", "gemma2", "recurrent_gemma")
"""Cohere and Granite multiply their logits, Phi's head has a bias, OPT and Mamba ask their model for parts of it, Gemma 2 and
RecurrentGemma cap their logits."""

IDS = torch.randint(3, 100, (2, 7), generator=torch.Generator().manual_seed(20))
LABELS = IDS.masked_fill(torch.arange(7) < 3, -100)


def run(model: Any, **given: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """The outputs of a step of training, and gradients."""
    model.zero_grad()
    torch.manual_seed(20)
    outputs = model(**{"input_ids": IDS, "labels": LABELS, "use_cache": False, **given})
    outputs[0].backward()
    return outputs, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def only_loss(model: nn.Module) -> Any:
    return kpt.optimize(model, "conservative", loss=True)


def fused() -> int:
    return sum(served(KIND).values())


@pytest.mark.parametrize("name", MODELS)
def test_training_computes_what_it_did(name: str) -> None:
    model = build(name).train()
    kind = type(model)
    state, (expected, slopes) = copy.deepcopy(model.state_dict()), run(model)
    assert KIND in {c.kind for c in only_loss(model).changes}
    before = fused()
    outputs, gradients = run(model)
    assert fused() == before + 1
    assert outputs.logits is None
    assert "logits" not in outputs
    assert_close(outputs.loss, expected.loss, "f32", 128)
    assert gradients.keys() == slopes.keys()
    for path, gradient in gradients.items():
        assert_close(gradient, slopes[path], "f32", 4096)
    assert state.keys() == model.state_dict().keys()
    kpt.restore_modules(model)
    assert type(model) is kind
    assert torch.equal(run(model)[0].logits, expected.logits)


@pytest.mark.parametrize("name", ["gemma2", "granite"])
def test_under_autocast_it_is_as_good_as_the_models_own(name: str) -> None:
    model = build(name).train()
    exact = run(model)
    with torch.autocast("cpu", torch.bfloat16):
        own = run(model)
        kpt.optimize(model, loss=True)
        with kpt.ops.prefer("numpy"):
            got = run(model)
    assert_as_good(*(([outputs.loss.detach()], gradients) for outputs, gradients in (got, own, exact)))


@pytest.fixture
def llama() -> Any:
    return build("llama").train()


def test_the_loss_of_float64_is_float32_as_transformers_own_is(llama: Any) -> None:
    llama.double()
    expected, slopes = run(llama)
    only_loss(llama)
    outputs, gradients = run(llama)
    assert outputs.loss.dtype is expected.loss.dtype is torch.float32
    assert_close(outputs.loss, expected.loss, "f32", 128)
    for path, gradient in gradients.items():
        assert_close(gradient, slopes[path], "f32", 4096)


def test_means_over_parts_of_a_batch_and_tuples(llama: Any) -> None:
    ways: tuple[dict[str, Any], ...] = (
        {"num_items_in_batch": torch.tensor(9)}, {"num_items_in_batch": 5},
        {"ignore_index": 17, "labels": LABELS.masked_fill(LABELS == -100, 17)},
        {"shift_labels": torch.roll(IDS, 2, 1)}, {"return_dict": False}, {"logits_to_keep": 7},
    )  # fmt: skip
    expected = [run(llama, **way)[0][0] for way in ways]
    only_loss(llama)
    for way, loss in zip(ways, expected, strict=True):
        before = fused()
        outputs, _ = run(llama, **way)
        assert_close(outputs[0], loss, "f32", 128)
        assert fused() == before + 1, way
    assert run(llama, return_dict=False)[0][1] is None


def test_logits_are_there_where_nobody_trains(llama: Any) -> None:
    only_loss(llama)
    before = fused()
    assert llama(input_ids=IDS).logits.shape == (2, 7, 128), "in training, without labels"
    assert llama.eval()(input_ids=IDS, labels=LABELS).logits.shape == (2, 7, 128)
    assert llama.generate(IDS, max_new_tokens=2, do_sample=False, pad_token_id=0).shape == (2, 9)
    assert fused() == before


def test_kernels_make_a_chunk_of_logits_at_a_time(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "LEVEL", 4)
    monkeypatch.setattr(chunks, "MOST_LOGITS", 4 * 128)
    expected, slopes = run(llama)
    only_loss(llama)
    before = served("cross_entropy").get("numpy", 0)
    with kpt.ops.prefer("numpy"):
        outputs, gradients = run(llama)
    assert served("cross_entropy")["numpy"] == before + 4, "14 rows, 4 at a time"
    assert_close(outputs.loss, expected.loss, "f32", 128)
    assert_close(gradients["lm_head.weight"], slopes["lm_head.weight"], "f32", 4096)


def test_compiled_pickled_copied_and_twice() -> None:
    capped = build("gemma2").train()
    only_loss(capped)
    assert only_loss(capped).changes == ()
    assert only_loss(capped).skipped == ()
    again, copied = pickle.loads(pickle.dumps(capped)), copy.deepcopy(capped)
    assert type(again) is type(copied) is type(capped)
    compiled = torch.compile(capped, backend="eager", fullgraph=True)
    for model in (again, copied, compiled):
        before = fused()
        assert_close(run(model)[0].loss, run(capped)[0].loss, "f32", 128)
        assert fused() > before
    kpt.restore_modules(again)
    assert type(again) is transformers.Gemma2ForCausalLM


def test_a_model_is_saved_under_its_own_name(llama: Any, tmp_path: Any) -> None:
    only_loss(llama)
    llama.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.architectures == ["LlamaForCausalLM"]
    assert type(loaded) is transformers.LlamaForCausalLM


def test_what_changed_since_runs_the_models_own_code(llama: Any) -> None:
    only_loss(llama)
    expected = run(llama)[0].loss
    seen: list[Any] = []
    handle = llama.lm_head.register_forward_hook(lambda *given: seen.append(given))
    assert run(llama)[0].logits is not None
    assert len(seen) == 1
    handle.remove()
    llama.loss_function = lambda logits, **_: logits.sum()
    assert run(llama)[0].logits is not None
    del llama._loss_function
    llama.lm_head = nn.Sequential(llama.lm_head)
    assert_close(run(llama)[0].loss, expected, "f32", 128)
    assert run(llama)[0].logits is not None


class Wrong(transformers.LlamaForCausalLM):
    """Something else than a head and its loss: ``change`` says what."""

    change = ""

    def forward(self, input_ids: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        hidden = self.model(input_ids=input_ids, **kwargs).last_hidden_state
        if self.change == "normed":
            hidden = hidden / hidden.norm(dim=-1, keepdim=True)
        logits = self.lm_head(hidden)
        if self.change == "added":
            logits = logits + 1
        if self.change == "scaled":
            logits = 0.25 * logits / 2
        if self.change.startswith("capped"):
            logits = -3 * nn.functional.tanh(logits / 2)
        if self.change == "capped twice":
            logits = logits.tanh()
        if self.change == "tempered":
            logits = logits * self.lm_head.weight.mean()
        if self.change == "shifted":
            labels = torch.roll(labels, 1, -1)
        loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        if self.change == "penalised":
            loss = loss + logits.logsumexp(-1).square().mean()
        return transformers.modeling_outputs.CausalLMOutputWithPast(loss=loss, logits=logits)


def other_loss(logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, **_: Any) -> torch.Tensor:
    """Without a shift."""
    return nn.functional.cross_entropy(logits.float().view(-1, vocab_size), labels.view(-1))


def summed_loss(logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, **_: Any) -> torch.Tensor:
    """That knows no batch in parts."""
    return nn.functional.cross_entropy(logits[:, :-1].float().reshape(-1, vocab_size), labels[:, 1:].reshape(-1))


def reasons(model: nn.Module) -> list[str]:
    report = only_loss(model)
    assert KIND not in {c.kind for c in report.changes}
    return [s.reason for s in report.skipped if s.kind == KIND]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("added", "unsupported operand type"),
        ("tempered", "its logits meet a Tensor"),
        ("capped twice", "its logits go through tanh twice"),
        ("penalised", "no attribute 'logsumexp'"),
    ],
)
def test_what_else_becomes_of_logits_is_refused(change: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wrong, "change", change)
    (reason,) = reasons(Wrong(build("llama").config))
    assert words in reason


@pytest.mark.parametrize("change", ["", "normed", "shifted", "scaled", "capped"])
def test_what_happens_around_head_and_loss_is_the_models_own(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wrong, "change", change)
    model = Wrong(build("llama").config).train()
    model.lm_head = nn.Linear(64, 128)
    expected, _ = run(model)
    assert KIND in {c.kind for c in only_loss(model).changes}
    assert_close(run(model)[0].loss, expected.loss, "f32", 128)


@pytest.mark.parametrize("loss", [other_loss, summed_loss])
def test_other_losses_are_refused(llama: Any, loss: Any) -> None:
    llama.loss_function = loss
    (reason,) = reasons(llama)
    assert "the loss of LlamaForCausalLM is not shown to be linear_cross_entropy: its output is off" in reason


def test_heads_that_are_no_linear_layer_and_models_without_a_loss(llama: Any) -> None:
    llama.lm_head = nn.Sequential(llama.lm_head)
    assert reasons(llama) == ["LlamaForCausalLM has a head of the class Sequential, not nn.Linear"]
    assert reasons(nn.Linear(2, 2)) == ["no module of it looks up a loss of the logits that a linear layer of its own gives"]
    assert "its forward fails" in reasons(build("t5"))[0]
