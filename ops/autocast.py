"""What torch.autocast does to an op: casts its floating inputs as the op's policy says, and nothing inside again."""

from collections.abc import Sequence
from typing import Any

import torch

from kpt.ops.registry import AutocastPolicy


def as_pytorchs(native: str, policy: AutocastPolicy) -> dict[str, AutocastPolicy]:
    """The policy on CUDA, where this PyTorch has one there for its own op: that of ``rms_norm`` is younger than the op."""
    known = torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{native}", "AutocastCUDA")
    return {"cuda": policy if known else "keep"}


def cast(
    policy: AutocastPolicy, device: str, arguments: Sequence[Any], left_alone: Sequence[int] = ()
) -> Sequence[Any]:
    """The arguments as an op of this policy takes them: floating tensors of the device cast, all but float64 and those at the
    positions that are ``left_alone``."""
    if policy == "keep":
        return arguments
    dtype = torch.float32 if policy == "float32" else torch.get_autocast_dtype(device)
    return [
        a.to(dtype)
        if isinstance(a, torch.Tensor)
        and a.is_floating_point()
        and a.device.type == device
        and a.dtype not in (dtype, torch.float64)
        and position not in left_alone
        else a
        for position, a in enumerate(arguments)
    ]


class Off:
    """Autocast off inside, on a device where it is on.

    ``torch.autocast(device, enabled=False)`` asks the device first, which takes longer than many a kernel.
    """

    __slots__ = ("_device",)

    def __init__(self, device: str) -> None:
        self._device = device

    def __enter__(self) -> None:
        torch.set_autocast_enabled(self._device, False)

    def __exit__(self, *_: object) -> None:
        torch.set_autocast_enabled(self._device, True)
