"""kpt_dsl by itself: no torch, no ops, no database. Runs on every Python version, in an environment without torch too."""

import ast
from importlib.util import find_spec

import numpy as np
import pytest

import kpt_dsl as kd
from kpt_dsl import targets
from tests.standalone.kernels import linear, relu, softmax
from tests.tolerances import assert_close

SIZES = [(1, 1), (3, 37), (50, 199), (2, 760)]


def expected_softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_a_kernel_runs_on_numpy_arrays(rows: int, columns: int, rng: np.random.Generator) -> None:
    x = rng.standard_normal((rows, columns)).astype(np.float32)
    out = np.empty_like(x)
    softmax(x, out)
    assert_close(out, expected_softmax(x), "f32", columns)


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_a_kernel_runs_on_jax_arrays(rows: int, columns: int, rng: np.random.Generator) -> None:
    jax = pytest.importorskip("jax")
    x = rng.standard_normal((rows, columns)).astype(np.float32)
    out = softmax(jax.numpy.asarray(x), jax.ShapeDtypeStruct(x.shape, x.dtype))["out"]
    assert_close(out, expected_softmax(x), "f32", columns)


def test_products_and_helpers(rng: np.random.Generator) -> None:
    x, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((37, 100), (65, 100), (65,)))
    y = np.empty((37, 65), np.float32)
    linear(x, weight, bias, y, relu)
    assert_close(y, np.maximum(x.astype(np.float64) @ weight.T + bias, 0), "f32", 100)


@pytest.mark.parametrize("target", targets.names())
def test_source_is_generated_for_every_target(target: str) -> None:
    text = kd.source(softmax, target, dtypes="f32")
    assert any(isinstance(node, ast.FunctionDef) and node.name == "softmax" for node in ast.walk(ast.parse(text)))


@pytest.mark.parametrize("target", ["nvidia-h200", "amd-mi300x"])
def test_it_compiles_for_a_gpu_that_is_not_here(target: str) -> None:
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    report = kd.compile(linear, target, activation=relu)
    assert report.spills == 0
    assert report.registers
