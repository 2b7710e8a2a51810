"""Instances of the stranger's kernels, at a default shape that each test may change."""

from typing import Any

from kpt_dsl.instance import Instance
from tests.autotune_db import kernels


def softmax(dtype: str = "bf16", **dims: int) -> Instance:
    return Instance.of_shapes(kernels.softmax, {"M": 4096, "N": 1024} | dims, {"x": dtype, "y": dtype})


def linear(dtype: str = "bf16", bias: bool = True, activation: Any = kernels.same, **dims: int) -> Instance:
    dtypes = {"x": dtype, "weight": dtype, "bias": dtype if bias else None, "y": dtype}
    return Instance.of_shapes(kernels.linear, {"M": 4096, "N": 512, "K": 256} | dims, dtypes, {"activation": activation})


def scores(lengths: bool = False, **dims: int) -> Instance:
    dtypes = {"q": "bf16", "k": "bf16", "y": "f32", "lengths": "i32" if lengths else None}
    extents = {"B": 2, "H": 4, "M": 200, "N": 300, "D": 64} | dims
    return Instance.of_shapes(kernels.scores, extents, dtypes)


def scale_rows(**dims: int) -> Instance:
    return Instance.of_shapes(kernels.scale_rows, {"M": 100, "N": 300} | dims, {"x": "f32", "y": "f32"})


def group_means(**dims: int) -> Instance:
    dtypes = {"x": "f32", "cu": "i32", "y": "f32"}
    return Instance.of_shapes(kernels.group_means, {"T": 100, "D": 8, "C": 8} | dims, dtypes)


def quantise(**dims: int) -> Instance:
    return Instance.of_shapes(kernels.quantise, {"M": 512, "N": 1024} | dims, {"x": "f32", "scale": "f32", "q": "i8"})


def picked(index: str = "u8", **dims: int) -> Instance:
    dtypes = {"table": "i8", "ids": index, "keep": "bool", "y": "i8"}
    return Instance.of_shapes(kernels.picked, {"V": 300, "M": 400, "N": 50} | dims, dtypes)
