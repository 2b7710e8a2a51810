"""Running a kernel on torch tensors of the CPU by each backend: NumPy, and what is made for GPUs and TPUs, interpreted."""

from typing import Any

import kpt_dsl as kd

BACKENDS = ("numpy", "triton", "pallas")


def run(kernel: kd.Kernel, backend: str, *arguments: Any, **config: Any) -> None:
    """Call a kernel; outputs are written in place. ``config``: knobs that are not left to the rule."""
    kernel(*arguments, backend=backend, config=config or None)
