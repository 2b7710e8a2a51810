"""Launches as on an H200 where there is none: kernels are not compiled, and starting one calls a function of the test's."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kpt_dsl import targets
from kpt_dsl.build import triton as build
from kpt_dsl.runtime import triton, triton_launch
from kpt_dsl.runtime.triton_launch import Start

H200 = targets.get("nvidia-h200")


def started_by(function: Callable[[int, int, Sequence[Any]], object]) -> Start:
    """A kernel that calls a function with the number of programs, the stream and the values when it is started."""
    return Start(lambda programs, _, __, stream, values: function(programs, stream, values), (), spread=False)


def does_nothing(*_: object) -> None:
    """What a kernel does that leaves everything as it is."""


@contextmanager
def pretended(
    monkeypatch: pytest.MonkeyPatch, start: Callable[[str], Start] = lambda _: started_by(does_nothing)
) -> Iterator[list[int]]:
    """Tensors of the CPU are launched on as those of device 0. ``start`` gives, for the name of a kernel, what starts it.

    Gives a list of the device that is current.
    """
    current = [0]
    active = SimpleNamespace(get_current_device=lambda: current[0], get_current_stream=lambda _: 0)

    @contextmanager
    def device(number: int) -> Iterator[None]:
        before, current[0] = current[0], number
        yield
        current[0] = before

    properties = SimpleNamespace(
        warp_size=32, shared_memory_per_multiprocessor=233472, regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048, multi_processor_count=132,
    )  # fmt: skip
    monkeypatch.setattr(build, "binary", lambda source, *_: SimpleNamespace(
        name=source.name, source=source, n_regs=128, metadata=SimpleNamespace(num_warps=4, shared=1000)
    ))  # fmt: skip
    monkeypatch.setattr(triton, "present", lambda _: H200)
    monkeypatch.setattr(triton_launch, "starter", lambda kernel: start(kernel.name))
    monkeypatch.setattr(triton_launch, "triton_package", lambda: SimpleNamespace(
        runtime=SimpleNamespace(driver=SimpleNamespace(active=active))
    ))  # fmt: skip
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    caches = (triton._prepared, triton._made)
    for cache in caches:
        cache.cache_clear()
    yield current
    for cache in caches:
        cache.cache_clear()
