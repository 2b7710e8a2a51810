"""Whether kernels check their indices on GPUs, where nothing else would notice a bad one. Off by default, and free when off."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

VARIABLE = "KPT_CHECK"
"""The environment variable that, when it is 1, has every launch of the process checked."""

_asked = int(os.environ.get(VARIABLE) == "1")
_lock = Lock()


def is_on() -> bool:
    """Whether launches check their indices now."""
    return _asked > 0


@contextmanager
def checking() -> Iterator[None]:
    """Within the block, kernels on GPUs check indices that are loaded or given with a call, in every thread of the process.

    A launch of such a kernel then waits for it, and raises IndexRangeError for the first index it met that is none; the load or
    store was left out, and the device stays usable. Kernels are compiled anew for it, and cannot be captured in CUDA graphs.
    NumPy and the interpreters always check; Pallas never does. ``KPT_CHECK=1`` in the environment does the same.
    """
    _change(1)
    try:
        yield
    finally:
        _change(-1)


def _change(by: int) -> None:
    global _asked
    from kpt_dsl import configs

    with _lock:
        _asked += by
        configs.changed()  # whoever remembers launches, remembers those of the other kind
