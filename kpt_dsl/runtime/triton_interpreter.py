"""Generated Triton source under Triton's own interpreter, on tensors in host memory, inside a process that also compiles.

Triton decides at import (TRITON_INTERPRET=1) whether ``@triton.jit`` makes functions to compile or to interpret. Here the
compiled kind is interpreted all the same: while a kernel runs, ``tl`` is patched as Triton's interpreter does it, device
functions call their Python, two of its conversions are replaced, for it rounds halves up and loses carries, and its spreading
of scalars, for it takes a condition for what was compared. It reduces by functions that it does not know an element at a time;
NumPy does what ours do; and it works out whether each sum of integers overflows, to say so in a debug mode that it never has:
more than half of its time, and left out. One kernel at a time.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from kpt_dsl.runtime.triton_module import LOCK, triton_package


def interpret(function: Any, programs: int, arguments: Sequence[Any]) -> None:
    """Run ``programs`` programs of a JIT function one after another. ``arguments``: CPU tensors, descriptors and numbers."""
    triton_package()
    import numpy as np
    from triton.runtime import interpreter

    with LOCK, _interpreting(), np.errstate(all="ignore"):
        values = [_scalar(a) if isinstance(a, float) else interpreter._implicit_cvt(a) for a in arguments]
        builder = interpreter.interpreter_builder
        builder.set_grid_dim(programs, 1, 1)
        for program in range(programs):
            builder.set_grid_idx(program, 0, 0)
            function.fn(*values)


def _scalar(value: float) -> Any:
    """A float argument as the kernel has it: the interpreter leaves it to Python, in which ``~(s > 0)`` is true either way."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    return tl.tensor(TensorHandle(np.array([value], np.float32), tl.float32), tl.float32)


@contextmanager
def _interpreting() -> Iterator[None]:
    """Triton's language works on NumPy arrays inside."""
    # Gluon's language takes Triton's functions when it is first imported, which the interpreter may do: not the patched ones.
    import triton.experimental.gluon.language  # noqa: F401
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.jit import JITFunction

    builder = interpreter.interpreter_builder
    everywhere = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    with (
        patch.object(JITFunction, "__call__", lambda self, *args, **kwargs: self.fn(*args, **kwargs)),
        patch.object(interpreter, "_convert_float", _convert_float),
        patch.object(builder, "options", replace(builder.options, sanitize_overflow=False)),
        patch.object(interpreter.InterpreterBuilder, "create_dot", _dot),
        patch.object(interpreter.ReduceOps, "generic_reduce", _reduce),
        patch.object(interpreter.InterpreterBuilder, "create_splat", _splat),
    ):
        scope = interpreter._patch_lang(everywhere)
        # NumPy 2.4 no longer takes an array of one element for a number, as the interpreter of Triton 3.6 has it.
        scope.set_attr(tl.tensor, "__index__", lambda self: int(self.handle.data.item()))
        try:
            yield
        finally:
            scope.restore()


def _torch_dtype(dtype: Any) -> Any:
    import torch

    names = {
        "fp32": "float32",
        "fp16": "float16",
        "bf16": "bfloat16",
        "fp8e4nv": "float8_e4m3fn",
        "fp8e5": "float8_e5m2",
    }
    return getattr(torch, names.get(dtype.name, "float64"))


def _as_torch(data: Any, dtype: Any) -> Any:
    """An array that holds the bits of ``dtype`` as a torch tensor of it."""
    import numpy as np
    import torch

    signed = np.ascontiguousarray(data).view(f"i{dtype.primitive_bitwidth // 8}")
    return torch.from_numpy(signed.copy()).view(_torch_dtype(dtype))


def _convert_float(data: Any, from_type: Any, to_type: Any, rounding_mode: Any) -> Any:
    """Between float types by bits, rounding to nearest even; in place of the interpreter's function of this name."""
    import torch

    found = _as_torch(data, from_type).to(torch.float32).to(_torch_dtype(to_type))
    bits = {8: torch.uint8, 16: torch.int16, 32: torch.int32, 64: torch.int64}[to_type.primitive_bitwidth]
    return found.view(bits).numpy().view(f"u{to_type.primitive_bitwidth // 8}").reshape(data.shape)


def _reduce(self: Any, inputs: Any) -> Any:
    """A reduction by one of the functions that generated modules carry; in place of the interpreter's, which takes any."""
    import numpy as np

    reduction = {"max_or_nan": np.max, "min_or_nan": np.min}[self.combine_fn.fn.__name__]
    return self.min_max(inputs[0], val_reduce_op=reduction)


def _dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    """A product with float32 accumulation; in place of the interpreter's, which multiplies the bits of bf16."""
    import numpy as np
    from triton.runtime.interpreter import TensorHandle

    left, right = (_as_torch(x.data, x.dtype.scalar).float().numpy() for x in (a, b))
    return TensorHandle(np.matmul(left, right) + d.data, d.dtype.scalar)


def _splat(self: Any, kind: Any, scalar: Any) -> Any:
    """A scalar in all lanes of a tile; in place of the interpreter's, which gives conditions the type of what they compared."""
    import numpy as np
    from triton.runtime.interpreter import TensorHandle, _get_np_dtype

    return TensorHandle(np.full(kind.shape, scalar.data, dtype=_get_np_dtype(kind.scalar)), kind.scalar)
