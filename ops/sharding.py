"""How ops run on ``torch.distributed.tensor.DTensor``: which parts of their tensors processes may hold.

Each op lists ways to deal its tensors out, its ``shardings``; DTensor takes the one to which the least must be sent. Nothing of
torch.distributed is imported before a DTensor comes by.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch

from kpt.ops.registry import SUM, WHOLE, Op, Placed, Sharding

log = logging.getLogger("kpt")

_SHARED_OUT: list[tuple[Any, Op]] = []
"""Ops whose shardings DTensor does not know yet, as torch.library knows them."""


def enter(through_torch: Any, op: Op) -> None:
    """Note an op, to be told of when there is a DTensor."""
    _SHARED_OUT.append((through_torch, op))


def share_out(tensors: Sequence[torch.Tensor]) -> None:
    """Tell DTensor of all ops, once there is one among the tensors."""
    if not _SHARED_OUT or "torch.distributed.tensor" not in sys.modules:
        return
    from torch.distributed.tensor import DTensor

    if any(isinstance(t, DTensor) for t in tensors):
        waiting = _SHARED_OUT.copy()
        _SHARED_OUT.clear()
        try:
            for through_torch, op in waiting:
                _tell(through_torch, op)
        except (ImportError, AttributeError) as error:  # DTensor then knows none of our ops, and is given PyTorch's
            log.warning("DTensors get PyTorch's own operations: this PyTorch has no way to tell of shardings (%s)", error)


@cache
def _private() -> tuple[Any, Any, Any]:
    """What PyTorch gives no public name to: the class of a strategy, what one depends on, and what spreads it over a mesh."""
    from torch.distributed.tensor._op_schema import OpStrategy, RuntimeSchemaInfo
    from torch.distributed.tensor._ops.utils import expand_to_full_mesh_op_strategy

    return OpStrategy, RuntimeSchemaInfo, expand_to_full_mesh_op_strategy


def _tell(through_torch: Any, op: Op) -> None:
    """As ``torch.distributed.tensor.experimental.register_sharding`` does, which has no place for an op that gives a list of
    tensors, and remembers a strategy for calls that differ in the gradients they ask for."""
    from torch.distributed.tensor import DTensor

    _, schema_info, _ = _private()
    DTensor._op_dispatcher.sharding_propagator.register_op_strategy(
        through_torch, partial(_strategy, op), schema_info(static_argnum=0, needs_pytree=True)
    )


def _strategy(op: Op, schema: Any) -> Any:
    op_strategy, _, expand = _private()
    given = [isinstance(a, op_strategy) for a in schema.args_schema]
    meta = [
        torch.empty(a.shape, dtype=a.strategies[0].output_spec.tensor_meta.dtype, device="meta") if g else a
        for a, g in zip(schema.args_schema, given, strict=True)
    ]
    outputs = op.fake(*meta)
    count = len(outputs) if isinstance(outputs, (list, tuple)) else 1
    mesh = schema.get_mesh_from_args()
    whole = Sharding((WHOLE,) * count, tuple(WHOLE if g else None for g in given))
    ways = [_placements(way, given, count) for way in (whole, *op.shardings(mesh.size(), *meta))]
    strategy = expand(mesh, schema, ways, input_index=count)
    if isinstance(outputs, list) and count == 1:  # a list of one is a list
        for one in strategy.strategies:
            one.output_specs = (one.output_spec,)
    return strategy


def _placements(way: Sharding, given: Sequence[bool], count: int) -> list[Any]:
    """What is asked of the outputs, then of each argument that is a tensor; those at the end that are None may be left out."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    words: dict[Placed, Callable[[], Any]] = {WHOLE: Replicate, SUM: Partial}

    def placement(placed: Placed) -> Any:
        return Shard(placed) if isinstance(placed, int) else words[placed]()

    inputs = [placement(p) if g else None for p, g in zip(way.inputs, given, strict=False)]
    return [*[placement(p) for p in way.outputs[:count]], *inputs]
