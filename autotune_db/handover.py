"""A launch that is found out and compiled by one process and taken over by another, which then has little left to do.

``make`` takes a config, emits text, compiles it into the cache on disk, and writes the function that makes launches of the
whole class (``kpt_dsl.runtime.triton_class``). ``take`` loads the binary: some milliseconds, of which another thread need not
wait for any.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kpt_dsl import configs
from kpt_dsl.build.triton import binary
from kpt_dsl.emit import Source, emit
from kpt_dsl.errors import CompileError
from kpt_dsl.instance import Instance
from kpt_dsl.runtime import triton, triton_class
from kpt_dsl.runtime.triton_class import Known
from kpt_dsl.runtime.triton_launch import Launch
from kpt_dsl.targets import Target


@dataclass(frozen=True)
class Made:
    """What a launch is made of. ``text``, ``kept``: what it leaves behind for others of its class; None where it has none."""

    instance: Instance
    source: Source
    text: str | None
    kept: tuple[Any, ...]


def make(instance: Instance, target: Target, folder: str) -> Made:
    """Compile what dispatch would take for a instance here into the other process's folder of binaries.

    Raises as compiling does, and CompileError where that folder does not keep it.
    """
    config = triton.with_precision(instance, configs.choose(instance, target)[0], target)
    source = emit(instance, target, config)
    compiled = binary(source, target.arch, target.warp_lanes, launched=True)
    if not Path(next(iter(compiled.metadata_group.values()))).is_relative_to(folder):
        raise CompileError(f"{source.name} cannot be handed over: the cache folder {folder} cannot be written")
    text, kept = triton_class.written(instance, target, config, source) or (None, ())
    return Made(instance, source, text, kept)


def take(made: Made, device: int, circumstances: tuple[Hashable, ...]) -> None:
    """Load what another process made on a device, so that calls of its class find it under these circumstances.

    Raises CompileError where it cannot be loaded.
    """
    chip = triton.present(device)
    instance = made.instance
    launch = Launch(instance, made.source, binary(made.source, chip.arch, chip.warp_lanes, device), device)
    known = triton.launches_of(instance, device, circumstances)
    if made.text is not None:
        triton_class.remember(known, instance, made.text, made.kept, launch)
        return

    def at(*arguments: Any) -> Launch | None:
        return launch if Instance.bind(instance.kernel, instance.kernel.bind(*arguments)) == instance else None

    known.insert(0, Known(instance.specialisation, "", (instance,), at))
