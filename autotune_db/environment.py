"""What a timing depends on besides the key: device, driver, packages. Also the two that are in the key: device and compiler.

Imports nothing heavy: versions come from package metadata, and a device is asked for only through a torch that the program
has already imported.
"""

import platform
import sys
from functools import cache
from importlib import metadata

from kpt_dsl import targets
from kpt_dsl.targets import Target

_COMPILERS = {"triton": ("triton",), "pallas": ("jax", "libtpu"), "numpy": ("numpy",)}
"""Backend -> the packages that turn its source into code. A backend that is not listed is a package of its own name."""

_ON_TORCH = ("triton",)
"""Backends whose devices are those of torch."""


@cache
def version(package: str) -> str:
    """Installed version of a distribution, ``"absent"`` where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


@cache
def compiler(backend: str) -> str:
    """``"triton 3.9.0"``: what compiles a backend's source."""
    packages = _COMPILERS.get(backend, (backend,))
    return (
        ", ".join(f"{package} {version(package)}" for package in packages if version(package) != "absent") or "absent"
    )


def device_name(target: Target) -> str:
    """Exact name of the device of this target that is in use; the target's name where there is none.

    A GPU that no target describes runs as the target of its architecture, under its own name.
    """
    if target.backend not in _ON_TORCH:
        return target.name
    names = present_devices()
    known = (name for name in names if _is_a(name, target))
    strangers = (name for name in names if targets.of_device(name) is None)
    return next(known, None) or next(strangers, target.name)


def look_for_devices() -> None:
    """Bring torch's devices into use. Not for dispatch: a process that has done this cannot fork and use them."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.init()


def present_devices() -> tuple[str, ...]:
    """Exact names of the GPUs that are in use through torch."""
    torch = sys.modules.get("torch")
    return _gpus() if torch is not None and torch.cuda.is_initialized() else ()


def is_of_target(device: str, target: Target) -> bool:
    """Whether an exact device name, or a target's name, belongs to a target."""
    return device == target.name or _is_a(device, target)


def describe(target: Target) -> dict[str, str]:
    """What to store beside timings and predictions."""
    known = {
        "device": device_name(target),
        "target": target.name,
        "compiler": compiler(target.backend),
        "kpt": version("kpt-dsl"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        known["torch"] = str(torch.__version__)
        if torch.cuda.is_initialized():
            known["driver"] = _driver()
            known["toolkit"] = str(torch.version.cuda or torch.version.hip)
    return known


@cache
def _gpus() -> tuple[str, ...]:
    import torch

    return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


@cache
def _is_a(device: str, target: Target) -> bool:
    found = targets.of_device(device)
    return found is not None and found.name == target.name


@cache
def _driver() -> str:
    """Version of the GPU driver, as its own tool tells it."""
    import shutil
    import subprocess

    for command in (
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"],
        ["rocm-smi", "--showdriverversion", "--csv"],
    ):
        if shutil.which(command[0]):
            try:
                told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()
            except (subprocess.SubprocessError, OSError):
                continue
            return told[-1] if told else "unknown"
    return "unknown"
