"""``kpt-tune run --model``: the calls of a model from its config alone, without values, are those that it makes."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import kpt
from kpt.cli import model as models
from kpt.cli import run
from kpt.ops.calls import Calls
from tests.architectures import build
from tests.cli.conftest import Command


def saved(folder: Path, name: str) -> Any:
    """A tiny model whose config lies in the folder."""
    model = build(name)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    return model


def kinds(calls: Calls) -> Counter[str]:
    """But for ops inside of others, and for what is saved for a backward, of which a recording does not say."""
    return Counter({SAVED.sub("", str(call)): call.often for call in calls if not call.op.startswith("cross_entropy")})


SAVED = re.compile(r", (return_lse|saving)=\w+")


@pytest.mark.parametrize("name", ["llama", "gemma2", "deepseek_v3", "t5"])
@pytest.mark.parametrize("training", [False, True])
def test_a_rehearsal_notes_what_a_run_calls(name: str, training: bool, tmp_path: Path) -> None:
    model = saved(tmp_path, name).to(torch.bfloat16).train(training)
    found = models.calls_of(str(tmp_path), 2, 24, "balanced", training, "bf16")
    kpt.optimize(model, loss=training)
    tokens = torch.arange(24).repeat(2, 1)
    given = {"input_ids": tokens, "use_cache": False} | ({"labels": tokens} if training else {})
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = tokens
    with kpt.ops.prefer("numpy"), kpt.ops.recording() as calls, torch.set_grad_enabled(training):
        outputs = model(**given)
        if training:
            outputs.loss.backward()
    assert kinds(found) == kinds(calls)
    assert {call.served for call in found} == {"triton"}


def test_nothing_is_computed_and_the_default_type_is_as_it_was(tmp_path: Path) -> None:
    model = saved(tmp_path, "llama")
    model.config.update({"hidden_size": 16384, "intermediate_size": 65536, "num_hidden_layers": 2, "vocab_size": 128})
    model.config.save_pretrained(tmp_path)  # 17 GB of weights
    before = kpt.ops.counters()
    calls = models.calls_of(str(tmp_path), 1, 4096, "conservative", False, None)
    assert kpt.ops.counters() == before
    assert torch.get_default_dtype() is torch.float32
    assert {call.op for call in calls} == {"rms_norm", "flash_attention"}
    assert {call.arguments[0].dtype for call in calls} == {torch.bfloat16}, "where its config does not say"


def test_the_command_tunes_them_most_time_first(tune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, "llama")
    asked: list[Any] = []
    monkeypatch.setattr(run, "_tuned", lambda instance, *_: asked.append(instance) or refused())
    words = ("run", "--model", str(tmp_path), "--target", "nvidia-h200", "--dtype", "bf16", "--json")
    done = tune(*words, "--batch", "2", "--length", "4096")
    assert done.code == 1, done.err
    assert {i.kernel.name for i in asked} >= {"rms_norm_fwd", "flash_attention_fwd", "gated_act_fwd"}
    assert asked[0].kernel.name == "flash_attention_fwd", "takes the most time"
    assert len(json.loads(done.out)["failures"]) == len(asked)
    assert dict(next(i for i in asked if i.kernel.name == "rms_norm_fwd").extents.dims) == {"M": 8192, "N": 64}
    asked.clear()
    tune(*words, "--training", "--level", "conservative")
    names = {i.kernel.name for i in asked}
    assert "flash_attention_dkdv" in names
    assert "cross_entropy_bwd" in names
    assert "gated_act_fwd" not in names


def refused() -> None:
    raise RuntimeError("not tuned here")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "{folder}"), "the folder has no config.json"),
        (("--model", "no-one/has-this"), "a name is looked for in the Hugging Face cache and on its hub"),
        (("--model", "{folder}", "--calls", "{folder}/calls.json"), "--model goes without --calls"),
        (("--model", "{folder}", "--op", "rms_norm"), "the folder has no config.json"),
    ],
)
def test_bad_input(words: tuple[str, ...], message: str, tune: Command, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    Calls().save(tmp_path / "calls.json")
    done = tune("run", "--target", "nvidia-h200", *[word.format(folder=tmp_path) for word in words])
    assert done.code == 2
    assert message in done.err


def test_what_reads_values_is_refused_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(saved(tmp_path, "llama"))

    def forward(self: Any, input_ids: Any = None, **_: Any) -> Any:
        return float(self.lm_head.weight.sum())

    monkeypatch.setattr(kind, "forward", forward)
    with pytest.raises(kpt.InputError, match=r"could not be run without values .* give them as --calls"):
        models.calls_of(str(tmp_path), 1, 8, "balanced", False, None)
