"""Who would serve a call on JAX arrays, and with which kernels and configs."""

import inspect
from typing import Any

import jax

from kpt.jax import kernels, ops
from kpt.jax.interpreter import Interpreter
from kpt.jax.memory import tensor_like
from kpt.jax.serve import REFERENCE, choose, serve
from kpt.jax.static import split
from kpt.ops.choice import PassedOver
from kpt.ops.explain import Explanation
from kpt.ops.registry import KernelChoice, Op
from kpt_dsl import configs
from kpt_dsl.classes import extents
from kpt_dsl.emit import emit
from kpt_dsl.errors import InputError, KptError
from kpt_dsl.runtime import pallas
from kpt_dsl.targets import Target


def explain(op: str, *args: Any, **kwargs: Any) -> Explanation:
    """How ``op(*args, **kwargs)`` would be served here and now; nothing is run, and arrays may be ``jax.ShapeDtypeStruct``.

    Raises InputError for an unknown op and for arguments that the op refuses.
    """
    if op not in ops.__all__:
        raise InputError(f"op {op!r} is unknown; kpt.jax has {', '.join(ops.__all__)}")
    public = inspect.unwrap(getattr(ops, op))
    found: list[Explanation] = []

    def note(called: Op, arguments: tuple[Any, ...]) -> Any:
        found.append(_explained(called, arguments))
        return Interpreter(serve).call(called.reference, *arguments)

    def call(*given: Any) -> Any:
        values = static.filled(given)
        named = dict(zip(kwargs, values[len(args) :], strict=True))
        return Interpreter(note).call(public, *values[: len(args)], **named)

    arrays, static = split([*args, *kwargs.values()])
    jax.eval_shape(call, *arrays)
    return found[0]


def _explained(op: Op, arguments: tuple[Any, ...]) -> Explanation:
    choice = choose(op, arguments)
    names = inspect.signature(op.public).parameters
    given = [(name, a) for name, a in zip(names, arguments, strict=False) if a is not None]
    words = ", ".join(f"{name}={_in_words(a)}" for name, a in given)
    if not choice.by_kernels:
        passed = PassedOver(kernels.BACKEND, choice.reason, choice.expected)
        return Explanation(op.name, words, REFERENCE, (), (passed,))
    arrays, static = split(arguments)
    tensors = static.filled([tensor_like(a) for a in arrays])
    described = _kernels(op, tensors, pallas.target(dict(enumerate(arrays))))
    return Explanation(op.name, words, kernels.BACKEND, described, (PassedOver(REFERENCE, "comes after pallas"),))


def _kernels(op: Op, tensors: tuple[Any, ...], target: Target) -> tuple[KernelChoice, ...]:
    described = []
    try:
        for instance in op.record(tensors, target, first=True):
            config, provenance = configs.choose(instance, target)
            made = emit(instance, target, config).digest
            described.append(KernelChoice(instance.kernel.name, str(config), provenance, extents(instance, target), made))
    except KptError as error:
        return (KernelChoice("none", str(error), type(error).__name__),)
    return tuple(described)


def _in_words(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, jax.Array) else str(value)
