"""How logits are made a chunk at a time: how large one is, and who serves an op that is made of others."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from kpt.ops.backends import BACKENDS
from kpt.ops.devices import tpu
from kpt.ops.linear_act.alignment import is_quicker, is_unaligned
from kpt.ops.linear_act.op import linear_act
from kpt.ops.registry import Implementation, KernelChoice, get
from kpt_dsl.instance import Instance
from kpt_dsl.targets import Target

Calls = list[tuple[str, tuple[Any, ...]]]
"""Of ops, and with what."""

Inner = Callable[..., Calls]
"""Says which calls are made of a chunk."""

MOST_LOGITS = 1 << 26
"""Of a chunk: 128 MiB in half precision. The products of 512 rows with 128256 classes, or of 8192 rows with 8192 classes, fill
a device; all logits of 8192 rows would take 2 GiB."""

LEVEL = 64
"""Chunks are level with tiles of this many rows or columns, as far as there are so many."""


def chunks(extent: int, across: int) -> Iterator[slice]:
    """The parts of a dim, each of at most ``MOST_LOGITS`` logits with all of the other dim, unless ``LEVEL`` of it are more."""
    step = max(LEVEL, MOST_LOGITS // max(1, across) // LEVEL * LEVEL)
    for start in range(0, extent, step):
        yield slice(start, min(start + step, extent))


def level_chunks(extent: int, across: int) -> Iterator[tuple[slice, int]]:
    """The same where rows of ``extent`` are aligned; else each of a multiple of ``LEVEL`` if there are so many: the last one
    begins early for it, and beside it stands how many of its first were in those before."""
    for part in chunks(extent, across):
        missing = (part.start - part.stop) % LEVEL if is_unaligned(extent) else 0
        level = part.stop // LEVEL * LEVEL
        if missing <= part.start:
            yield slice(part.start - missing, part.stop), missing
        elif level == 0:
            yield part, 0
        else:
            yield slice(0, level), 0
            yield slice(part.stop - LEVEL, part.stop), level + LEVEL - part.stop


def logits_of(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Of rows, by PyTorch's product unless kpt's is quicker."""
    if _is_kpts(rows, weight):
        return linear_act(rows, weight, bias)
    return F.linear(rows, weight, bias)


def calls_for(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Calls:
    """Those of ops that ``logits_of`` makes."""
    return [("linear_act", (rows, weight, bias, "none", False))] if _is_kpts(rows, weight) else []


def _is_kpts(rows: torch.Tensor, weight: torch.Tensor) -> bool:
    return rows.itemsize == 2 and tpu(rows) is None and is_quicker(rows.shape[0], *weight.shape)


def implementations(
    run: Callable[..., Any],
    why_not: Callable[..., str | None],
    inner: Inner,
) -> tuple[Implementation, ...]:
    """Those of an op that calls other ops, a chunk at a time: each backend's kernels serve these, or PyTorch does.

    ``inner(*arguments)``: what it calls for the first chunk.
    """
    return tuple(
        Implementation(
            backend.name,
            prepare=lambda *_: run,
            devices=backend.devices,
            why_not=why_not,
            describe=partial(_describe, backend.name, inner),
            package=backend.package,
            record=partial(_record, inner),
            run=lambda _, *arguments: run(*arguments),
        )
        for backend in BACKENDS
    )


def _record(inner: Inner, given: tuple[Any, ...], target: Target | None = None, first: bool = False) -> list[Instance]:
    """The kernels of the first chunk; products of PyTorch's are not ours."""
    return [instance for op, arguments in inner(*given) for instance in get(op).record(arguments, target, first)]


def _describe(backend: str, inner: Inner, arguments: tuple[Any, ...]) -> tuple[KernelChoice, ...]:
    calls = [(next(i for i in get(op).kernels if i.name == backend), given) for op, given in inner(*arguments)]
    return tuple(choice for implementation, given in calls for choice in implementation.describe(given))


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """As (rows, features)."""
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
