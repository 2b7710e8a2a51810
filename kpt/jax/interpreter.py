"""Running functions of PyTorch on JAX arrays: what the ops say of themselves is said once, for both.

The function sees tensors without memory (``memory``), so its checks, its views and its shapes are PyTorch's own. Each operation
that computes is done by JAX at once (``operations``), also on arrays that are traced; an op of kpt is served as ``serve`` says.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch._decomp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map, tree_map_only

from kpt.jax.memory import Memory, jax_dtype, torch_dtype, unseen
from kpt.jax.operations import OF_A_SHAPE, OPERATIONS
from kpt.ops.registry import OPS, Op
from kpt_dsl.errors import InputError

PLACES = ("device", "layout", "memory_format", "out", "pin_memory")
"""Arguments that say where a result is to be, which its tensor tells."""

Serve = Callable[[Op, tuple[Any, ...]], Any]
"""Serves an op on arrays; gives what it gives, on arrays."""


class Interpreter(TorchDispatchMode):
    """What PyTorch asks to run an operation, while a function of it runs on arrays."""

    def __init__(self, serve: Serve) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.memory = Memory()
        self._serve = serve

    @unseen()
    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call a function of tensors with arrays in their places; gives arrays where it gives tensors.

        Raises InputError for tensors of PyTorch, and where what serves reads numbers, which a program that is traced has not.
        """
        given, options = tree_map(self.enter, arguments), tree_map(self.enter, named)
        try:
            with torch.no_grad(), self:
                found = function(*given, **options)
        except NotImplementedError as error:
            if "meta tensor" not in str(error):
                raise
            raise InputError(
                "kpt.jax: PyTorch's own operations serve this call, and read numbers to do so (where packed entries end), "
                "which a JAX program does not know while it is traced; give batches of one length, with key_lengths"
            ) from error
        return self.left(found)

    def enter(self, value: Any) -> Any:
        """A tensor for an array, PyTorch's dtype for JAX's, other values as they are."""
        if isinstance(value, torch.Tensor):
            raise InputError(f"kpt.jax takes JAX arrays, and was given a tensor, {tuple(value.shape)}, which kpt.ops takes")
        if isinstance(value, jax.Array | np.ndarray):
            return self.memory.enter(jnp.asarray(value))
        if isinstance(value, np.dtype) or (isinstance(value, type) and hasattr(value, "dtype")):
            return torch_dtype(value)
        return value

    def left(self, found: Any) -> Any:
        """Arrays for tensors."""
        return tree_map_only(torch.Tensor, self.memory.read, found)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation."""
        kwargs = kwargs or {}
        if function.namespace == "kpt":
            return self._op(function, args)
        name = function._schema.name.removeprefix("aten::")
        operation = OPERATIONS.get(name) or OPERATIONS.get(name.removesuffix("_"))
        if operation is None and not _only_places(function):
            return self._decomposed(function, args, kwargs)
        result = function(*args, **kwargs)
        if operation is not None:
            options = {key: value for key, value in kwargs.items() if key not in PLACES}
            given = self.left(args[1:] if name in OF_A_SHAPE else args)
            shape = [jax.ShapeDtypeStruct(args[0].shape, jax_dtype(args[0].dtype))] if name in OF_A_SHAPE else []
            self._write(result, operation(*shape, *given, **self.left(options)))
        return result

    def _op(self, function: Any, args: tuple[Any, ...]) -> Any:
        op = OPS[function._schema.name.removeprefix("kpt::")]
        args += tuple(a.default_value for a in function._schema.arguments[len(args) :])
        args = tuple(tuple(a) if isinstance(a, list) else a for a in args)
        op.check(*args)
        made = op.fake(*args)
        found = self._serve(op, self.left(args))
        self._write(made, found)
        return made

    def _decomposed(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run an operation as others that it is made of."""
        with self:
            if (found := function.decompose(*args, **kwargs)) is not NotImplemented:
                return found
            if (known := _decompositions().get(function)) is not None:
                return known(*args, **kwargs)
        raise InputError(f"kpt.jax has no form of PyTorch's {function}, which this call takes")

    def _write(self, made: Any, found: Any) -> None:
        if isinstance(made, torch.Tensor):
            self.memory.write(made, found)
            return
        for tensor, value in zip(made, found, strict=True):
            self.memory.write(tensor, value)


@cache
def _only_places(function: Any) -> bool:
    """Whether an operation itself makes a view, or room, and computes nothing. One that is made of others may do either."""
    room = function._schema.name.startswith(("aten::empty", "aten::new_empty"))
    return (function.is_view or room) and not function._can_decompose()


@cache
def _decompositions() -> Mapping[Any, Callable[..., Any]]:
    return torch._decomp.core_aten_decompositions()
