"""CUDA graphs that are being captured: by the present thread, and, which the driver has rules for as well, by another one."""

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import torch

_RELAXED = 2
"""``CU_STREAM_CAPTURE_MODE_RELAXED``, ``hipStreamCaptureModeRelaxed``."""


def is_capturing() -> bool:
    """Whether what the present thread starts now is captured, and not run."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


@contextlib.contextmanager
def relaxed() -> Iterator[None]:
    """Within the block, the present thread may do what would end a capture that goes on in another thread (CUDA driver API,
    ``cuThreadExchangeStreamCaptureMode``)."""
    exchange = _exchange() if torch.cuda.is_available() else None
    mode = ctypes.c_int(_RELAXED)
    if exchange is not None:
        exchange(ctypes.byref(mode))
    try:
        yield
    finally:
        if exchange is not None:
            exchange(ctypes.byref(mode))


def _exchange() -> Any:
    """The driver's function; None where it has none."""
    library, name = (
        ("libamdhip64.so", "hipThreadExchangeStreamCaptureMode")
        if torch.version.hip
        else ("libcuda.so.1", "cuThreadExchangeStreamCaptureMode")
    )
    try:
        return getattr(ctypes.CDLL(library), name)
    except (OSError, AttributeError):
        return None
