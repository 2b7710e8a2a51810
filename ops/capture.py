"""Loading a kernel while another thread captures a CUDA graph, which the driver refuses unless the loading thread asks otherwise."""

import contextlib
import ctypes
from collections.abc import Iterator

import torch

_RELAXED = 2
"""``CU_STREAM_CAPTURE_MODE_RELAXED``, ``hipStreamCaptureModeRelaxed``."""


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


def _exchange() -> "ctypes._FuncPointer | None":  # type: ignore[name-defined]
    library, name = (
        ("libamdhip64.so", "hipThreadExchangeStreamCaptureMode")
        if torch.version.hip
        else ("libcuda.so.1", "cuThreadExchangeStreamCaptureMode")
    )
    try:
        return getattr(ctypes.CDLL(library), name)  # type: ignore[no-any-return]
    except (OSError, AttributeError):
        return None
