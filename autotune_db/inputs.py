"""Arguments for an instance that is to be timed: torch tensors with its very shapes, strides, dtypes and alignment.

Values are random: a card's clocks depend on what it multiplies. torch is imported when they are made.
"""

from collections.abc import Mapping
from typing import Any

from kpt_dsl import ir
from kpt_dsl.instance import Instance
from kpt_dsl.passes import indices

_TORCH = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "f8e4m3": "float8_e4m3fn",
    "f8e5m2": "float8_e5m2",
    "i8": "int8",
    "u8": "uint8",
    "i32": "int32",
    "i64": "int64",
    "bool": "bool",
}

_WHOLE: Mapping[str, tuple[int, int]] = {"i8": (-128, 127), "u8": (0, 255), "bool": (0, 1)}
"""What types hold that are too small to count with; what they hold is data, unless it is an index."""

FLOAT_ARGUMENT = 0.125
"""Scalar arguments have this value: small beside normal data, exact in every type."""


def make(instance: Instance, device: str, seed: int) -> dict[str, Any]:
    """Every argument of the kernel by name; outputs hold garbage, absent tensors and scalars are None."""
    import torch

    random = torch.Generator(device).manual_seed(seed)
    arguments: dict[str, Any] = {**dict.fromkeys(instance.kernel.tensors), **dict(instance.specialisation.statics)}
    dims = dict(instance.extents.dims)
    kernel = instance.lower({})
    groups = {loop.groups: dims[loop.dim] for loop in kernel.grid if isinstance(loop, ir.Tile) and loop.groups}
    # What else is known of each group is where it ends along a dim that is looped over.
    starts = {t.name: _longest(instance) for t in kernel.tensors for g in groups if t.dims == (g.dim,) and t.role == "in"}
    starts |= {group.tensor: extent for group, extent in groups.items()}
    for name, strides in instance.extents.strides:
        shape, element = instance.shape(name), instance.specialisation.dtype(name)
        assert element is not None
        offset = 0 if name in instance.extents.aligned else 1
        length = 1 + offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if element.is_float:
            flat = torch.randn(length, device=device, generator=random)
        else:
            low, high = _integers(instance, name, element.name)
            flat = torch.randint(low, high + 1, (length,), device=device, generator=random)
        if name in starts:  # groups of one length
            flat = (torch.arange(length, device=device) - offset) * starts[name] // max(1, length - 1 - offset)
        flat = flat.to(getattr(torch, _TORCH[element.name]))
        arguments[name] = flat.as_strided(shape, strides, offset)
    for name, kind in instance.kernel.scalars.items():
        if name not in arguments:
            count = min((_longest(instance) + 1) // 2, _integers(instance, name)[1])
            arguments[name] = FLOAT_ARGUMENT if kind == "float" else count
    return arguments


def _integers(instance: Instance, name: str, element: str = "i32") -> tuple[int, int]:
    """The least and largest value of a tensor or scalar that is safe: as an index where it is one, else as a count."""
    extents = dict(instance.extents.dims)
    whole = _WHOLE.get(element, ())
    indexed = [extents[dim] - 1 for used, dim in indices.indexed_with(instance.lower({})) if used == name]
    if indexed:
        return 0, max(0, min([*indexed, *whole[1:]]))
    longest = _longest(instance)
    return whole or ((longest + 1) // 2, longest)


def _longest(instance: Instance) -> int:
    """The largest value that is safe as a count of elements: the shortest dim that is looped over, for those are counted."""
    loops = [s.over.dim for s in ir.statements(instance.lower({}).body) if isinstance(s, ir.For)]
    extents = dict(instance.extents.dims)
    return max(1, min((extents[dim] for dim in loops), default=min(extents.values())))
