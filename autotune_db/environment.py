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
    """Exact name of the device of this target that is present; the target's name where there is none."""
    return next((name for name in present_devices() if _is_a(name, target)), target.name)


def present_devices() -> tuple[str, ...]:
    """Exact names of the GPUs that torch sees, if torch is in use."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


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
        if torch.cuda.is_available():
            known["driver"] = _driver()
            known["toolkit"] = str(torch.version.cuda or torch.version.hip)
    return known


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
