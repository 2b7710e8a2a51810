"""The second rung: Pallas's TPU interpreter runs programs on two cores, poisons scratch memory and watches for races."""

from typing import Any

import numpy as np
import pytest

import kpt_dsl as kd
from kpt.ops.flash_attention.backward_kernels import (
    flash_attention_dkdv,
    flash_attention_dq,
    flash_attention_group_sum,
)
from kpt.ops.flash_attention.kernels import flash_attention_fwd
from kpt.ops.fp8_matmul.kernels import fp8_matmul_fwd
from kpt.ops.layer_norm.backward_kernels import layer_norm_bwd
from kpt.ops.layer_norm.kernels import layer_norm_fwd
from kpt.ops.linear_act.activations import ACTIVATIONS, BACKWARD
from kpt.ops.linear_act.backward_kernels import linear_act_bwd_dw, linear_act_bwd_dz_sums
from kpt.ops.linear_act.kernels import linear_act_fwd
from kpt.ops.quantize_fp8.kernels import quantize_rows
from kpt.ops.rms_norm.backward_kernels import rms_norm_bwd
from kpt.ops.rms_norm.kernels import rms_norm_fwd
from kpt_dsl import targets
from kpt_dsl.emit import emit
from kpt_dsl.instance import Instance
from kpt_dsl.runtime.pallas import define, run
from kpt_dsl.space import Config

jax = pytest.importorskip("jax")

V6E = targets.get("tpu-v6e")


def watched() -> Any:
    """Two cores, in a random order of programs."""
    from jax.experimental.pallas import tpu as pltpu

    return pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2, random_seed=7)


def drawn(rng: np.random.Generator, *shape: int) -> Any:
    return jax.numpy.asarray(rng.standard_normal(shape), jax.numpy.float32)


def out(*shape: int, dtype: str = "float32") -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def _linear(rng: np.random.Generator) -> tuple[kd.Kernel, dict[str, Any], Config]:
    arguments = {"x": drawn(rng, 24, 200), "weight": drawn(rng, 136, 200), "bias": drawn(rng, 136), "y": out(24, 136)}
    return linear_act_fwd, arguments | {"activation": ACTIVATIONS["silu"]}, Config(block_M=16, block_N=128, block_K=128)


def _linear_sums(rng: np.random.Generator) -> tuple[kd.Kernel, dict[str, Any], Config]:
    """Three shares of rows of which none is a whole number of tiles long."""
    arguments = {"dy": drawn(rng, 44, 200), "z": drawn(rng, 44, 200), "dz": out(44, 200), "partial": out(3, 200)}
    return linear_act_bwd_dz_sums, arguments | {"gradient": BACKWARD["silu"]}, Config(block_M=8, block_N=128)


def _linear_weight(rng: np.random.Generator) -> tuple[kd.Kernel, dict[str, Any], Config]:
    arguments = {"dz": drawn(rng, 200, 136), "x": drawn(rng, 200, 140), "dw": out(136, 140)}
    return linear_act_bwd_dw, arguments, Config(block_M=128, block_N=128, block_K=128)


def _norm(kernel: kd.Kernel, rng: np.random.Generator) -> tuple[kd.Kernel, dict[str, Any], Config]:
    arguments = {"x": drawn(rng, 20, 200), "weight": drawn(rng, 200), "bias": None, "y": out(20, 200), "eps": 1e-5}
    arguments |= {"offset": 1.0, "residual": drawn(rng, 20, 200), "new_residual": out(20, 200)}
    arguments = {name: arguments[name] for name in kernel.signature.parameters}
    return kernel, arguments, Config(whole_row=False, block_M=16, block_N=128)


def _attention(rng: np.random.Generator) -> tuple[kd.Kernel, dict[str, Any], Config]:
    arguments = {
        "q": drawn(rng, 1, 2, 24, 32), "k": drawn(rng, 1, 1, 200, 32), "v": drawn(rng, 1, 1, 200, 32),
        "key_lengths": jax.numpy.array([190]), "o": out(1, 2, 24, 32), "lse": out(1, 2, 24),
        "scale": 0.2, "window": 100, "causal": True,
    }  # fmt: skip
    return flash_attention_fwd, flash_attention_fwd.defaults | arguments, Config(block_M=16, block_N=128)


def _attention_gradients(kernel: kd.Kernel, rng: np.random.Generator) -> tuple[kd.Kernel, dict[str, Any], Config]:
    """Tiles of queries and of keys that some programs visit in part, or not at all."""
    given = {name: drawn(rng, 1, 2, 200, 32) for name in ("q", "do")} | {
        n: drawn(rng, 1, 1, 300, 32) for n in ("k", "v")
    }
    given |= {"delta": drawn(rng, 1, 2, 200), "shift": drawn(rng, 1, 2, 200), "key_lengths": jax.numpy.array([250])}
    given |= {"scale": 0.2, "window": 100, "causal": True, "dq_sum": None}
    given |= {"dq": out(1, 2, 200, 32), "dk": out(1, 2, 300, 32), "dv": out(1, 2, 300, 32)}
    arguments = {name: given.get(name) for name in kernel.signature.parameters}
    return kernel, arguments, Config(block_M=128, block_N=128)


def _group_sum(rng: np.random.Generator) -> tuple[kd.Kernel, dict[str, Any], Config]:
    parts = {"dk_parts": drawn(rng, 1, 2, 5, 24, 32), "dv_parts": drawn(rng, 1, 2, 5, 24, 32)}
    made = {"dk": out(1, 2, 24, 32), "dv": out(1, 2, 24, 32)}
    return flash_attention_group_sum, parts | made, Config(block_N=16, block_R=2)


def _fp8(rng: np.random.Generator) -> tuple[kd.Kernel, dict[str, Any], Config]:
    a, b = (drawn(rng, rows, 200).astype("float8_e4m3fn") for rows in (24, 136))
    arguments = {"a": a, "b": b, "scale_a": drawn(rng, 24), "scale_b": drawn(rng, 136), "bias": None}
    return fp8_matmul_fwd, arguments | {"y": out(24, 136)}, Config(block_M=16, block_N=128, block_K=128)


def _quantize(rng: np.random.Generator) -> tuple[kd.Kernel, dict[str, Any], Config]:
    arguments = {"x": drawn(rng, 20, 200), "y": out(20, 200, dtype="float8_e4m3fn"), "scale": out(20), "largest": 448.0}
    return quantize_rows, arguments, Config(whole_row=False, block_M=16, block_N=128)


def _norm_backward(kernel: kd.Kernel, rng: np.random.Generator) -> tuple[kd.Kernel, dict[str, Any], Config]:
    """Three shares of rows of which none is a whole number of tiles long."""
    made = {"dx": out(44, 200), "dweight": out(3, 200), "dbias": out(3, 200)}
    given = {"dy": drawn(rng, 44, 200), "x": drawn(rng, 44, 200), "weight": drawn(rng, 200), "eps": 1e-5}
    given |= {"offset": 1.0, "added": drawn(rng, 44, 200)}
    arguments = {name: (given | made)[name] for name in kernel.signature.parameters}
    return kernel, arguments, Config(read_again=False, block_M=8)


CASES = {
    "layer_norm_backward": lambda rng: _norm_backward(layer_norm_bwd, rng),
    "rms_norm_backward": lambda rng: _norm_backward(rms_norm_bwd, rng),
    "linear_act": _linear,
    "linear_act_backward, sums": _linear_sums,
    "linear_act_backward, weight": _linear_weight,
    "layer_norm": lambda rng: _norm(layer_norm_fwd, rng),
    "rms_norm": lambda rng: _norm(rms_norm_fwd, rng),
    "flash_attention": _attention,
    "flash_attention_dq": lambda rng: _attention_gradients(flash_attention_dq, rng),
    "flash_attention_dkdv": lambda rng: _attention_gradients(flash_attention_dkdv, rng),
    "flash_attention_group_sum": _group_sum,
    "fp8_matmul": _fp8,
    "quantize_fp8": _quantize,
}


@pytest.mark.parametrize("op", CASES)
def test_no_races_and_the_same_result(op: str, rng: np.random.Generator, capfd: pytest.CaptureFixture[str]) -> None:
    kernel, arguments, config = CASES[op](rng)
    instance = Instance.bind(kernel, arguments)
    found = run(instance, arguments, config, interpret=watched())
    expected = run(instance, arguments, config)
    assert found is not None
    assert expected is not None
    for name, array in found.items():
        # Sums may be ordered otherwise; poisoned memory would show as NaN.
        np.testing.assert_allclose(np.float32(array), np.float32(expected[name]), rtol=1e-4, atol=1e-4)
    assert "RACE" not in capfd.readouterr().out


def test_a_planted_race_is_seen(rng: np.random.Generator, capfd: pytest.CaptureFixture[str]) -> None:
    """Programs that write one block: what the test above is there to catch."""
    kernel, arguments, config = _linear(rng)
    source = emit(Instance.bind(kernel, arguments), V6E, config)
    planted = source.text.replace(
        "(block_M, block_N), lambda m, n, k: (m, n)", "(block_M, block_N), lambda m, n, k: (0, n)"
    )
    assert planted != source.text
    inputs = [arguments[a.name] for a in source.abi.inputs]
    define(source.name, planted)(*inputs, interpret=watched())
    assert "RACE DETECTED" in capfd.readouterr().out
