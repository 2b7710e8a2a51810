"""A GPU that is none: tensors of the CPU count as its, and launches that are prepared for it start nothing."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from kpt.ops import backends, behind, compiling, while_compiling
from kpt.ops.dispatch import DISPATCHERS
from kpt.ops.registry import OPS
from kpt_dsl import targets
from kpt_dsl.runtime import triton, triton_launch


@contextmanager
def pretended_gpu(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the block, kernels of an H200 serve calls; what is remembered of calls is forgotten before and after."""
    active = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda _: 0)
    properties = SimpleNamespace(
        warp_size=32, shared_memory_per_multiprocessor=233472, regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048, multi_processor_count=132,
    )  # fmt: skip
    patch.setattr(triton, "present", lambda _: targets.get("nvidia-h200"))
    patch.setattr(triton_launch, "starter", lambda _: lambda *_: None)
    patch.setattr(triton_launch, "triton_package", lambda: SimpleNamespace(
        runtime=SimpleNamespace(driver=SimpleNamespace(active=active))
    ))  # fmt: skip
    patch.setattr(torch.cuda, "device", lambda _: nullcontext())
    patch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    patch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    patch.setattr(backends, "_gpu", lambda _: 0)
    for op in OPS.values():
        here = tuple(replace(i, devices=None) if i.name == "triton" else i for i in op.implementations)
        patch.setitem(op.__dict__, "implementations", here)
    patch.setattr(behind, "_asked", behind._Asked())
    _forget()
    try:
        yield
    finally:
        while_compiling("wait")
        compiling._mode = None
        _forget()


def _forget() -> None:
    triton._prepared.cache_clear()
    triton.made.cache_clear()
    backends._found_out.cache_clear()
    for dispatcher in DISPATCHERS.values():
        dispatcher._forget()
        for known in (dispatcher._served, dispatcher._fallbacks, dispatcher._logged):
            known.clear()
