"""What a program would call on a GPU, noted without one: it runs on tensors that have no values, so that hardly anything is
computed.

Whole numbers are: positions and masks follow from them, and code looks at those to decide what to call.
"""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kpt.ops.calls import Call, Calls
from kpt.ops.choice import choose, preferred, standing_in
from kpt.ops.registry import OPS, get


class Rehearsal:
    """``with rehearsal.nothing_computed(): model = build()``, then ``with rehearsal.noting() as calls: model(tokens)``.

    Tensors that are made within the first block, and floating ones of the second, have shapes, strides and dtypes only, and
    belong to this object. Code that reads values of such a tensor raises, as with PyTorch's fake tensors.
    """

    def __init__(self) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    @contextmanager
    def nothing_computed(self) -> Iterator[None]:
        """Tensors that are made in the block have no values."""
        with self._mode:
            yield

    @contextmanager
    def noting(self) -> Iterator[Calls]:
        """As ``kpt.ops.recording``, of what a GPU would serve by kernels: forwards, and backwards, which are ops of their own.

        An op that is made of others is noted itself, not those.
        """
        calls, noted = Calls(), _Noting()
        with self._mode, standing_in("cuda"), noted:
            yield calls
        calls.calls = sorted(noted.calls.values(), key=lambda call: (-call.often, str(call)))


class _Noting(TorchDispatchMode):
    """Sees every operator that PyTorch is asked for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: dict[Hashable, Call] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = called(func, args)
        if call is not None:
            key = call.op, tuple(map(_known_by, call.arguments))
            known = self.calls.get(key)
            self.calls[key] = call if known is None else replace(known, often=known.often + 1)
        kwargs = kwargs or {}
        given = _tensors((args, kwargs))
        if not given:  # which makes some
            found = func(*args, **kwargs)
            if any(t.is_floating_point() for t in _tensors(found)):
                return found
        elif any(isinstance(t, FakeTensor) or t.is_floating_point() for t in given):
            return func(*args, **kwargs)
        with torch._C._DisableTorchDispatch():
            return func(*args, **kwargs)


def called(func: Any, given: tuple[Any, ...]) -> Call | None:
    """The call that an operator of PyTorch's, seen by a mode, is of an op of ours; None for another."""
    space, _, name = func._schema.name.partition("::")
    if space != "kpt" or name not in OPS:
        return None
    arguments = (*given, *[p.default_value for p in func._schema.arguments[len(given) :]])
    served = choose(get(name), arguments, False, preferred()).implementation.name
    return Call(name, tuple(map(_without_memory, arguments)), served=served)


def _tensors(of: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(of) if isinstance(value, torch.Tensor)]


def _without_memory(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return tuple(value) if isinstance(value, list) else value
    with torch._C._DisableTorchDispatch():
        return torch.empty_strided(tuple(value.shape), value.stride(), dtype=value.dtype, device="meta")


def _known_by(value: Any) -> Hashable:
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype
    return type(value), value
