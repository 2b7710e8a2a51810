"""Running Pallas kernels: JAX arrays in and out, torch and NumPy arrays in place, inside jit, and without JAX."""

import sys
from typing import Any

import numpy as np
import pytest
import torch

import kpt_dsl as kd
from kpt_dsl import targets
from kpt_dsl.instance import Instance
from kpt_dsl.runtime import pallas
from kpt_dsl.space import Config
from tests.tolerances import assert_close

jax = pytest.importorskip("jax")


@kd.kernel(x="M N", out="M N", top="M")
def softmax(x: kd.In, out: kd.Out, top: kd.Out, scale: kd.Float) -> None:
    for m in kd.parallel(kd.tile("M")):
        row = x[m, :] * scale
        peak = kd.max(row, axis=1)
        e = kd.exp(row - peak[:, None])
        out[m, :] = e / kd.sum(e, axis=1)[:, None]
        top[m] = peak


@kd.kernel(x="M N", out="M N")
def copy(x: kd.In, out: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        out[m, :] = x[m, :]


CONFIG = Config(block_M=16)


def expected(x: Any) -> Any:
    wide = np.asarray(x, np.float64) * 0.5
    e = np.exp(wide - wide.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def of_jax(x: Any) -> dict[str, Any]:
    out, top = jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct(x.shape[:1], "float32")
    return {"x": x, "out": out, "top": top, "scale": 0.5}


@pytest.fixture
def x(rng: np.random.Generator) -> Any:
    return jax.numpy.asarray(rng.standard_normal((37, 50)), "float32")


def test_a_kernel_called_on_jax_arrays_gives_jax_arrays(x: Any) -> None:
    got = softmax(*of_jax(x).values(), config=CONFIG)
    assert set(got) == {"out", "top"}
    assert all(isinstance(array, jax.Array) for array in got.values())
    assert_close(got["out"], expected(x), "f32", 50)
    assert_close(got["top"], np.asarray(x).max(axis=1) * 0.5, "f32")


def test_the_generated_function_is_an_ordinary_jax_function(x: Any) -> None:
    function = pallas.jax_function(Instance.bind(softmax, of_jax(x)), CONFIG, targets.get("tpu-v6e"), interpret=True)
    out, _ = jax.jit(lambda x, scale: function(2.0 * x, scale / 2.0))(x, 0.5)
    assert_close(out, expected(x), "f32", 50)
    batch, _ = jax.vmap(function, (0, None))(jax.numpy.stack([x, -x]), 0.5)
    assert_close(batch[1], expected(-x), "f32", 50)


def test_a_kernel_may_be_called_while_jax_traces(x: Any) -> None:
    @jax.jit
    def twice(x: Any) -> Any:
        return 2.0 * softmax(*of_jax(x).values(), config=CONFIG)["out"]

    assert_close(twice(x), 2.0 * expected(x), "f32", 50)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int32]
)
def test_torch_tensors_are_written_in_place_through_their_strides(dtype: torch.dtype) -> None:
    x = torch.arange(-60, 60).float().div(8 if dtype.is_floating_point else 1).to(dtype).reshape(10, 12)
    storage = torch.zeros(24, 10).to(dtype)
    out = storage.T[:, ::2]
    assert pallas.run(Instance.bind(copy, {"x": x.T.contiguous().T, "out": out}), {"x": x, "out": out}, CONFIG) is None
    assert torch.equal(out.float(), x.float())
    assert storage[1::2].float().eq(0).all()


def test_numpy_arrays_are_written_in_place(x: Any) -> None:
    held = {"x": np.asarray(x), "out": np.zeros((37, 50), np.float32), "top": np.zeros(37, np.float32), "scale": 0.5}
    assert pallas.run(Instance.bind(softmax, held), held, CONFIG) is None
    assert_close(held["out"], expected(x), "f32", 50)


def test_a_launch_runs_again_and_again(x: Any) -> None:
    held = of_jax(x)
    launch = pallas.launcher(Instance.bind(softmax, held), held, CONFIG, targets.get("tpu-v6e"))
    launch()
    launch()


def test_empty_arrays_come_back_empty() -> None:
    got = softmax(*of_jax(jax.numpy.zeros((0, 50), "bfloat16")).values(), config=CONFIG)
    assert got["out"].shape == (0, 50)
    assert got["out"].dtype == jax.numpy.bfloat16
    assert got["top"].shape == (0,)


def test_tensors_of_other_devices_are_refused() -> None:
    held = {"x": torch.zeros(4, 4, device="meta"), "out": torch.zeros(4, 4)}
    with pytest.raises(kd.InputError, match="x is on meta; backend pallas takes JAX arrays and tensors of the CPU"):
        pallas.run(Instance.bind(copy, held), held, CONFIG)


def test_without_jax_the_package_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(
        kd.MissingPackageError, match=r"backend pallas needs the package 'jax': pip install 'kpt-dsl\[tpu\]'"
    ):
        pallas.jax_package()


class _Device:
    platform = "tpu"

    def __init__(self, kind: str) -> None:
        self.device_kind = kind


@pytest.mark.parametrize(
    ("kind", "target"), [("TPU v5 lite", "tpu-v5e"), ("TPU v6 lite", "tpu-v6e"), ("TPU7x", "tpu-tpu7x")]
)
def test_a_tpu_is_known_by_its_kind(kind: str, target: str, x: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pallas, "tpu", lambda arrays: _Device(kind))
    assert pallas.target({"x": x}).name == target


def test_an_unknown_tpu_is_refused(x: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pallas, "tpu", lambda arrays: _Device("TPU v99"))
    with pytest.raises(kd.TargetError, match=r"no target describes the TPU 'TPU v99'"):
        pallas.target({"x": x})
