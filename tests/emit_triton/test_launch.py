"""The short way to launch: what it hands to the driver is what Triton's own launcher hands over. No GPU is needed."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kpt_dsl.emit.triton.abi import Descriptor, Extent, Pointer, Stride
from kpt_dsl.instance import Instance
from kpt_dsl.runtime import triton_launch
from kpt_dsl.runtime.triton_launch import Described, Launch
from tests.emit_triton.kernels import linear, softmax
from tests.emit_triton.support import normal, source


class _Recorder:
    """In place of the driver's C function."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *arguments: Any) -> None:
        self.calls.append(arguments)


def _launcher(record: _Recorder) -> Any:
    """Triton's launcher object for CUDA, as a loaded kernel has it."""
    from triton.backends.nvidia.driver import CudaLauncher

    launcher = CudaLauncher.__new__(CudaLauncher)
    launcher.launch = record
    for name in (
        "global_scratch_size",
        "profile_scratch_size",
        "launch_cooperative_grid",
        "launch_pdl",
        "gsan_enabled",
    ):
        setattr(launcher, name, 0)
    launcher.global_scratch_align = launcher.profile_scratch_align = launcher.num_ctas = 1
    launcher.arg_annotations, launcher.kernel_signature = ["annotations"], b"signature"
    return launcher


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import driver

    monkeypatch.setattr(
        driver, "_active", SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda _: 77), raising=False
    )
    monkeypatch.setattr(torch.cuda, "device", lambda _: __import__("contextlib").nullcontext())
    properties = SimpleNamespace(
        multi_processor_count=3, warp_size=32, shared_memory_per_multiprocessor=200_000, regs_per_multiprocessor=65_536,
        max_threads_per_multi_processor=2048,
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)


def _plain(call: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(tuple(x) if isinstance(x, list) else x for x in call)


@pytest.mark.usefixtures("driver")
def test_the_short_way_passes_what_tritons_launcher_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    record = _Recorder()
    kernel = SimpleNamespace(run=_launcher(record), function=5, packed_metadata=(4, 1, 1024), name="k")
    short = triton_launch.starter(kernel)
    monkeypatch.setattr(triton_launch, "_SHORT", {})
    ordinary = triton_launch.starter(kernel)
    short(9, 77, [1, 2.5, 3])
    ordinary(9, 77, [1, 2.5, 3])
    first, second = map(_plain, record.calls)
    assert first == second
    assert 9 in first and 77 in first


@pytest.mark.usefixtures("driver")
def test_a_launch_passes_addresses_scalars_and_the_instances_numbers() -> None:
    x = normal(37, 760, dtype="bf16")
    out = torch.empty_like(x)
    instance = Instance.bind(softmax, {"x": x, "out": out})
    record = _Recorder()
    kernel = SimpleNamespace(run=_launcher(record), function=5, packed_metadata=(4, 1, 0), name="softmax")
    made = source(instance, block_M=4, num_warps=4)
    Launch(instance, made, kernel, 0)(x, out)
    (call,) = record.calls
    values = call[-1] if isinstance(call[-1], list) else call[-5:]
    assert [type(a) for a in made.abi.arguments] == [Pointer, Pointer, Extent, Stride, Stride]
    assert list(values) == [x.data_ptr(), out.data_ptr(), 37, 760, 760]
    assert call[:3] == (10, 1, 1)


@pytest.mark.usefixtures("driver")
def test_a_persistent_launch_has_as_many_programs_as_run_at_a_time_and_describes_its_tensors() -> None:
    arguments = {
        "x": normal(512, 256, dtype="bf16"), "weight": normal(512, 256, dtype="bf16"), "bias": None,
        "y": normal(512, 512, dtype="bf16"), "activation": None,
    }  # fmt: skip
    instance = Instance.bind(linear, arguments)
    knobs = dict(block_M=64, block_N=64, block_K=32, num_warps=4, descriptors=True, persistent=True)
    made = source(instance, **knobs)
    record = _Recorder()
    metadata = SimpleNamespace(num_warps=4, shared=1000)
    kernel = SimpleNamespace(
        run=_launcher(record), function=5, packed_metadata=(4, 1, 1000), name="linear", metadata=metadata, n_regs=128
    )
    Launch(instance, made, kernel, 0)(*arguments.values())
    (call,) = record.calls
    assert call[0] == 3 * 4  # 128 threads of 128 registers: four blocks share the registers of each of three cores
    described = [v for v in (call[-1] if isinstance(call[-1], list) else call) if isinstance(v, Described)]
    assert [d.block_shape for d in described] == [
        list(a.block) for a in made.abi.arguments if isinstance(a, Descriptor)
    ]
    assert described[0].base is arguments["x"]
    assert (described[0].shape, described[0].strides) == ([512, 256], [256, 1])


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("current", [0, 1])
def test_pytorchs_question_for_the_current_device_goes_to_c(current: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import driver

    monkeypatch.setattr(driver._active, "get_current_device", torch.cuda.current_device)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: current, raising=False)
    instance = Instance.of_shapes(softmax, dict(M=4, N=8), dict(x="bf16", out="bf16"))
    kernel = SimpleNamespace(run=_launcher(_Recorder()), function=5, packed_metadata=(4, 1, 0), name="softmax")
    parts = Launch(instance, source(instance, block_M=4, num_warps=4), kernel, 0).parts()
    assert parts.current_device() == current


@pytest.mark.usefixtures("driver")
def test_nothing_is_launched_for_no_rows() -> None:
    instance = Instance.of_shapes(softmax, dict(M=0, N=8), dict(x="bf16", out="bf16"))
    record = _Recorder()
    kernel = SimpleNamespace(run=_launcher(record), function=5, packed_metadata=(4, 1, 0), name="softmax")
    Launch(instance, source(instance, block_M=4, num_warps=4), kernel, 0)(torch.empty(0, 8), torch.empty(0, 8))
    assert record.calls == []


def test_of_a_dim_that_is_the_same_all_over_the_first_is_described() -> None:
    """A tensor map has no step of no bytes."""
    bias = torch.empty(64).expand(200, 64)
    described = triton_launch.describer([200, 64], list(bias.stride()), [16, 64])(bias)
    assert (described.shape, described.strides) == ([1, 64], [16, 1])
    described = triton_launch.describer([200, 64], [64, 1], [16, 64])(bias.contiguous())
    assert (described.shape, described.strides) == ([200, 64], [64, 1])
