"""How JAX differentiates ops that kernels serve: by the op's own ``Gradient``, whose backward kernels serve too."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero

from kpt.jax.interpreter import Interpreter, Serve
from kpt.jax.static import Static, split
from kpt.ops.choice import Holding, preferred
from kpt.ops.dispatch import DISPATCHERS
from kpt.ops.registry import Gradient, Op, Ready
from kpt_dsl.runtime.jax_primitive import alike


def followed(serve: Serve, op: Op, gradient: Gradient, run: Ready, arguments: Sequence[Any]) -> Any:
    """``run(*arguments)``, with the gradient that the op has; ``serve`` serves the ops that it is made of."""
    arrays, static = split(arguments)
    positions = [(p, static.number(p)) for p in op.differentiable]
    preference = preferred()

    def whole(*arrays: Any) -> Any:
        return run(*static.filled(arrays))

    def forward(*arrays: Any) -> tuple[Any, Any]:
        given = static.filled([a.value for a in arrays])
        needed = tuple([n is not None and bool(arrays[n].perturbed) for _, n in positions])
        through = partial(gradient.forward, DISPATCHERS[op.name].through_torch, needed)
        outputs, saved = Interpreter(serve).call(through, *given)
        kept, rest = split(saved)
        return outputs, (kept, rest, Static(needed), [a.value for a in arrays])

    def backward(saved: Any, arriving: Any) -> tuple[Any, ...]:
        kept, rest, needed, primals = saved
        given = [None if isinstance(g, SymbolicZero) else g for g in (arriving if isinstance(arriving, list) else [arriving])]
        with Holding(preference):
            found = Interpreter(serve).call(gradient.backward, rest.filled(kept), needed.values, *given)
        wanted = [n for (_, n), wanted in zip(positions, needed.values, strict=True) if wanted and n is not None]
        gradients: list[Any] = [None] * len(primals)
        for n, g in zip(wanted, found, strict=True):
            gradients[n] = g if g is None else alike([g], primals[n])[0]
        return tuple(gradients)

    function = jax.custom_vjp(whole)
    function.defvjp(forward, backward, symbolic_zeros=True)
    return function(*alike(arrays, *arrays))
