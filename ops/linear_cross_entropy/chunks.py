"""How logits are made a chunk at a time: how large one is, and who serves an op that is made of others."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from kpt.ops.backends import BACKENDS
from kpt.ops.devices import tpu
from kpt.ops.linear_act.alignment import is_unaligned
from kpt.ops.registry import Implementation, KernelChoice, get
from kpt_dsl.instance import Instance
from kpt_dsl.targets import Target

Inner = Callable[..., tuple[str, tuple[Any, ...]]]
"""Says which op is called first, and with what."""

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


def level_chunks(weight: torch.Tensor, rows: int) -> Iterator[tuple[slice, int]]:
    """The parts of the classes of a weight. If it should be ``level``, each is of a multiple of ``LEVEL`` where there are so
    many: the last one begins early for it, and beside it stands how many of its first were in those before."""
    classes = weight.shape[0]
    for part in chunks(classes, rows):
        missing = (part.start - part.stop) % LEVEL if classes != level_classes(weight) else 0
        even = part.stop // LEVEL * LEVEL
        if missing <= part.start:
            yield slice(part.start - missing, part.stop), missing
        elif even == 0:
            yield part, 0
        else:
            yield slice(0, even), 0
            yield slice(part.stop - LEVEL, part.stop), even + LEVEL - part.stop


def level(of_classes: torch.Tensor) -> torch.Tensor:
    """A weight or a bias with zeros for more classes, where there are to be ``level_classes``."""
    more = level_classes(of_classes) - of_classes.shape[0]
    return F.pad(of_classes, (*(0, 0) * (of_classes.ndim - 1), 0, more)) if more else of_classes


def level_classes(of_classes: torch.Tensor) -> int:
    """With how many classes rows of logits in half precision are aligned: else PyTorch's products take several times as long
    (``kpt.ops.linear_act.alignment``)."""
    classes = of_classes.shape[0]
    is_odd = of_classes.itemsize == 2 and tpu(of_classes) is None and is_unaligned(classes)
    return classes + -classes % LEVEL if is_odd else classes


def implementations(
    run: Callable[..., Any],
    why_not: Callable[..., str | None],
    inner: Inner,
) -> tuple[Implementation, ...]:
    """Those of an op that calls other ops, a chunk at a time: each backend's kernels serve these, or PyTorch does.

    ``inner(*arguments)``: an op that it calls, and with what, for the first chunk.
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
    """The kernels of the first chunk; its products are not ours."""
    op, arguments = inner(*given)
    return get(op).record(arguments, target, first)


def _describe(backend: str, inner: Inner, arguments: tuple[Any, ...]) -> tuple[KernelChoice, ...]:
    op, given = inner(*arguments)
    return next(i for i in get(op).kernels if i.name == backend).describe(given)


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """As (rows, features)."""
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
