"""What ops ask of a device before they launch anything."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import torch

from kpt_dsl.targets import Target

UNKNOWN = 132
"""Multiprocessors where there is no device to ask, for instances that are only recorded: those of an H100 or H200."""

_tpu: ContextVar[Target | None] = ContextVar("kpt_tpu", default=None)
tpu = _tpu.get
"""The TPU for which tensors without memory stand here, or None."""


@contextmanager
def of_target(target: Target | None) -> Iterator[None]:
    """Within the block tensors without memory stand for what lies on a target; what that changes is known of TPUs."""
    token = _tpu.set(target if target is not None and target.backend == "pallas" else None)
    try:
        yield
    finally:
        _tpu.reset(token)


def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors (compute units of AMD, cores of a TPU) a device has."""
    if (target := tpu()) is not None:
        return target.cores
    return _of_gpu(device) if device.type == "cuda" else UNKNOWN


@lru_cache(maxsize=64)
def _of_gpu(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
