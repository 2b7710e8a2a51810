"""What ops ask of a device before they launch anything."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import torch

from kpt_dsl.errors import KptError
from kpt_dsl.runtime import runtime, xla
from kpt_dsl.targets import Target

UNKNOWN = 132
"""Multiprocessors where there is no device to ask, for instances that are only recorded: those of an H100 or H200."""

NO_FLOAT16 = "TPUs do not compute in float16: give bfloat16 or float32"

_tpu: ContextVar[Target | None] = ContextVar("kpt_tpu", default=None)


@contextmanager
def of_target(target: Target | None) -> Iterator[None]:
    """Within the block tensors without memory stand for what lies on a target; what that changes is known of TPUs."""
    token = _tpu.set(target if target is not None and target.backend == "pallas" else None)
    try:
        yield
    finally:
        _tpu.reset(token)


def tpu(tensor: torch.Tensor) -> Target | None:
    """The TPU that a tensor lies on, or for which tensors without memory stand here; or None."""
    return _tpu.get() if not xla.is_xla(tensor) else _target([tensor])


def _target(tensors: Sequence[torch.Tensor]) -> Target:
    found: Target = runtime("pallas").target(dict(enumerate(tensors)))
    return found


def why_no_tpu(tensors: Sequence[torch.Tensor]) -> str | None:
    """Why no kernel runs on tensors where they are, for a reason that PyTorch/XLA has; or None."""
    kind = xla.kind(dict(enumerate(tensors)))
    if kind is None:
        return None
    try:
        xla.check_packages(tensors[0].device.type)
        _target(tensors)
    except KptError as error:
        return str(error)
    return NO_FLOAT16 if kind != xla.CPU and any(t.dtype == torch.float16 for t in tensors) else None


def multiprocessors(tensor: torch.Tensor) -> int:
    """How many multiprocessors (compute units of AMD, cores of a TPU) the device of a tensor has."""
    if (target := tpu(tensor)) is not None:
        return target.cores
    device = tensor.device
    return _of_gpu(device) if device.type == "cuda" else UNKNOWN


@lru_cache(maxsize=64)
def _of_gpu(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
