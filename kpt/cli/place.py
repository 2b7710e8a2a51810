"""Which target a command is about, and whether its device is here."""

from dataclasses import dataclass

from autotune_db import environment
from kpt_dsl import targets
from kpt_dsl.errors import InputError
from kpt_dsl.targets import Target


@dataclass(frozen=True)
class Place:
    """A target, and the number of its device on this machine (None: there is none, so results are predictions)."""

    target: Target
    device: int | None


def place(target: str | None, device: int | None, offline: bool = False) -> Place:
    """Of ``--target``, ``--device`` and ``--offline``. Raises TargetError or InputError for one that is unknown or absent."""
    named = targets.get(target) if target else None
    present = _present()
    if device is not None:
        if not 0 <= device < len(present):
            raise InputError(f"--device {device}: this machine has {len(present)} GPUs, numbered from 0")
        found = _target_of(present[device])
        if named and named != found:
            raise InputError(f"--device {device} is {present[device]} ({found.name}), not --target {named.name}")
        return Place(found, None if offline else device)
    if named is None:
        if not present:
            raise InputError(
                "there is no GPU here: name the chip to tune for with --target, as in --target nvidia-h200"
            )
        return Place(_target_of(present[0]), None if offline else 0)
    if named.backend == "numpy":
        return Place(named, None if offline else 0)  # the machine itself
    here = [i for i, name in enumerate(present) if targets.of_device(name) == named]
    return Place(named, here[0] if here and not offline else None)


def _present() -> tuple[str, ...]:
    environment.look_for_devices()
    return environment.present_devices()


def _target_of(device_name: str) -> Target:
    found = targets.of_device(device_name)
    if found is None:
        raise InputError(
            f"this GPU, {device_name!r}, is none of kpt's targets; name the nearest with --target "
            f"({', '.join(targets.names())}), or add one (docs: add a target)"
        )
    return found
