"""Runs the sentence model as it is, with modules replaced, and restored; tells how each op was served and how they agree."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

import kpt
from demo.sentences import SENTENCES, Encoder, encoder
from kpt.ops.replace import Report


@dataclass(frozen=True)
class Run:
    """One encoding by the replaced model under one preferred implementation.

    ``served``: op -> implementation -> calls. ``difference``: the largest of any element of the unit vectors.
    """

    preferred: str
    sentences: int
    seconds: float
    served: Mapping[str, Mapping[str, int]]
    difference: float


@dataclass(frozen=True)
class Comparison:
    """Cosines of every pair of sentences before and after; ``undone``: the difference after restoring."""

    original: NDArray[np.float64]
    replaced: NDArray[np.float64]
    runs: tuple[Run, ...]
    changes: Report
    undone: float

    @property
    def difference(self) -> float:
        """The largest of any cosine."""
        return float(np.abs(self.original - self.replaced).max())


def compare(device: str, preferred: Mapping[str, int]) -> Comparison:
    """``preferred``: implementation -> how many sentences it encodes; the first must encode all."""
    encode = encoder(device)
    original = encode(SENTENCES)
    changes = kpt.replace_modules(encode.model)
    vectors, runs = zip(*(_run(encode, original, name, count) for name, count in preferred.items()), strict=True)
    kpt.restore_modules(encode.model)
    undone = (encode(SENTENCES) - original).abs().max().item()
    return Comparison(_cosines(original), _cosines(vectors[0]), runs, changes, undone)


def _run(encode: Encoder, original: torch.Tensor, preferred: str, count: int) -> tuple[torch.Tensor, Run]:
    before = _served()
    begun = time.monotonic()
    with kpt.ops.prefer(preferred):  # type: ignore[arg-type]
        vectors = encode(SENTENCES[:count])
    seconds = time.monotonic() - begun
    served = {op: {name: n - before[op].get(name, 0) for name, n in counts.items()} for op, counts in _served().items()}
    difference = (vectors - original[:count]).abs().max().item()
    return vectors, Run(preferred, count, seconds, served, difference)


def _served() -> dict[str, dict[str, int]]:
    return {op: counts["served"] for op, counts in kpt.ops.counters().items()}


def _cosines(vectors: torch.Tensor) -> NDArray[np.float64]:
    wide = vectors.double().cpu().numpy()
    return wide @ wide.T
