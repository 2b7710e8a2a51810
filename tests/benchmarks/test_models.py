"""Whole models against each other: what is measured of each, on a CPU where nobody is quick."""

import json
import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import heads, models, products, report, sides, subjects
from benchmarks.nano_gpt import NanoGPT
from benchmarks.subjects import Subject

ROOT = Path(__file__).parents[2]
RESULTS, DOCS = ROOT / "benchmarks/results/nvidia-h200", ROOT / "docs/replacing-modules.md"

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}

TINY = {
    "Llama": subjects.causal("LlamaForCausalLM", {**SMALL, "num_key_value_heads": 1, "vocab_size": 64}, 2, 7),
    "ViT": subjects.encoder("ViTModel", {**SMALL, "image_size": 16, "patch_size": 8}, "pixel_values", (2, 3, 16, 16)),
    "nanoGPT": Subject(partial(NanoGPT, 1, 2, 32, 7, 64), "tokens", (2, 7), 64, "targets"),
}


def test_rows_of_small_models(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda model, **_: compiled.append(model) or model)
    monkeypatch.setattr(models, "TOKENS", 3)
    found = models.compared(TINY, "cpu", 2)
    both, decoding = ("forward", "forward and backward"), [f"Llama, 3 tokens of {batch} decoded" for batch in (1, 16)]
    assert [row["case"] for row in found.rows] == [
        case for name in TINY for case in [*(f"{name}, {mode}" for mode in both), *decoding * (name == "Llama")]
    ]
    for row in found.rows:
        if row["case"] in decoding:
            assert row["milliseconds"].keys() == sides.DECODING_SIDES.keys()
            continue
        own = {"kpt", "kpt, aggressive"}
        assert row["milliseconds"].keys() == {"torch", "Inductor", "kpt, Inductor", models.FLOOR} | own
        assert all(0 < row["host"][side] <= ms for side, ms in row["milliseconds"].items())
        ratios = {f"{side} / torch" for side in own}
        assert row["times as fast"].keys() == {"kpt, Inductor / Inductor"} | ratios
        assert "Liger" in row["missing"]
    assert len(compiled) == 16
    assert not found.failed
    path = report.write(tmp_path_factory.mktemp("found"), "models", models.TITLE, found.rows, found.picture, found.about)
    assert report.plot(path).stat().st_size
    assert "Llama, forward and backward" in capsys.readouterr().out


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("make", [models._forward, models._backward])
def test_the_floor_is_all_that_is_multiplied_but_in_attention(name: str, make: models.Make) -> None:
    run = models._run(sides.SIDES["torch"], TINY[name], make, "cpu")
    counted = []
    for each in (run, products.alone(run)):
        with FlopCounterMode(display=False) as counter:
            each()
        ops = counter.get_flop_counts()["Global"]
        counted.append({op: flops for op, flops in ops.items() if "attention" not in str(op)})
    assert counted[0] == counted[1]
    assert sum(counted[0].values()) > 0


def test_what_is_stopped_keeps_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def row(case: str, *_: object) -> dict[str, object]:
        if made:
            raise KeyboardInterrupt
        made.append(case)
        return {"case": case, "milliseconds": {}, "times as fast": {}, "missing": {}}

    monkeypatch.setattr(models, "_row", row)
    found = models.compared(TINY, "cpu", 2)
    assert ([r["case"] for r in found.rows], found.stopped, found.failed) == (["Llama, forward"], True, 0)


def test_sides_start_from_the_same_weights_and_kpt_replaces_its_own() -> None:
    losses = [models._run(sides.SIDES[side], TINY["Llama"], models._backward, "cpu")() for side in ("torch", "kpt")]
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-2, atol=2e-2)
    replaced = sides.SIDES["kpt"](TINY["Llama"].build())
    assert "RMSNorm" in str(replaced) and replaced.config._attn_implementation == "kpt"


def test_what_liger_exchanges_in_a_models_file_is_there_for_its_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Liger patches names that all models of a class look up, and with them it would run in its rivals."""
    model, other = TINY["Llama"].build(), TINY["Llama"].build()
    file = sys.modules[type(model).__module__]
    called = []

    def turned(*given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        called.append("Liger's")
        return given[0], given[1]

    liger, transformers_of_liger, patches = (ModuleType(name) for name in ("liger_kernel", "transformers", "monkey_patch"))
    patches.__dict__.update(
        MODEL_TYPE_TO_APPLY_LIGER_FN={"llama": None},
        _apply_liger_kernel_to_instance=lambda model: setattr(file, "apply_rotary_pos_emb", turned),
    )
    transformers_of_liger.__dict__["monkey_patch"] = patches
    monkeypatch.setitem(sys.modules, "liger_kernel", liger)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", transformers_of_liger)
    patched = sides.SIDES["Liger"](model)
    tokens = torch.randint(64, (1, 5))
    other(tokens)
    assert not called
    patched(tokens)
    assert called == ["Liger's"]
    other(tokens)
    assert len(called) == 1


def test_what_is_decoded_is_what_generate_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    monkeypatch.setattr(models, "PROMPT", 5)
    monkeypatch.setattr(models, "TOKENS", 6)
    subject = TINY["Llama"]
    torch.manual_seed(0)
    model, inputs = subject.build(), subject.inputs("cpu")
    expected = model.generate(inputs["input_ids"][:1, :5], max_new_tokens=6, do_sample=False, pad_token_id=0)
    for side in sides.DECODING_SIDES.values():
        run = models._decode(3, side, model, inputs, subject)
        run()
        assert run().tolist() == expected[:, 5:].repeat(3, 1).tolist(), "and once more on the same cache"


def test_the_docs_say_what_was_measured() -> None:
    rows = {row["case"]: row["times as fast"] for row in json.loads((RESULTS / "models.json").read_text())["rows"]}
    models = dict.fromkeys(case.partition(",")[0] for case in rows)
    table = re.findall(r"^\| ([^|]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", DOCS.read_text(), re.MULTILINE)
    assert [name for name, *_ in table] == list(models)
    best: list[list[float]] = []
    for name, *said in table:
        both = [rows[f"{name}, forward"], rows[f"{name}, forward and backward"]]
        eager = [max(times for of, times in row.items() if of.endswith("/ torch")) for row in both]
        compiled = [row["kpt, Inductor / Inductor"] for row in both]
        assert said == [f"{times:.2f}" for times in (*eager, *compiled)]
        best.append(eager)
    (run, trained) = (f"{min(times):.2f} to {max(times):.2f} times as fast" for times in zip(*best, strict=True))
    assert f"nine models\n  run {run} as PyTorch runs them, and train {trained}." in (ROOT / "README.md").read_text()
    assert len(table) == 9


def test_the_docs_say_what_heads_take() -> None:
    taken = {row["case"]: row["microseconds"] for row in json.loads((RESULTS / "heads.json").read_text())["rows"]}
    said = re.findall(r"^\| ([^|]+x[^|]+) \|(.+)\|$", DOCS.read_text(), re.MULTILINE)
    columns = ("kpt", "eager", "Inductor", "Liger", heads.EVEN)
    for (case, numbers), (measured, microseconds) in zip(said, taken.items(), strict=True):
        expected = [f"{microseconds[name] / 1e3:.2f}" if name in microseconds else "-" for name in columns]
        assert (case, numbers.split(" | ")) == (measured, [f" {expected[0]}", *expected[1:-1], f"{expected[-1]} "])
