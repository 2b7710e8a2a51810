"""Whole models of Transformers with drawn weights, bf16: a forward, and a forward and backward; as they are, replaced by kpt,
compiled, compiled after replacing, and with Liger's kernels where it knows the model.

Candidates take turns on the same inputs. Beside times stands what memory a run takes at its peak beyond the weights.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch

from benchmarks import peers
from benchmarks.case import Found, Run
from benchmarks.report import Picture
from kpt import replace_modules

TITLE = "Whole models, bf16"

PICTURE = Picture("milliseconds", "ms")

ROUNDS = 12

GIB = 2**30


class Subject(NamedTuple):
    """A model by its class in Transformers and what its config is given, and the inputs: ``batch`` entries of ``length``
    tokens, or images where that is None."""

    model: str
    sizes: Mapping[str, Any]
    batch: int
    length: int | None

    @property
    def is_causal(self) -> bool:
        """Whether it is trained to foretell the next token."""
        return "LM" in self.model


SUBJECTS: Mapping[str, Subject] = {
    "Llama": Subject("LlamaForCausalLM", {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 32000,
    }, 4, 2048),
    "Qwen3": Subject("Qwen3ForCausalLM", {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 16, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32000,
    }, 4, 2048),
    "Gemma2": Subject("Gemma2ForCausalLM", {
        "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 8, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 32000,
    }, 4, 2048),
    "GPT-2": Subject("GPT2LMHeadModel", {}, 8, 1024),
    "BERT": Subject("BertModel", {}, 32, 512),
    "ViT": Subject("ViTModel", {}, 64, None),
}  # fmt: skip
"""Sizes that are not given are those of the class, as of GPT-2 small, BERT base and ViT-B/16."""


def measure(given: Namespace) -> Found:
    return compared(SUBJECTS, "cuda", ROUNDS, given.only)


def compared(subjects: Mapping[str, Subject], device: str, rounds: int, only: str = "") -> Found:
    """Two rows a model."""
    rows = []
    for name, subject in subjects.items():
        for mode, make in (("forward", _forward), ("forward and backward", _backward)):
            case = f"{name}, {mode}"
            if only in case:
                makers = {side: partial(_run, side, subject, make, device) for side in SIDES}
                rows.append(_row(case, makers, device, rounds))
                print(_line(rows[-1]), flush=True)
    return Found(rows, sum("kpt" in row["missing"] for row in rows), picture=PICTURE)


def _run(side: str, subject: Subject, make: Callable[..., Run], device: str) -> Run:
    """A candidate's run. Raises as Transformers, torch.compile and Liger do."""
    torch.manual_seed(0)
    model, inputs = _built(subject, device)
    return make(SIDES[side](model), inputs, subject)


def _built(subject: Subject, device: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    import transformers

    kind = getattr(transformers, subject.model)
    config = kind.config_class(**subject.sizes)
    model = kind(config).to(device, torch.bfloat16).eval()
    if subject.length is None:
        size = (subject.batch, config.num_channels, config.image_size, config.image_size)
        return model, {"pixel_values": torch.randn(size, device=device, dtype=torch.bfloat16)}
    tokens = torch.randint(config.vocab_size, (subject.batch, subject.length), device=device)
    return model, {"input_ids": tokens}


def _forward(model: Callable[..., Any], inputs: dict[str, torch.Tensor], subject: Subject) -> Run:
    more = {"use_cache": False} if subject.is_causal else {}

    def run() -> object:
        with torch.no_grad():
            return model(**inputs, **more)[0]

    return run


def _backward(model: Any, inputs: dict[str, torch.Tensor], subject: Subject) -> Run:
    more = {"use_cache": False, "labels": inputs["input_ids"]} if subject.is_causal else {}

    def run() -> object:
        found = model(**inputs, **more)
        loss = found.loss if subject.is_causal else found[0].float().square().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)
        return loss.detach()

    return run


# ------------------------------------------------------------------ who is measured
def _kpt(model: torch.nn.Module) -> Any:
    replace_modules(model)
    return model


def _compiled(model: torch.nn.Module) -> Any:
    return torch.compile(model)


def _liger(model: torch.nn.Module) -> Any:
    """Raises ImportError where Liger is not installed, and KeyError for a model that it does not know."""
    from liger_kernel.transformers import monkey_patch

    kind = model.config.model_type
    if kind not in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise KeyError(f"Liger has no kernels for {kind}")
    monkey_patch._apply_liger_kernel_to_instance(model=model)
    return model


SIDES: Mapping[str, Callable[[torch.nn.Module], Any]] = {
    "torch": lambda model: model,
    "kpt": _kpt,
    "Liger": _liger,
    "Inductor": _compiled,
    "kpt, Inductor": lambda model: _compiled(_kpt(model)),
}


# ------------------------------------------------------------------ rows
def _row(case: str, makers: Mapping[str, Callable[[], Run]], device: str, rounds: int) -> dict[str, Any]:
    runs, missing = peers.available(makers)
    gib = {name: _peak(run, device) for name, run in runs.items()}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            taken[name].append(_milliseconds(run, device))
    milliseconds = {name: round(median(each), 3) for name, each in taken.items()}
    pairs = ((ours, theirs) for ours, others in RIVALS.items() for theirs in others)
    ratios = {
        f"{ours} / {theirs}": round(milliseconds[theirs] / milliseconds[ours], 3)
        for ours, theirs in pairs
        if ours in milliseconds and theirs in milliseconds
    }
    return {"case": case, "milliseconds": milliseconds, "GiB": gib, "times as fast": ratios, "missing": missing}


RIVALS = {"kpt": ("torch", "Liger"), "kpt, Inductor": ("Inductor",)}


def _milliseconds(run: Run, device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return (time.perf_counter() - start) * 1e3


def _peak(run: Run, device: str) -> float | None:
    """Of a run that is warm, in GiB beyond what lies there before; None where nobody counts."""
    if device != "cuda":
        return None
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / GIB, 3)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _line(row: Mapping[str, Any]) -> str:
    return "\n".join(_lines(row))


def _lines(row: Mapping[str, Any]) -> Iterator[str]:
    each = "  ".join(f"{name} {ms:.2f}" for name, ms in row["milliseconds"].items())
    yield f"{row['case']:<30} {each}  | {'  '.join(f'{pair}: {ratio}' for pair, ratio in row['times as fast'].items())}"
    yield from (f"{'':<30} missing: {name}: {why}" for name, why in row["missing"].items())
