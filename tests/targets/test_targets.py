"""Targets: found by name and by device, complete, plausible, and open to other packages."""

import math
import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest

from kpt_dsl import targets
from kpt_dsl.errors import TargetError

NAMED = (
    "nvidia-a100", "nvidia-rtx-3090", "nvidia-l4", "nvidia-l40s", "nvidia-rtx-4090", "nvidia-h100", "nvidia-h200",
    "nvidia-b200", "nvidia-rtx-5090", "amd-mi250x", "amd-mi300x", "amd-mi355x", "amd-rx-7900",
    "tpu-v4", "tpu-v5e", "tpu-v5p", "tpu-v6e", "tpu-tpu7x", "cpu",
)  # fmt: skip

ARCHITECTURES = {
    "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx90a", "gfx942", "gfx950", "gfx1100",
    "v4", "v5e", "v5p", "v6e", "tpu7x",
}  # fmt: skip

DEVICES = {
    "NVIDIA A100-SXM4-80GB": "nvidia-a100",
    "NVIDIA L4": "nvidia-l4",
    "NVIDIA L40S": "nvidia-l40s",
    "NVIDIA H100 80GB HBM3": "nvidia-h100",
    "NVIDIA H100 PCIe": "nvidia-h100-pcie",
    "NVIDIA H200": "nvidia-h200",
    "NVIDIA B200": "nvidia-b200",
    "NVIDIA GeForce RTX 5090": "nvidia-rtx-5090",
    "AMD Instinct MI300X": "amd-mi300x",
    "AMD Radeon RX 7900 XTX": "amd-rx-7900",
    "TPU v5 lite": "tpu-v5e",
    "TPU v6 lite": "tpu-v6e",
}


@pytest.fixture(autouse=True)
def _forget_other_packages() -> None:
    targets._all.cache_clear()


def every() -> list[targets.Target]:
    return [targets.get(name) for name in targets.names()]


@pytest.mark.parametrize("name", NAMED)
def test_named_target_exists(name: str) -> None:
    assert targets.get(name).name == name


def test_every_architecture_has_a_device() -> None:
    assert {target.arch for target in every()} >= ARCHITECTURES


@pytest.mark.parametrize(("device", "name"), DEVICES.items())
def test_device_is_recognised_by_its_drivers_name(device: str, name: str) -> None:
    found = targets.of_device(device)
    assert found is not None
    assert found.name == name


def test_unknown_device_has_no_target() -> None:
    assert targets.of_device("NVIDIA Tesla K80") is None


def test_unknown_name_is_refused_with_close_matches_and_all_names() -> None:
    with pytest.raises(TargetError, match=r"unknown target 'nvidia-h20'; did you mean nvidia-h200") as caught:
        targets.get("nvidia-h20")
    assert all(name in str(caught.value) for name in targets.names())


@pytest.mark.parametrize("target", [t for t in every() if t.backend != "numpy"], ids=lambda target: target.name)
def test_peak_rates_are_a_power_of_two_a_clock(target: targets.Target) -> None:
    """A matrix unit does a power of two of operations a clock, so a mistyped rate, clock or count of cores shows."""
    for dtype, flops in target.flops_per_s.items():
        if target.backend == "pallas" and dtype == "f32":
            flops *= 6  # passes of the bf16 unit
        exponent = math.log2(flops / target.cores / target.clock_hz)
        assert abs(exponent - round(exponent)) < 0.05, (dtype, exponent)


@pytest.mark.parametrize("target", [t for t in every() if t.shared_bytes], ids=lambda target: target.name)
def test_gpu_limits_fit_together(target: targets.Target) -> None:
    assert target.shared_bytes + target.reserved_shared_bytes <= target.core_shared_bytes
    assert target.block_threads <= target.core_threads
    assert target.stages[0] == 1
    assert set(target.flops_per_s) - {"tf32"} <= target.dtypes


def test_faster_memory_is_all_that_sets_h200_apart_from_h100() -> None:
    h100, h200 = targets.get("nvidia-h100"), targets.get("nvidia-h200")
    bandwidth = h100.bandwidth_bytes_per_s
    assert replace(h200, name=h100.name, device_names=h100.device_names, bandwidth_bytes_per_s=bandwidth) == h100
    assert h200.bandwidth_bytes_per_s > bandwidth


def test_peak_of_a_type_that_the_matrix_unit_lacks_is_that_of_a_wider_one() -> None:
    a100 = targets.get("nvidia-a100")
    assert a100.peak("f8e4m3") == a100.peak("f16")
    assert a100.matrix_dtype("f32") is None
    assert a100.peak("f32") == a100.vector_flops_per_s


@pytest.mark.parametrize("target", every(), ids=lambda target: target.name)
def test_targets_hash_and_travel_between_processes(target: targets.Target) -> None:
    copy = pickle.loads(pickle.dumps(target))
    assert copy == target
    assert hash(copy) == hash(target)


def _entry(name: str, module: object) -> SimpleNamespace:
    return SimpleNamespace(name=name, load=lambda: module)


def test_another_package_adds_a_target_without_editing_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    npu = replace(targets.get("cpu"), name="acme-npu", backend="acme", device_names=("Acme NPU",))
    offered = {"kpt.targets": [_entry("acme", SimpleNamespace(TARGETS=(npu,)))]}
    monkeypatch.setattr(targets, "entry_points", lambda *, group: offered[group])
    targets._all.cache_clear()
    assert targets.get("acme-npu") is npu
    assert targets.of_device("Acme NPU") is npu


def test_another_package_cannot_replace_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = [_entry("acme", SimpleNamespace(TARGETS=(targets.get("cpu"),)))]
    monkeypatch.setattr(targets, "entry_points", lambda *, group: offered)
    targets._all.cache_clear()
    with pytest.raises(TargetError, match=r"kpt\.targets:acme offers 'cpu'"):
        targets.names()
