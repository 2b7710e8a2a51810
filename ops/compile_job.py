"""What another process is asked to make for a call, and what it does: no device is needed, and no tensor has memory.

A call that needs gradients has the kernels of its backward made with it. Which ops those are is seen by going through both
passes with tensors of the meta device.
"""

import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from autotune_db import handover, lookup
from autotune_db.handover import Made
from autotune_db.overlays import overlay
from kpt.ops.backends import quickest
from kpt.ops.registry import Op, get
from kpt_dsl import targets
from kpt_dsl.errors import KptError
from kpt_dsl.instance import Instance
from kpt_dsl.kernel import Kernel
from kpt_dsl.space import Config
from kpt_dsl.targets import Target


@dataclass(frozen=True)
class Surroundings:
    """What decides, beside a call itself, which binaries it takes: the ``environment`` as far as it says where things lie, the
    ``generation`` of configs and what ``overlays`` lie over them, the word for ``products`` of float32, the ``folder`` of
    binaries."""

    environment: tuple[tuple[str, str | None], ...]
    generation: tuple[int, int]
    overlays: Mapping[Kernel | str, Config]
    products: str
    folder: str


@dataclass(frozen=True)
class Request:
    """What to make: launches of ``instances``, and of the quickest of each of some ``ways``; for ``gradients`` of a call of
    this ``op`` with these ``arguments`` what its backward takes, too."""

    op: str
    arguments: tuple[Any, ...]
    gradients: bool
    instances: Sequence[Instance]
    ways: Sequence[Sequence[Sequence[Instance]]]
    target: str
    surroundings: Surroundings


@dataclass(frozen=True)
class Answer:
    """What was ``made``, and the number of the ``quickest`` of each of the ways that were asked about."""

    made: tuple[Made, ...]
    quickest: tuple[int, ...]


def make(pickled: bytes) -> Answer:
    """Do what a ``Request`` asks for. Raises as compiling does, for what the call itself needs."""
    request: Request = pickle.loads(pickled)
    target, surroundings = targets.get(request.target), request.surroundings
    _settle(surroundings)
    with overlay(surroundings.overlays):
        numbers = tuple(quickest(ways, target) for ways in request.ways)
        wanted = [*request.instances, *(p for n, ways in zip(numbers, request.ways, strict=True) for p in ways[n])]
        made = {instance: handover.make(instance, target, surroundings.folder) for instance in wanted}
        if request.gradients:
            for instance in backward_instances(get(request.op), request.arguments, target):
                try:
                    made[instance] = handover.make(instance, target, surroundings.folder)
                except KptError:  # it is asked for again when it is called, and said then
                    continue
    return Answer(tuple(made.values()), numbers)


_settled: Surroundings | None = None


def _settle(surroundings: Surroundings) -> None:
    """Let this process have the surroundings of the one that asks."""
    global _settled
    if surroundings == _settled:
        return
    for variable, value in surroundings.environment:
        if value is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = value
    torch.set_float32_matmul_precision("high" if surroundings.products == "tf32" else "highest")
    lookup.forget()
    _settled = surroundings


class _Noting(TorchDispatchMode):
    """Notes the ops of ours that are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.noted: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, function: Any, _: Any, arguments: tuple[Any, ...] = (), more: Any = None) -> Any:
        if function.namespace == "kpt":
            self.noted.append((function._schema.name.partition("::")[2], arguments))
        return function(*arguments, **(more or {}))


def backward_instances(op: Op, arguments: tuple[Any, ...], target: Target) -> Iterator[Instance]:
    """Those of the kernels of the backward of a call of meta tensors, for gradients laid out as outputs are."""
    assert op.gradient is not None
    needed = tuple(isinstance(a, torch.Tensor) and a.requires_grad for a in (arguments[p] for p in op.differentiable))
    with _Noting() as seen, torch.no_grad():
        outputs, saved = op.gradient.forward(op.fake, needed, *arguments)
        given = outputs if isinstance(outputs, list) else [outputs]
        op.gradient.backward(saved, needed, *map(torch.empty_like, given))
    for name, noted in seen.noted:
        yield from get(name).record(noted, target)
