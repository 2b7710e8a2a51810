"""An op's kernels on arrays: its own ``run``, whose launches are Pallas's."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import jax
import torch

from kpt.jax.interpreter import Interpreter, Serve
from kpt.jax.memory import Memory, jax_dtype
from kpt.ops.backends import Way
from kpt.ops.devices import of_target
from kpt.ops.registry import Implementation, Op
from kpt_dsl import runtime
from kpt_dsl.errors import TargetError
from kpt_dsl.instance import Instance
from kpt_dsl.kernel import Kernel
from kpt_dsl.runtime import pallas

BACKEND = "pallas"


def implementation(op: Op) -> Implementation:
    """What an op has for TPUs."""
    return next(found for found in op.kernels if found.name == BACKEND)


def run(serve: Serve, op: Op, arguments: Sequence[Any]) -> Any:
    """The op by its kernels, which JAX does not differentiate. Raises KptError where there is no text of one for a TPU."""
    interpreter = Interpreter(serve)
    launched = implementation(op).run
    assert launched is not None
    with of_target(pallas.target(dict(enumerate(arguments)))):
        return interpreter.call(partial(launched, Launch(interpreter.memory)), *arguments)


class Launch:
    """Launches kernels on what tensors stand for (``kpt.ops.backends.Launch``)."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def __call__(self, kernel: Kernel, *arguments: Any) -> None:
        """Run a kernel, and let its output tensors stand for what it gave."""
        bound = kernel.bind(*arguments)
        instance = Instance.bind(kernel, bound)
        arrays = {name: self._array(value, kernel.roles.get(name) == "out") for name, value in bound.items()}
        config, _ = runtime.chosen(instance, arrays, BACKEND)
        for name, array in (runtime.run(instance, arrays, config, BACKEND) or {}).items():
            self._memory.write(bound[name], array)

    def quickest(self, *ways: Way) -> Any:
        """Go the first way that has texts for this TPU: no other was ever measured on one."""
        *others, last = ways
        for way in others:
            with suppress(TargetError):
                return way(self)
        return last(self)

    def _array(self, value: Any, written: bool) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if written and not self._memory.holds(value):
            return jax.ShapeDtypeStruct(value.shape, jax_dtype(value.dtype))
        return self._memory.read(value)
