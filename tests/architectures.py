"""Every architecture of Transformers that builds from a tiny config: what it computes replaced, and before.

    python -m tests.architectures               # all of them: minutes
    python -m tests.architectures llama gemma4  # these, each case in a line

A replaced model is equal, or refuses by an error of kpt's; exits with 1 where one is neither.
"""

import copy
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from importlib import import_module
from inspect import getsource, signature
from multiprocessing import get_context
from typing import Any

import torch

import kpt
from kpt.ops import counters
from kpt.ops.replace.rules import ATTENTION
from kpt_dsl.errors import KptError

os.environ.setdefault("HF_HUB_OFFLINE", "1")

TOKENS = 11
KEPT = 3
"""How many logits are kept where a model is asked for some only."""

SIZES: dict[str, Any] = {
    64: ("hidden_size d_model n_embd dim embed_dim encoder_hidden_size decoder_hidden_size projection_dim hidden_dim d_embed "
         "embedding_size emb_dim model_dim text_embed_dim conv_dim_out audio_hidden_size text_hidden_size out_hidden_size "
         "adapter_input_size condition_dim"),
    96: "intermediate_size d_ff ffn_dim encoder_ffn_dim decoder_ffn_dim d_inner n_inner ffn_hidden_size mlp_dim",
    2: ("num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_decoder_layers num_encoder_layers "
        "depth moe_topk num_experts_per_tok num_selected_experts top_k_experts n_group topk_group num_blocks"),
    4: ("num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_local_experts "
        "num_experts n_routed_experts sliding_window attention_window window_size index_topk index_n_heads index_topk_blocks "
        "index_block_size num_query_tokens num_queries index_kpool num_windows expert_ffn_hidden_size num_kv_shared_layers"),
    32: "image_size moe_intermediate_size q_lora_rank expert_dim",
    12: "v_head_dim",
    16: "head_dim global_head_dim kv_lora_rank index_head_dim d_kv qk_head_dim",
    8: "patch_size hidden_size_per_layer_input qk_rope_head_dim qk_nope_head_dim",
    128: ("vocab_size max_position_embeddings n_positions n_ctx vocab_size_per_layer_input entity_vocab_size text_vocab_size "
          "codebook_size vision_vocab_size audio_vocab_size"),
    1: "first_k_dense_replace n_shared_experts num_nextn_predict_layers",
}  # fmt: skip
NAMED = {name: size for size, names in SIZES.items() for name in names.split()}
"""Settings of configs, and the small value that they get."""


_SHARING = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "gemma4_text": _SHARING,
    "gemma4_unified_text": _SHARING,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "ministral": {"head_dim": 16},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "longcat_flash": {"ffn_hidden_size": 96},
}
"""What one type needs besides."""


@dataclass
class Verdict:
    """What became of an architecture. ``cases``: case -> "equal", "refused: why", "WRONG: by how much", "failed: why"."""

    name: str
    built: bool
    note: str = ""
    replaced: bool = False
    cases: dict[str, str] = field(default_factory=dict)
    served: int = 0
    fallbacks: int = 0

    @property
    def word(self) -> str:
        """The worst of its cases, in a word; "left alone" where its attention was not replaced, and equal."""
        if not self.built:
            return "not built"
        words = {text.partition(":")[0] for text in self.cases.values()}
        word = next((word for word in ("WRONG", "failed", "refused", "equal") if word in words), "no case")
        return "left alone" if word == "equal" and not self.replaced else word


def names() -> list[str]:
    """All model types that Transformers knows."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return sorted(CONFIG_MAPPING_NAMES)


def judge(name: str) -> Verdict:
    """Build an architecture, and compare the replaced model with itself before, case by case."""
    import transformers

    transformers.logging.set_verbosity(50)
    torch.manual_seed(20)
    try:
        model = build(name)
    except Exception as error:
        return Verdict(name, False, _in_a_line(error))
    verdict = Verdict(name, True)
    try:
        _compare(model, verdict)
    except Exception as error:  # said here: not every error of Transformers' survives the way to another process
        verdict.cases["replacing"] = f"failed: {_in_a_line(error)}"
    return verdict


def _compare(model: Any, verdict: Verdict) -> None:
    replaced = copy.deepcopy(model)
    report = kpt.replace_modules(replaced)
    verdict.replaced = any(c.kind == ATTENTION for c in report.changes)
    left = sorted({s.reason for s in report.skipped if s.kind == ATTENTION})
    verdict.note = "; ".join(left) or ("" if verdict.replaced else "no attention of Transformers'")
    before = counters()["flash_attention"]
    for case, call in cases(model):
        try:
            torch.manual_seed(20)
            expected = flat(call(model))
        except Exception as error:
            verdict.note += f" [{case}: the model itself fails: {_in_a_line(error)}]"
            continue
        if not expected or not all(t.isfinite().all() for t in expected):
            continue
        try:
            torch.manual_seed(20)
            got = flat(call(replaced))
        except KptError as error:
            verdict.cases[case] = f"refused: {_in_a_line(error)}"
            continue
        except Exception as error:
            verdict.cases[case] = f"failed: {_in_a_line(error)}"
            continue
        off = max((_off(a, b) for a, b in zip(got, expected, strict=True)), default=0.0)
        verdict.cases[case] = "equal" if off < (3e-2 if "autocast" in case else 1e-3) else f"WRONG: off by {off:.2g}"
    after = counters()["flash_attention"]
    verdict.served = sum(after["served"].values()) - sum(before["served"].values())
    verdict.fallbacks = sum(after["fallbacks"].values()) - sum(before["fallbacks"].values())


def build(name: str) -> Any:
    """A model of random weights, in eval mode, that runs sdpa where it can."""
    import transformers
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = tiny(CONFIG_MAPPING[name])
    for mapping in (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING,
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        auto.MODEL_MAPPING,
    ):
        kind = mapping.get(type(config), None)
        kinds = [k for k in (kind if isinstance(kind, tuple) else [kind]) if k is not None]
        if kinds:
            return _filled(kinds[0](config))
    modelling = import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    for kind in vars(modelling).values():  # parts of larger models, which no mapping has
        if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
            continue
        named = (
            kind.__name__.endswith(("Model", "Encoder", "Decoder", "Transformer")) and "PreTrained" not in kind.__name__
        )
        if named and kind.config_class is type(config):
            return _filled(kind(config))
    raise ValueError(f"transformers {transformers.__version__} has no model for it that these tests run")


def _filled(model: Any) -> Any:
    """The model in eval mode, with weights that let every part of it matter."""
    if sum(p.numel() for p in model.parameters()) > 60_000_000:
        raise ValueError("the tiny config is not tiny")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.ndim > 1:
                parameter.normal_(0.0, 0.1)
    return model.eval()


def tiny(kind: type) -> Any:
    """A config with everything small."""
    return kind(**_small(kind, kind()))


def _small(kind: type, config: Any) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    given = {key: value for key, value in vars(config).items() if not key.startswith("_")}
    for key, value in given.items():
        if hasattr(value, "to_dict"):
            changes[key] = {"model_type": value.model_type, **_small(type(value), value)}
        elif key in NAMED and isinstance(value, int) and not isinstance(value, bool) and value > 0:
            changes[key] = min(value, NAMED[key])
    for key in [k for k in given if k in ("num_key_value_heads", "num_kv_heads", "multi_query_group_num")]:
        if given[key] is not None:
            fewer = given[key] < given.get("num_attention_heads", given.get("n_head", given[key]))
            changes[key] = 2 if fewer else 4
    if isinstance(given.get("layer_types"), list):
        kinds = list(dict.fromkeys(given["layer_types"]))
        kinds = kinds * 2 if len(kinds) == 1 else kinds
        changes |= {"layer_types": kinds, "num_hidden_layers": len(kinds)}
        for key in [k for k in given if k in ("mlp_layer_types", "indexer_types")]:
            if isinstance(given[key], list):
                changes[key] = given[key][-len(kinds) :]
    if given.get("qk_rope_head_dim") is not None and given.get("head_dim") == given["qk_rope_head_dim"]:
        changes["head_dim"] = NAMED["qk_rope_head_dim"]
    if "rope_parameters" in given and "mrope_section" in _modelling_code(kind):
        rotary = given["rope_parameters"] or {"rope_type": "default", "rope_theta": 10000.0}
        half = int(8 * (rotary.get("partial_rotary_factor") or given.get("partial_rotary_factor") or 1))
        changes["rope_parameters"] = rotary | {"mrope_section": [half - 2 * (half // 3), half // 3, half // 3]}
    changes |= SPECIAL.get(kind.model_type, {})
    changes |= {key: 0 for key in ("pad_token_id",) if key in given}
    changes |= {
        key: 1 for key in ("bos_token_id", "decoder_start_token_id") if key in given and isinstance(given[key], int)
    }
    changes |= {key: 2 for key in ("eos_token_id",) if key in given and isinstance(given[key], int)}
    return changes


def _modelling_code(kind: type) -> str:
    try:
        return getsource(import_module(kind.__module__.replace(".configuration_", ".modeling_")))
    except ImportError:
        return ""


def cases(model: Any) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Each way to call a model of this kind, by name."""

    given = inputs(model)
    if "input_ids" not in given:
        if given:
            yield next(iter(given)), lambda subject: _without_gradients(subject, given)
        return
    takes = signature(model.forward).parameters
    ids, decoder = given["input_ids"], {name: t for name, t in given.items() if name != "input_ids"}
    right, left = torch.ones_like(ids), torch.ones_like(ids)
    right[1, 6:], left[1, :4] = 0, 0
    masks = (
        {"no mask": None, "right padding": right, "left padding": left}
        if "attention_mask" in takes
        else {"no mask": None}
    )

    def call(subject: Any, mask: torch.Tensor | None = None, **more: Any) -> Any:
        given = {} if mask is None else {"attention_mask": mask}
        with torch.no_grad():
            output = subject(input_ids=ids, **given, **decoder, **more)
        seen = None if mask is None else mask.bool()
        return outputs(output, seen)

    for case, mask in masks.items():
        yield case, lambda subject, mask=mask: call(subject, mask)

    def autocast(subject: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return call(subject, **({"use_cache": False} if "use_cache" in takes else {}))

    yield "autocast", autocast
    if "logits_to_keep" in takes:
        yield "logits to keep", lambda subject: call(subject, logits_to_keep=KEPT)
    if "past_key_values" in takes and not decoder:
        yield "continued", lambda subject: _continued(subject, ids)
    if "use_cache" in takes and not decoder:
        yield "no cache", lambda subject: call(subject, use_cache=False)


def _continued(subject: Any, ids: torch.Tensor) -> Any:
    """A prompt in two parts, then a token."""
    with torch.no_grad():
        first = subject(input_ids=ids[:, :5], use_cache=True)
        second = subject(input_ids=ids[:, 5:10], past_key_values=first.past_key_values, use_cache=True)
        third = subject(input_ids=ids[:, 10:], past_key_values=second.past_key_values, use_cache=True)
    return [outputs(o) for o in (first, second, third)]


def _without_gradients(subject: Any, given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        return outputs(subject(**given))


def inputs(model: Any) -> dict[str, torch.Tensor]:
    """What a model of this kind is called with, by name: tokens, an image or sounds, and what a decoder begins with."""
    takes, config = signature(model.forward).parameters, model.config
    generator = torch.Generator().manual_seed(20)
    if "input_ids" in takes:
        ids = torch.randint(3, 100, (2, TOKENS), generator=generator)
        return {"input_ids": ids} | ({"decoder_input_ids": ids[:, :5]} if "decoder_input_ids" in takes else {})
    size, channels = getattr(config, "image_size", 32), getattr(config, "num_channels", 3)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    mels = getattr(config, "num_mel_bins", 80)
    frames = 2 * getattr(config, "max_source_positions", 64)
    values = {
        "pixel_values": (2, channels, height, width),
        "input_values": (2, 4000),
        "input_features": (2, mels, frames),
    }
    decoder = {"decoder_input_ids": torch.tensor([[1, 5, 7]] * 2)} if "decoder_input_ids" in takes else {}
    for name, shape in values.items():
        if name in takes:
            return {name: torch.randn(shape, generator=generator)} | decoder
    return {}


def outputs(output: Any, seen: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Those that people use, without what stands at padding."""
    found = []
    for name in ("logits", "last_hidden_state", "encoder_last_hidden_state"):
        value = getattr(output, name, None)
        if isinstance(value, torch.Tensor):
            placed = seen is not None and value.ndim == 3
            more = value.shape[1] - seen.shape[1] if placed else -1  # what a model puts behind the tokens
            found.append(value if more < 0 else value[torch.nn.functional.pad(seen, (0, more), value=True)])
    return found


def flat(value: Any) -> list[torch.Tensor]:
    return [t for item in value for t in flat(item)] if isinstance(value, list | tuple) else [value.float()]


def _off(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference beside the largest value."""
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-6)) if a.numel() else 0.0


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:200]


def verdicts(
    wanted: Sequence[str], judge: Callable[[str], Verdict], workers: int = 2, seconds: float = 120.0
) -> Iterator[Verdict]:
    """Of each architecture, from processes of their own: one that crashes takes no other with it."""
    waiting = list(wanted)
    while waiting:
        pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,))
        futures = [(name, pool.submit(judge, name)) for name in waiting]
        for name, future in futures:
            waiting.remove(name)
            try:
                yield future.result(seconds)
            except (BrokenProcessPool, TimeoutError) as error:
                yield Verdict(name, False, f"{type(error).__name__} of its process")
                for process in list((pool._processes or {}).values()):
                    process.kill()
                break
        pool.shutdown(wait=False, cancel_futures=True)


def report(wanted: Sequence[str], judge: Callable[[str], Verdict], cases: bool = False) -> int:
    """Judge architectures; print a line each, what cases are not equal (or all cases), and what they add up to."""
    started, tally = time.monotonic(), Counter[str]()
    for verdict in verdicts(wanted, judge):
        tally[verdict.word] += 1
        counted = f"served {verdict.served:3}, not {verdict.fallbacks:3}"
        print(f"{verdict.word:10} {verdict.name:32} {counted}  {verdict.note[:300]}", flush=True)
        for case, text in verdict.cases.items():
            if cases or not text.startswith("equal"):
                print(f"{'':14}{case:16} {text}", flush=True)
    print(f"{sum(tally.values())} architectures in {time.monotonic() - started:.0f} s:", dict(tally.most_common()))
    return 1 if tally["WRONG"] or tally["failed"] else 0


if __name__ == "__main__":
    sys.exit(report(sys.argv[1:] or names(), judge, cases=len(sys.argv) > 1))
