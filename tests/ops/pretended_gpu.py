"""Ops on a GPU that is none: kernels of an H200 serve calls on tensors of the CPU, and launches start nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch

from kpt.ops import backends, behind, compiling, while_compiling
from kpt.ops.dispatch import DISPATCHERS
from kpt.ops.registry import OPS
from tests.no_gpu import pretended


@contextmanager
def pretended_gpu(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the block, tensors of the CPU are a GPU's; what is remembered of calls is forgotten before and after."""
    patch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    patch.setattr(backends, "_gpu", lambda _: 0)
    patch.setattr(backends, "Repeated", partial)
    for op in OPS.values():
        here = tuple(replace(i, devices=None) if i.name == "triton" else i for i in op.implementations)
        patch.setitem(op.__dict__, "implementations", here)
    patch.setattr(behind, "_asked", behind._Asked())
    forget_calls()
    try:
        with pretended(patch):
            yield
    finally:
        while_compiling("wait")
        compiling._mode = None
        forget_calls()


def forget_calls() -> None:
    """Have every op forget how it served calls, and how often."""
    backends._found_out.cache_clear()
    for dispatcher in DISPATCHERS.values():
        dispatcher._forget()
        for known in (dispatcher._served, dispatcher._fallbacks, dispatcher._logged):
            known.clear()
