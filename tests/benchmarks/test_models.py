"""Whole models against each other: what is measured of each, on a CPU where nobody is quick."""

import pytest
import torch

from benchmarks import models, report
from benchmarks.models import Subject

TINY = {
    "Llama": Subject("LlamaForCausalLM", {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "vocab_size": 64,
    }, 2, 7),
    "ViT": Subject("ViTModel", {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
        "patch_size": 8,
    }, 2, None),
}  # fmt: skip


def test_rows_of_small_models(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    found = models.compared(TINY, "cpu", 2)
    assert [row["case"] for row in found.rows] == [
        f"{name}, {mode}" for name in TINY for mode in ("forward", "forward and backward")
    ]
    for row in found.rows:
        assert row["milliseconds"].keys() == {"torch", "kpt", "Inductor", "kpt, Inductor"}
        assert row["times as fast"].keys() == {"kpt / torch", "kpt, Inductor / Inductor"}
        assert "Liger" in row["missing"]
    assert len(compiled) == 8
    assert not found.failed
    path = report.write(tmp_path_factory.mktemp("found"), "models", models.TITLE, found.rows, found.picture, found.about)
    assert report.plot(path).stat().st_size
    assert "Llama, forward and backward" in capsys.readouterr().out


def test_sides_start_from_the_same_weights_and_kpt_replaces_its_own() -> None:
    losses = []
    for side in ("torch", "kpt"):
        run = models._run(side, TINY["Llama"], models._backward, "cpu")
        losses.append(run())
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-2, atol=2e-2)
    replaced = models.SIDES["kpt"](models._built(TINY["Llama"], "cpu")[0])
    assert "RMSNorm" in str(replaced) and replaced.config._attn_implementation == "kpt"
