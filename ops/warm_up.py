"""``warm_up``: what a program will call is compiled before it calls it, and loaded."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kpt.ops.calls import Call
from kpt_dsl import runtime, targets
from kpt_dsl.errors import InputError, KptError
from kpt_dsl.instance import Instance
from kpt_dsl.targets import Target

if TYPE_CHECKING:
    from autotune_db.ahead import Ahead, Watch


@dataclass(frozen=True)
class Warmed:
    """What ``warm_up`` did; printing it reads well. ``failed``: kernels or calls, and why they have no binary."""

    calls: int
    binaries: int
    seconds: float
    failed: tuple[str, ...] = ()

    def __str__(self) -> str:
        found = f"{self.binaries} binaries for {self.calls} kinds of call in {self.seconds:.1f} s"
        return "\n".join([found, *(f"  not made: {why}" for why in self.failed)])

    __repr__ = __str__


def warm_up(
    calls: Iterable[Call], *, target: str | None = None, processes: int | None = None, watch: "Watch | None" = None
) -> Warmed:
    """Compile all that calls will need, for every length of their classes, into the cache on disk, and load it here.

    ``calls``: those of ``kpt.ops.recording`` or ``kpt.ops.Calls.load``. ``target``: by default that of the GPU in use; for
    another one binaries are made on disk only. ``processes`` compile at a time, by default one a core. ``watch(done, all)`` is
    told how far it is. Tensors that are not aligned to 16 bytes are taken for such as are.

    Raises InputError without a GPU and a target, TargetError for an unknown one; what a single kernel fails with is told by the
    result, and raised where it is called.
    """
    from autotune_db.ahead import compile_ahead  # brings compilers, which dispatch does without

    began, given = time.monotonic(), list(calls)
    chip, device = _place(target)
    instances: list[Instance] = []
    refused: list[str] = []
    for call in given:
        try:
            instances += call.instances(chip)
        except KptError as error:
            refused.append(f"{call}: {error}")
    made = compile_ahead(instances, chip, processes, watch)
    if device is not None:
        _load(made, chip, device)
    return Warmed(len(given), made.binaries, time.monotonic() - began, (*refused, *dict.fromkeys(made.failed)))


def _load(made: "Ahead", chip: Target, device: int) -> None:
    """Prepare launches, of which those of other extents are made when they are called."""
    for wanted in made.wanted:
        try:
            runtime.runtime(chip.backend).prepare(wanted.instance, wanted.config, device)
        except KptError as error:
            made.failed.append(f"{wanted.instance}: {error}")


def _place(target: str | None) -> tuple[Target, int | None]:
    """The target, and the number of the device here that is one."""
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    present = None if device is None else targets.of_device(torch.cuda.get_device_name(device))
    if target is None:
        if present is None:
            raise InputError("target is None, and no GPU that kpt knows is in use; name one: target='nvidia-h200'")
        return present, device
    chip = targets.get(target)
    return chip, device if chip == present else None
