"""Whole models with drawn weights, bf16: a forward, and a forward and backward; as they are, replaced by kpt at two levels,
compiled, compiled after replacing, and with Liger's kernels where it knows the model. One of them decodes, too.

Candidates take turns on the same inputs, and with them the floor: what PyTorch multiplies in a run, alone. Beside times stands
how long the host takes to ask for a run, without which nobody tells a quicker device from a quicker host, and what memory a run
takes at its peak beyond the weights.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks import peers, products
from benchmarks.case import Found, Run, Stopping
from benchmarks.report import Picture
from benchmarks.sides import DECODING_SIDES, RIVALS, SIDES, Side
from benchmarks.subjects import SUBJECTS, Subject

TITLE = "Whole models, bf16"

PICTURE = Picture("milliseconds", "ms")

FLOOR = "products alone"

ROUNDS = 12

GIB = 2**30

DECODED, PROMPT, TOKENS, BATCHES = "Llama", 512, 128, (1, 16)
"""Which model decodes so many tokens behind a prompt, for so many entries at once."""

Inputs = Mapping[str, torch.Tensor]

Make = Callable[[Side, Any, Inputs, Subject], Run]
"""Makes a run of a side, a model and its inputs."""


def measure(given: Namespace) -> Found:
    return compared(SUBJECTS, "cuda", ROUNDS, given.only)


def compared(subjects: Mapping[str, Subject], device: str, rounds: int, only: str = "") -> Found:
    """A row a model and what is done with it; DECODED decode besides."""
    rows: list[dict[str, Any]] = []
    modes = ((f"{name}, {mode}", s, *found) for name, s in subjects.items() for mode, found in _modes(name, s).items())
    with Stopping() as cases:
        for case, subject, sides, make in modes:
            if only in case:
                makers = {side: partial(_run, build, subject, make, device) for side, build in sides.items()}
                if "torch" in sides:  # what decodes is compiled, and nobody sees into it
                    makers[FLOOR] = partial(_floor, subject, make, device)
                rows.append(_row(case, makers, device, rounds))
                print(_line(rows[-1]), flush=True)
    failed = sum(side.startswith("kpt") for row in rows for side in row["missing"])
    return Found(rows, failed, picture=PICTURE, stopped=cases.stopped)


def _modes(name: str, subject: Subject) -> dict[str, tuple[Mapping[str, Side], Make]]:
    found: dict[str, tuple[Mapping[str, Side], Make]] = {
        "forward": (SIDES, _forward),
        "forward and backward": (SIDES, _backward),
    }
    if name == DECODED:
        found |= {f"{TOKENS} tokens of {batch} decoded": (DECODING_SIDES, partial(_decode, batch)) for batch in BATCHES}
    return found


def _run(side: Side, subject: Subject, make: Make, device: str) -> Run:
    """A candidate's run. Raises as the model's package, torch.compile and Liger do."""
    torch.manual_seed(0)
    model = subject.build().to(device, torch.bfloat16)
    inputs = subject.inputs(device)
    return make(side, model, inputs, subject)


def _floor(subject: Subject, make: Make, device: str) -> Run:
    return products.alone(_run(SIDES["torch"], subject, make, device))


def _forward(side: Side, model: nn.Module, inputs: Inputs, subject: Subject) -> Run:
    called = side(model.eval())

    def run() -> object:
        with torch.no_grad():
            return _first(called(**inputs, **subject.more))

    return run


def _backward(side: Side, model: nn.Module, inputs: Inputs, subject: Subject) -> Run:
    called = side(model.train())
    labels = {} if subject.labels is None else {subject.labels: inputs[subject.given]}

    def run() -> object:
        found = called(**inputs, **labels, **subject.more)
        loss = _loss(found) if labels else _first(found).float().square().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)
        return loss.detach()

    return run


def _decode(batch: int, side: Side, model: Any, inputs: Inputs, subject: Subject) -> Run:
    """As a server does it: a cache of one size that stays, and what a token takes is one CUDA graph."""
    from transformers import StaticCache

    model = side(model.eval())
    step = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    prompt = inputs[subject.given][:1, :PROMPT].repeat(batch, 1)
    cache = StaticCache(config=model.config, max_cache_len=PROMPT + TOKENS)
    places = torch.arange(PROMPT, PROMPT + TOKENS, device=prompt.device).expand(batch, -1)

    @torch.no_grad()
    def run() -> object:
        cache.reset()
        found, given = model(prompt, past_key_values=cache), []
        for i in range(TOKENS):
            given.append(found.logits[:, -1:].argmax(-1))
            found = step(given[-1], past_key_values=cache, position_ids=places[:, i : i + 1])
        return torch.cat(given, 1)

    return run


def _first(found: Any) -> torch.Tensor:
    tensor: torch.Tensor = found if isinstance(found, torch.Tensor) else found[0]
    return tensor


def _loss(found: Any) -> torch.Tensor:
    """Of models of Transformers by its name, of others the last they give."""
    loss: torch.Tensor = found.loss if hasattr(found, "loss") else found[-1]
    return loss


# ------------------------------------------------------------------ rows
def _row(case: str, makers: Mapping[str, Callable[[], Run]], device: str, rounds: int) -> dict[str, Any]:
    runs, missing = peers.available(makers)
    gib = {name: _peak(run, device) for name, run in runs.items() if name != FLOOR}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            taken[name].append(_milliseconds(run, device))
    host, milliseconds = ({name: _median(each, part) for name, each in taken.items()} for part in (0, 1))
    pairs = ((ours, theirs) for ours, others in RIVALS.items() for theirs in others)
    ratios = {
        f"{ours} / {theirs}": round(milliseconds[theirs] / milliseconds[ours], 3)
        for ours, theirs in pairs
        if ours in milliseconds and theirs in milliseconds
    }
    return {"case": case, "milliseconds": milliseconds, "host": host, "GiB": gib, "times as fast": ratios, "missing": missing}


def _milliseconds(run: Run, device: str) -> tuple[float, float]:
    """Until the host has asked for all of a run, and until all is done."""
    _wait(device)
    start = time.perf_counter()
    run()
    asked = time.perf_counter()
    _wait(device)
    return (asked - start) * 1e3, (time.perf_counter() - start) * 1e3


def _median(each: Sequence[tuple[float, float]], part: int) -> float:
    return round(median(times[part] for times in each), 3)


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
    each = "  ".join(f"{name} {ms:.2f} (host {row['host'][name]:.2f})" for name, ms in row["milliseconds"].items())
    yield f"{row['case']:<30} {each}  | {'  '.join(f'{pair}: {ratio}' for pair, ratio in row['times as fast'].items())}"
    yield from (f"{'':<30} missing: {name}: {why}" for name, why in row["missing"].items())
