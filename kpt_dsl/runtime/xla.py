"""Generated Pallas functions on tensors of PyTorch/XLA, as a part of the graph that their device runs later.

Such tensors have no memory to write to: ``call_jax`` gives new ones, which outputs are set to. What it traced it knows again by
the text of a function and by the shapes of its arguments. Nothing here imports JAX before PyTorch/XLA has taken the device.
"""

import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from kpt_dsl.arrays import library
from kpt_dsl.errors import MissingPackageError
from kpt_dsl.extensions import check_release
from kpt_dsl.runtime import torch_tpu

if TYPE_CHECKING:
    from kpt_dsl.emit import Source

DEVICES = ("xla", "tpu")
"""The types of PyTorch/XLA's devices, and of TorchTPU's."""

CPU = "cpu"
"""The kind of a device that is none: what PyTorch/XLA runs on where it is told ``PJRT_DEVICE=CPU``."""

INT32 = -(2**31), 2**31 - 1

OLDEST_JAX = (0, 7)
"""The release that PyTorch/XLA 2.9 brings. ``kpt.jax`` needs a newer one."""

CALLED_THROUGH = ("torchax", "flax")
"""What ``call_jax`` imports besides; without them it says that JAX is missing."""


def is_xla(array: Any) -> bool:
    """Whether an array is a tensor of PyTorch/XLA, or of TorchTPU, which is to follow it."""
    return library(array) == "torch" and hasattr(array, "device") and array.device.type in DEVICES


def kind(arrays: Mapping[Any, Any]) -> str | None:
    """What kind of device tensors of PyTorch/XLA are on, as its driver says ("TPU v4", "cpu"); None where there are none."""
    device = next((str(array.device) for array in arrays.values() if is_xla(array)), None)
    return None if device is None else _kind(device)


@lru_cache(maxsize=64)
def _kind(device: str) -> str:
    if device.startswith("tpu"):
        return torch_tpu.device_name()
    from torch_xla.core import xla_model

    found: str = xla_model.xla_device_kind(device)
    return found


def guard_import() -> None:
    """Let PyTorch/XLA, where it is loaded, take the TPU before JAX is imported and does: whoever is second waits for ever."""
    if "torch_xla" in sys.modules and "jax" not in sys.modules:
        from torch_xla._internal.jax_workarounds import jax_import_guard

        jax_import_guard()


def run(source: "Source", function: Any, interpret: Any, arrays: Mapping[str, Any]) -> None:
    """Put a generated function into the graph of its arguments, by name, and set its outputs to what it gives.

    Numbers are part of the graph: another number is another trace.
    """
    given = [*(_narrowed(arrays[a.name]) for a in source.abi.inputs), *(arrays[a.name] for a in source.abi.scalars)]
    outputs = source.abi.outputs
    if arrays[outputs[0].name].device.type == "tpu":
        found = torch_tpu.operator(source, function)(*given)
    else:
        from torch_xla.core.xla_builder import call_jax

        found = call_jax(function, tuple(given), override_hash=(source, interpret))
    for output, result in zip(outputs, found if len(outputs) > 1 else [found], strict=True):
        arrays[output.name].copy_(result)


def check_packages(device: str) -> None:
    """Raises MissingPackageError where JAX is missing or too old for tensors on such devices, or cannot be called."""
    wanted = f"tensors on {device} need JAX {OLDEST_JAX[0]}.{OLDEST_JAX[1]} or newer: pip install 'torch_xla[pallas]' flax"
    check_release("jax", OLDEST_JAX, wanted)
    if missing := [name for name in CALLED_THROUGH if device != "tpu" and find_spec(name) is None]:
        raise MissingPackageError(f"{wanted}; {' and '.join(missing)} is not installed")


def _narrowed(tensor: Any) -> Any:
    """A tensor as a TPU computes with it: whole numbers of 64 bits are the nearest of 32, so that an index that lies outside of
    a dim stays there."""
    import torch

    return tensor.clamp(*INT32).to(torch.int32) if tensor.dtype == torch.int64 else tensor
