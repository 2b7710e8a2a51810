"""The devices that kernels are generated for, by name.

Ours are listed in the modules beside this one. A package adds its own through an entry point of the group ``kpt.targets`` that
names a module with a tuple ``TARGETS``; it is loaded the first time that a target is looked for, never on import.
Nothing here asks a driver which devices are present.
"""

import difflib
import re
from functools import cache

from kpt_dsl.errors import TargetError
from kpt_dsl.extensions import entry_points
from kpt_dsl.targets import amd, cpu, nvidia, tpu
from kpt_dsl.targets.target import CPU_RULES, GPU_RULES, TPU_RULES, Target

__all__ = ["CPU_RULES", "GPU_RULES", "TPU_RULES", "Target", "get", "names", "of_device"]

_OWN = (nvidia, amd, tpu, cpu)


@cache
def _all() -> dict[str, Target]:
    found = {target.name: target for module in _OWN for target in module.TARGETS}
    for entry in entry_points(group="kpt.targets"):
        for target in entry.load().TARGETS:
            if target.name in found:
                raise TargetError(f"entry point kpt.targets:{entry.name} offers {target.name!r}, which exists already")
            found[target.name] = target
    return found


def names() -> tuple[str, ...]:
    """Every target's name."""
    return tuple(_all())


def get(name: str) -> Target:
    """The target of a name. Raises TargetError, with close matches, for a name that is not one."""
    known = _all()
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=3)
    guess = f"; did you mean {' or '.join(close)}?" if close else ";"
    raise TargetError(f"unknown target {name!r}{guess} known are {', '.join(known)}")


def of_device(device_name: str) -> Target | None:
    """The target of a device by the name that its driver reports ("NVIDIA H200", "TPU v6 lite"), or None for an unknown one."""
    for target in _all().values():
        if any(re.fullmatch(pattern, device_name) for pattern in target.device_names):
            return target
    return None
