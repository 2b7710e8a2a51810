"""A specialisation at extents, one of its class: what is tuned, looked up, compiled and launched.

Reads the few attributes that array libraries share (shape, dtype, strides); imports none of them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kpt_dsl import arrays, ir
from kpt_dsl.dtypes import dtype
from kpt_dsl.errors import InputError
from kpt_dsl.extents import Extents
from kpt_dsl.frontend.outside import Helper
from kpt_dsl.passes import ranges
from kpt_dsl.passes.intervals import Interval
from kpt_dsl.specialisation import Specialisation

if TYPE_CHECKING:
    from kpt_dsl.definition import Definition


@dataclass(frozen=True)
class Instance:
    """What a kernel is bound to by the arguments of a call."""

    specialisation: Specialisation
    extents: Extents

    @staticmethod
    def bind(kernel: "Definition", arguments: Mapping[str, Any]) -> "Instance":
        """From arrays (torch, JAX, NumPy, or anything with shape and dtype), scalars and static arguments.

        Raises InputError for a missing argument, a wrong rank, dims that disagree, an unknown dtype, or memory that is not
        what it seems (sparse, masked, byte-swapped; outputs that are read-only or whose elements overlap).
        """
        arguments = {**kernel.defaults, **arguments}
        dims: dict[str, tuple[int, str]] = {}
        dtypes: list[tuple[str, str | None]] = []
        strides: list[tuple[str, tuple[int, ...]]] = []
        aligned: set[str] = set()
        for name, names in kernel.tensors.items():
            array = arguments[name]
            if array is None:
                dtypes.append((name, None))
                continue
            if trouble := arrays.why_unfit(name, array, names, kernel.roles[name] == "out"):
                raise InputError(f"{kernel.name}: {name} {trouble}")
            for dim, extent in zip(names, array.shape, strict=True):
                known = dims.setdefault(dim, (int(extent), name))
                if known[0] != extent:
                    raise kernel.disagreement(dim, *known, extent, name, array.shape)
            dtypes.append((name, dtype(array.dtype).name))
            strides.append((name, arrays.strides(array)))
            if arrays.aligned(array):
                aligned.add(name)
        return Instance(
            Specialisation.now(kernel, tuple(dtypes), kernel.static_values(arguments)),
            Extents(tuple((d, n) for d, (n, _) in dims.items()), tuple(strides), frozenset(aligned)),
        )

    @staticmethod
    def of_shapes(
        kernel: "Definition",
        dims: Mapping[str, int],
        dtypes: Mapping[str, str | None],
        statics: Mapping[str, Any] | None = None,
    ) -> "Instance":
        """For contiguous, aligned tensors that need not exist. A tensor whose dtype is None is absent, as is what has a default
        and is not given.

        Raises InputError for an unknown or missing name, or a negative extent.
        """
        statics = dict(statics or {})
        for what, given, known in (
            ("dtypes", dtypes, kernel.tensors), ("statics", statics, kernel.other_parameters),
        ):  # fmt: skip
            if unknown := set(given) - set(known):
                raise InputError(f"{kernel.name} has no {what} {sorted(unknown)}; it has {', '.join(known) or 'none'}")
        if missing := set(kernel.tensors) - set(dtypes) - set(kernel.defaults):
            raise InputError(
                f"{kernel.name}: no dtype for {sorted(missing)}; give a dtype, or None where a tensor is absent"
            )
        present = {tensor: dtype(element).name for tensor, element in dtypes.items() if element is not None}
        elements = tuple((tensor, present.get(tensor)) for tensor in kernel.tensors)
        specialisation = Specialisation.now(kernel, elements, kernel.static_values(statics, partial=True))
        return Instance(specialisation, _dense(specialisation, dims))

    @property
    def kernel(self) -> "Definition":
        return self.specialisation.kernel

    def with_dims(self, **extents: int) -> "Instance":
        """The same specialisation on contiguous, aligned tensors, with some extents changed. Raises as ``of_shapes``."""
        return Instance(self.specialisation, _dense(self.specialisation, dict(self.extents.dims) | extents))

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Extents of a tensor."""
        return self.extents.shape(self.kernel.tensors[tensor])

    def lower(self, choices: Mapping[str, Any] | None = None) -> ir.Kernel:
        """The specialisation's tile IR, checked for these extents. Raises as ``Specialisation.lower``."""
        return self.specialisation.lower(choices or {}, dict(self.extents.dims))

    def check_integers(self, arguments: Mapping[str, Any]) -> None:
        """Raises InputError where arithmetic on the ``kd.Int`` arguments leaves int32, in the text or in what is made of it.

        What was seen to be safe is remembered as an interval of each, so that most calls only compare.
        """
        known = self._safe
        for name in self.kernel.integers:
            value = arguments[name]
            if value is not None and (name not in known or not known[name][0] <= value <= known[name][1]):
                break
        else:
            return
        integers = {name: arguments[name] for name in self.kernel.integers if arguments[name] is not None}
        dims = dict(self.extents.dims)
        kernels = self.specialisation.every_choice(dims)
        for kernel in kernels:
            ranges.check(kernel, dims, integers)
        self._safe.update(ranges.widened(kernels, dims, integers, known))

    @cached_property
    def _safe(self) -> dict[str, Interval]:
        """What is safe at other extents is not at these."""
        return {}

    def __str__(self) -> str:
        dims = ",".join(f"{d}={n}" for d, n in self.extents.dims)
        dtypes = ",".join(dict.fromkeys(t for _, t in self.specialisation.dtypes if t is not None))
        statics = "".join(f" {k}={v.name if isinstance(v, Helper) else v}" for k, v in self.specialisation.statics)
        return f"{self.kernel.name}[{dims} {dtypes}{statics}]"


def _dense(specialisation: Specialisation, dims: Mapping[str, int]) -> Extents:
    """Contiguous, aligned tensors. Raises InputError for an unknown or missing dim, or a negative extent."""
    kernel, present = specialisation.kernel, [name for name, element in specialisation.dtypes if element is not None]
    if unknown := set(dims) - set(kernel.dim_names):
        raise InputError(f"{kernel.name} has no dims {sorted(unknown)}; it has {', '.join(kernel.dim_names)}")
    needed = [d for d in kernel.dim_names if any(d in kernel.tensors[t] for t in present)]
    if missing := [d for d in needed if d not in dims]:
        raise InputError(f"{kernel.name}: no extent for {', '.join(missing)}; it needs {', '.join(needed)}")
    if negative := {d: n for d, n in dims.items() if n < 0}:
        raise InputError(f"{kernel.name}: negative extents {negative}; dims are 0 or more")
    strides = []
    for name in present:
        shape = [dims[d] for d in kernel.tensors[name]]
        strides.append((name, tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))))
    return Extents(tuple((d, int(dims[d])) for d in needed), tuple(strides), frozenset(present))
