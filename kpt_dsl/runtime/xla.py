"""Generated Pallas functions on tensors of PyTorch/XLA, as a part of the graph that their device runs later.

Such tensors have no memory to write to: ``call_jax`` gives new ones, which outputs are set to. What it traced it knows again by
the text of a function and by the shapes of its arguments. Nothing here imports JAX before PyTorch/XLA has taken the device.
"""

import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from kpt_dsl.arrays import library
from kpt_dsl.errors import MissingPackageError

if TYPE_CHECKING:
    from kpt_dsl.emit import Source

CPU = "cpu"
"""The kind of a device that is none: what PyTorch/XLA runs on where it is told ``PJRT_DEVICE=CPU``."""

INT32 = -(2**31), 2**31 - 1

OLDEST_JAX = (0, 7)
"""The release that PyTorch/XLA 2.9 brings. ``kpt.jax`` needs a newer one."""

CALLED_THROUGH = ("torchax", "flax")
"""What ``call_jax`` imports besides; without them it says that JAX is missing."""


def is_xla(array: Any) -> bool:
    """Whether an array is a tensor of PyTorch/XLA."""
    return library(array) == "torch" and array.device.type == "xla"


def kind(arrays: Mapping[Any, Any]) -> str | None:
    """What kind of device the tensors of PyTorch/XLA are on, as its driver says ("TPU v4", "cpu"); None where there are none."""
    device = next((str(array.device) for array in arrays.values() if is_xla(array)), None)
    return None if device is None else _kind(device)


@lru_cache(maxsize=64)
def _kind(device: str) -> str:
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
    from torch_xla.core.xla_builder import call_jax

    given = [*(_narrowed(arrays[a.name]) for a in source.abi.inputs), *(arrays[a.name] for a in source.abi.scalars)]
    found = call_jax(function, tuple(given), override_hash=(source, interpret))
    for name, result in _named(source, found):
        arrays[name].copy_(result)


def _named(source: "Source", found: Any) -> Iterator[tuple[str, Any]]:
    """The outputs of a function by name; of a single one it is the output itself."""
    names = [a.name for a in source.abi.outputs]
    yield from zip(names, found if len(names) > 1 else [found], strict=True)


def check_packages() -> None:
    """Raises MissingPackageError where JAX is missing or too old, or where PyTorch/XLA cannot call it."""
    wanted = f"tensors of PyTorch/XLA need JAX {'.'.join(map(str, OLDEST_JAX))} or newer: pip install 'torch_xla[pallas]' flax"
    try:
        found = version("jax")
    except PackageNotFoundError as error:
        raise MissingPackageError(f"{wanted}; it is not installed") from error
    if tuple([int(part) for part in found.split(".")[:2]]) < OLDEST_JAX:
        raise MissingPackageError(f"{wanted}; {found} is installed")
    if missing := [name for name in CALLED_THROUGH if find_spec(name) is None]:
        raise MissingPackageError(f"{wanted}; {' and '.join(missing)} is not installed")


def _narrowed(tensor: Any) -> Any:
    """A tensor as a TPU computes with it: whole numbers of 64 bits as the nearest of 32, so that an index outside of a dim stays
    outside."""
    import torch

    return tensor.clamp(*INT32).to(torch.int32) if tensor.dtype == torch.int64 else tensor
