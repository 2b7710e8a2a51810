"""Who serves an op on arrays: kernels on TPUs, XLA's operations elsewhere and where kernels cannot; ``prefer`` forces one."""

import logging
from functools import partial
from typing import Any, NamedTuple

import jax
import torch
from torch.utils._pytree import tree_map

from kpt.jax import kernels
from kpt.jax.gradients import followed
from kpt.jax.interpreter import Interpreter
from kpt.jax.partitioning import partitioned
from kpt.ops.choice import preferred
from kpt.ops.devices import NO_FLOAT16
from kpt.ops.registry import Op
from kpt_dsl.errors import InputError, KptError
from kpt_dsl.runtime import pallas

log = logging.getLogger("kpt")

REFERENCE = "reference"
"""What ``prefer`` calls XLA's own operations: those of the op's reference."""

_logged: set[tuple[str, str]] = set()


class Choice(NamedTuple):
    """Whether kernels serve a call, and why not. ``expected``: on this device one would have counted on them."""

    by_kernels: bool
    reason: str = ""
    expected: bool = False


def serve(op: Op, arguments: tuple[Any, ...]) -> Any:
    """An op on arrays. Raises InputError where the preferred implementation cannot serve, and as what serves does."""
    choice = choose(op, arguments)
    if choice.by_kernels:
        try:
            run = partial(partitioned, serve, op)
            return run(*arguments) if op.gradient is None else followed(serve, op, op.gradient, run, arguments)
        except KptError as error:
            if preferred() is not None:
                raise
            choice = Choice(False, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", expected=True)
    if choice.expected and (op.name, choice.reason) not in _logged:
        _logged.add((op.name, choice.reason))
        log.warning("%s falls back to XLA's operations: %s", op.name, choice.reason)
    return Interpreter(serve).call(op.reference, *arguments)


def choose(op: Op, arguments: tuple[Any, ...]) -> Choice:
    """Who serves a call. Raises InputError where the preferred implementation cannot."""
    prefers = preferred()
    if prefers not in (None, REFERENCE, kernels.BACKEND):
        raise InputError(f"{op.name}: {prefers} is preferred, and serves no JAX arrays; pallas and reference do")
    device = pallas.tpu(dict(enumerate(arguments)))
    if prefers == REFERENCE:
        return Choice(False, "reference is preferred")
    if prefers is None and device is None:
        return Choice(False, "serves arrays on TPUs, and others only when preferred")
    tensors = tree_map(Interpreter(serve).enter, arguments)
    reason = kernels.implementation(op).why_not(*tensors)
    if reason is None and device is not None and _has_float16(tensors):
        reason = NO_FLOAT16
    if reason is None and any(isinstance(a, jax.Array) and jax.typeof(a).sharding.mesh.explicit_axes for a in arguments):
        reason = "arrays are dealt out over Explicit axes of a mesh: call within jax.shard_map, or make a mesh of Auto axes"
    if reason is not None and prefers is not None:
        raise InputError(f"{op.name}: {prefers} is preferred but cannot serve this call: {reason}")
    return Choice(reason is None, reason or "", expected=reason is not None)


def _has_float16(values: tuple[Any, ...]) -> bool:
    return any(isinstance(v, torch.Tensor) and v.dtype == torch.float16 for v in values)
