"""What TorchTPU is handed, which runs where there is a TPU only: an op for each text, by a function that says what it takes."""

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kpt_dsl import targets
from kpt_dsl.emit import Source, emit
from kpt_dsl.instance import Instance
from kpt_dsl.runtime import pallas, torch_tpu, xla
from kpt_dsl.space import space
from tests.jax.kernels import scaled

jax = pytest.importorskip("jax")

Registered = list[tuple[str, Any]]


class OnTpu:
    """As much of a tensor of TorchTPU as a launch asks for."""

    device, dtype = SimpleNamespace(type="tpu"), torch.float32

    def __init__(self, value: float) -> None:
        self.value = value

    def copy_(self, value: float) -> None:
        self.value = value


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Registered:
    """What became ops; each gives the sum of its numbers twice."""
    found: Registered = []

    def jax_op(name: str, function: Any) -> Any:
        found.append((name, function))
        return lambda *given: [sum(a.value if isinstance(a, OnTpu) else a for a in given)] * 2

    tpu = SimpleNamespace(pallas=SimpleNamespace(jax_op=jax_op), get_device_name=lambda: "TPU v6e")
    monkeypatch.setattr(torch, "tpu", tpu, raising=False)
    monkeypatch.setattr(torch_tpu, "_operators", {})
    return found


@pytest.fixture
def source() -> Source:
    """A kernel of two inputs, a number, and two outputs."""
    m, n = torch.empty(8, 128, device="meta"), torch.empty(8, device="meta")
    instance = Instance.bind(scaled, scaled.bind(m, m[0], m, n, 2.0))
    target = targets.get("tpu-v6e")
    return emit(instance, target, space(instance, target).first)


def test_a_launch_is_an_op_registered_once(registered: Registered, source: Source) -> None:
    arrays: dict[str, Any] = {"x": OnTpu(3.0), "bias": OnTpu(4.0), "y": OnTpu(0.0), "total": OnTpu(0.0), "factor": 0.5}
    for _ in range(2):
        xla.run(source, pallas.define(source.name, source.text), False, arrays)
    assert (arrays["y"].value, arrays["total"].value) == (7.5, 7.5)
    ((name, function),) = registered
    assert name == f"kpt_tpu::scaled_{source.digest}"
    taken = inspect.signature(inspect.unwrap(function), eval_str=True)
    assert {n: p.annotation for n, p in taken.parameters.items() if n != "interpret"} == {
        "x": jax.Array, "bias": jax.Array, "factor": float,
    }  # fmt: skip
    assert taken.return_annotation == tuple[jax.Array, jax.Array]


def test_the_target_is_that_of_its_name(registered: Registered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xla, "is_xla", lambda array: True)
    assert pallas.target({"x": SimpleNamespace(device="tpu:0")}).name == "tpu-v6e"
    xla._kind.cache_clear()
