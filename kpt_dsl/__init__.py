"""kpt_dsl: a small tile language in Python, and its way to Triton, Pallas and NumPy. Imported as ``kd`` by kernel authors.

import kpt_dsl as kd

@kd.kernel(x="M N", out="M N")
def softmax(x: kd.In, out: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        row = x[m, :]
        e = kd.exp(row - kd.max(row, axis=1)[:, None])
        out[m, :] = e / kd.sum(e, axis=1)[:, None]
"""

from typing import TYPE_CHECKING, Any

from kpt_dsl.checks import checking
from kpt_dsl.dtypes import DType, bf16, f8e4m3, f8e5m2, f16, f32, i8, i32, i64, u8
from kpt_dsl.errors import (
    CompileError,
    ConfigError,
    IndexRangeError,
    InputError,
    KernelError,
    KptError,
    MissingPackageError,
    StoreError,
    TargetError,
)
from kpt_dsl.kernel import Kernel, function, kernel
from kpt_dsl.language import (
    Float,
    In,
    Int,
    Out,
    Positive,
    Static,
    Tile,
    Value,
    abs,
    argmax,
    argmin,
    choice,
    cos,
    dot,
    erf,
    exp,
    exp2,
    floor,
    full,
    group,
    index,
    inf,
    join,
    log,
    log2,
    max,
    maximum,
    min,
    minimum,
    ndtr,
    parallel,
    range,
    round,
    rsqrt,
    sequential,
    sigmoid,
    sin,
    size,
    split,
    sqrt,
    sum,
    tanh,
    tile,
    where,
    zeros,
)

if TYPE_CHECKING:
    from kpt_dsl.inspect import compile, source

__all__ = [
    "CompileError", "ConfigError", "DType", "Float", "In", "IndexRangeError", "InputError", "Int", "Kernel", "KernelError",
    "KptError", "MissingPackageError", "Out", "Positive", "Static", "StoreError", "TargetError", "Tile", "Value", "abs",
    "argmax", "argmin", "bf16", "checking", "choice", "compile", "cos", "dot", "erf", "exp", "exp2", "f8e4m3", "f8e5m2",
    "f16", "f32", "floor", "full", "function", "group", "i8", "i32", "i64", "index", "inf", "join", "kernel", "log", "log2",
    "max", "maximum", "min", "minimum", "ndtr", "parallel", "range", "round", "rsqrt", "sequential", "sigmoid", "sin",
    "size", "source", "split", "sqrt", "sum", "tanh", "tile", "u8", "where", "zeros",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """``source`` and ``compile`` bring the emitters along, so they are imported when first asked for."""
    if name in ("source", "compile"):
        from kpt_dsl import inspect

        return getattr(inspect, name)
    raise AttributeError(f"module 'kpt_dsl' has no attribute {name!r}")
