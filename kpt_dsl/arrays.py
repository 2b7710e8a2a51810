"""What kernels need to know of arrays: the attributes that array libraries share, and which arrays are not what they seem.

Imports no array library: an array's library is known by the modules that its type and its type's bases come from.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any

from kpt_dsl.dtypes import dtype
from kpt_dsl.errors import InputError

ALIGNMENT = 16
"""Bytes to which a base address must be aligned for wide loads and descriptors (CUDA programming guide, tensor maps)."""

_MOST_STEPS = 100_000
"""How long two indices of one place are looked for, in steps of less than a microsecond."""

_NOWHERE = -1
"""Stands for the alignment of an address that is none."""


_libraries: dict[type, str] = {}
"""What is known of types so far."""


def library(array: Any) -> str:
    """Whose array a value is: "torch", "jax", "numpy", or "" for none that kpt knows."""
    kind = type(array)
    found = _libraries.get(kind)
    if found is None:
        names = (base.__module__.partition(".")[0] for base in kind.__mro__)
        found = next((n.removesuffix("lib") for n in names if n in ("torch", "jax", "jaxlib", "numpy")), "")
        _libraries[kind] = found
    return found


def layout(array: Any) -> Hashable:
    """All that a kernel's launch depends on in an array, beside the values in it."""
    if hasattr(array, "data_ptr"):
        place = _address(array)
        return (
            type(array), array.dtype, array.shape, array.stride(), place % ALIGNMENT if place else _NOWHERE,
            array.is_neg(), array.requires_grad,
        )  # fmt: skip
    if array is None:
        return None
    interface = getattr(array, "__array_interface__", {"data": (0, False)})
    place, fixed = interface["data"]
    return (
        type(array), str(array.dtype), tuple(array.shape), getattr(array, "strides", None), place % ALIGNMENT, fixed,
    )  # fmt: skip


def _address(tensor: Any) -> int:
    """Where a tensor of PyTorch begins; 0 where no address tells, for which some of PyTorch/XLA's must not even be asked."""
    return 0 if tensor.device.type == "xla" else tensor.data_ptr()


def strides(array: Any) -> tuple[int, ...]:
    """Strides in elements: torch gives them so, NumPy in bytes, JAX arrays and shape specs are contiguous."""
    stride = getattr(array, "stride", None)
    if callable(stride):
        return tuple(stride())
    found, itemsize = getattr(array, "strides", None), getattr(array, "itemsize", None)
    if isinstance(found, tuple) and itemsize:
        return tuple(s // itemsize for s in found)
    return tuple(math.prod(array.shape[i + 1 :]) for i in range(len(array.shape)))


def aligned(array: Any) -> bool:
    """Whether an array's base address is a multiple of ALIGNMENT; that of one without memory counts as such."""
    if hasattr(array, "data_ptr"):
        try:
            return _address(array) % ALIGNMENT == 0
        except RuntimeError:
            return True
    interface = getattr(array, "__array_interface__", None)
    return interface is None or interface["data"][0] % ALIGNMENT == 0


def why_unfit(name: str, array: Any, dims: Sequence[str], written: bool) -> str | None:
    """What makes an array unfit for the argument ``name`` of these dims, in words that follow the name, or None."""
    kind = library(array)
    if kind == "torch" and (trouble := _torch_trouble(name, array)):
        return trouble
    if getattr(array, "shape", None) is None or getattr(array, "dtype", None) is None:
        shown = repr(array)
        return (
            f"is {shown if len(shown) < 80 else shown[:77] + '...'}, but must be a tensor with dims ({', '.join(dims)})"
        )
    if len(array.shape) != len(dims):
        return f"has shape {tuple(array.shape)}, but needs {len(dims)} dims ({', '.join(dims)})"
    if kind == "numpy" and (trouble := _numpy_trouble(name, array, written)):
        return trouble
    try:
        dtype(array.dtype)
    except InputError as error:
        return f"cannot be served: {error}"
    if written and overlaps(array.shape, strides(array)):
        return (
            f"has shape {tuple(array.shape)} and strides {strides(array)}, so that several of its elements are one place in "
            f"memory; an output needs a place for each: torch.empty({tuple(array.shape)})"
        )
    return None


def why_no_memory(array: Any) -> str | None:
    """What makes an array one that cannot be read or written now, in words that follow its name, or None."""
    kind = type(array).__name__
    if library(array) == "jax" or 0 in array.shape or not hasattr(array, "data_ptr"):
        return None
    try:
        address = _address(array)
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        return f"is a {kind} without memory of its own ({why}); a kernel runs on tensors that hold values"
    if address or array.device.type == "xla":  # whose values are where no address tells
        return None
    return f"is a {kind} on {array.device} without memory; a kernel runs on tensors that hold values"


def overlaps(shape: Sequence[int], steps: Sequence[int]) -> bool:
    """Whether two indices of an array are one place in memory, or cannot be shown not to be in a reasonable time."""
    if 0 in shape:
        return False
    axes = sorted((abs(step), extent) for extent, step in zip(shape, steps, strict=True) if extent > 1)
    reach = 0
    for step, extent in axes:
        if step <= reach:
            return step == 0 or _meet(axes)
        reach += step * (extent - 1)
    return False


def _meet(axes: list[tuple[int, int]]) -> bool:
    """Whether some differences of indices, not all of them 0, lead nowhere: the sum of difference times step is 0."""
    reaches, common = [0], [0]  # how far the first axes lead, and what divides wherever they do
    for step, extent in axes:
        reaches.append(reaches[-1] + step * (extent - 1))
        common.append(math.gcd(common[-1], step))
    seen: set[tuple[int, int, bool]] = set()
    waiting = [(len(axes), 0, False)]
    while waiting:
        level, rest, moved = waiting.pop()
        if level == 0:
            if moved and rest == 0:
                return True
            continue
        if len(seen) > _MOST_STEPS:
            return True
        step, extent = axes[level - 1]
        reach, divides = reaches[level - 1], common[level - 1]
        low = max(-(extent - 1) if moved else 0, math.ceil((-reach - rest) / step))
        for difference in range(low, min(extent - 1, (reach - rest) // step) + 1):
            left = rest + difference * step
            state = (level - 1, left, moved or difference != 0)
            if (left % divides == 0 if divides else left == 0) and state not in seen:
                seen.add(state)
                waiting.append(state)
    return False


def _torch_trouble(name: str, tensor: Any) -> str | None:
    kind = str(tensor.layout).removeprefix("torch.")
    if kind != "strided" or tensor.is_nested:
        kind = "nested" if tensor.is_nested else kind.removeprefix("_")
        dense = f"{name}.to_padded_tensor(0.0)" if tensor.is_nested else f"{name}.to_dense()"
        return f"is a {kind} tensor, but a kernel reads plain memory with strides: {dense}"
    if tensor.is_quantized:
        return f"is a quantised tensor ({tensor.dtype}), which kernels do not read: {name}.dequantize()"
    return None


def _numpy_trouble(name: str, array: Any, written: bool) -> str | None:
    if "mask" in dir(type(array)):
        return f"is a {type(array).__name__}, whose mask a kernel does not see: {name}.filled(...)"
    if not array.dtype.isnative:
        kind = array.dtype
        return (
            f"has dtype {kind.str}, whose bytes are in another order than this machine's: {name}.astype({kind.name!r})"
        )
    if any(step % array.itemsize for step in array.strides):
        return (
            f"has strides of {array.strides} bytes, no multiples of its {array.itemsize}-byte elements: {name}.copy()"
        )
    if written and not array.flags.writeable:
        return f"is read-only, but the kernel writes it: {name}.copy()"
    return None
