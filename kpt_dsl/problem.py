"""A kernel bound to dtypes, shapes, strides and static arguments: what is tuned, looked up, compiled and launched.

Reads the few attributes that array libraries share (shape, dtype, strides); imports none of them.
"""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from kpt_dsl import arrays, ir
from kpt_dsl.buckets import Span
from kpt_dsl.dtypes import DType, dtype, f32, i32
from kpt_dsl.errors import InputError
from kpt_dsl.frontend.lower import Specialisation, lower
from kpt_dsl.frontend.outside import Helper, Meaning
from kpt_dsl.lowerings import Lowerings
from kpt_dsl.passes import ranges
from kpt_dsl.passes.intervals import Interval
from kpt_dsl.values import told_apart

if TYPE_CHECKING:
    from kpt_dsl.definition import Definition


@dataclass(frozen=True)
class Problem:
    """One specialisation of a kernel with its extents.

    ``dtypes``: tensor parameter -> dtype name, None for an absent optional tensor. ``dims``: every symbolic dim -> extent.
    ``strides``: tensor -> strides in elements. ``statics``: static argument -> value, and absent optional scalars -> None.
    ``aligned``: the tensors whose base address is 16-byte aligned. ``meaning``: the kernel's text with what it named from
    outside when the problem was bound; ``functions`` the same of static arguments that are functions.
    """

    kernel: "Definition"
    dtypes: tuple[tuple[str, str | None], ...]
    dims: tuple[tuple[str, int], ...]
    strides: tuple[tuple[str, tuple[int, ...]], ...]
    statics: tuple[tuple[str, Any], ...] = field(compare=False)
    aligned: frozenset[str]
    meaning: Meaning = field(compare=False, repr=False)
    functions: Mapping[str, Meaning] = field(compare=False, repr=False)
    _exactly: Hashable = field(init=False, repr=False)
    _safe: dict[str, Interval] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        values = {name: self.functions.get(name, value) for name, value in self.statics}
        exactly = (self.meaning.hash, *((name, told_apart(value)) for name, value in values.items()))
        object.__setattr__(self, "_exactly", exactly)

    @staticmethod
    def bind(kernel: "Definition", arguments: Mapping[str, Any]) -> "Problem":
        """From arrays (torch, JAX, NumPy, or anything with shape and dtype), scalars and static arguments.

        Raises InputError for a missing argument, a wrong rank, dims that disagree, an unknown dtype, or memory that is not
        what it seems (sparse, masked, byte-swapped; outputs that are read-only or whose elements overlap).
        """
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
        statics = kernel.static_values(arguments)
        return Problem(
            kernel, tuple(dtypes), tuple((d, n) for d, (n, _) in dims.items()), tuple(strides),
            statics, frozenset(aligned), kernel.now(), _functions(statics),
        )  # fmt: skip

    @staticmethod
    def of_shapes(
        kernel: "Definition",
        dims: Mapping[str, int],
        dtypes: Mapping[str, str | None],
        statics: Mapping[str, Any] | None = None,
    ) -> "Problem":
        """For contiguous, aligned tensors that need not exist. A tensor whose dtype is None is absent.

        Raises InputError for an unknown or missing name, or a negative extent.
        """
        statics = dict(statics or {})
        for what, given, known in (
            ("dims", dims, kernel.dim_names), ("dtypes", dtypes, kernel.tensors), ("statics", statics, kernel.other_parameters),
        ):  # fmt: skip
            if unknown := set(given) - set(known):
                raise InputError(f"{kernel.name} has no {what} {sorted(unknown)}; it has {', '.join(known) or 'none'}")
        if missing := set(kernel.tensors) - set(dtypes):
            raise InputError(
                f"{kernel.name}: no dtype for {sorted(missing)}; give a dtype, or None where a tensor is absent"
            )
        present = [t for t in kernel.tensors if dtypes[t] is not None]
        needed = [d for d in kernel.dim_names if any(d in kernel.tensors[t] for t in present)]
        if missing_dims := [d for d in needed if d not in dims]:
            raise InputError(f"{kernel.name}: no extent for {', '.join(missing_dims)}; it needs {', '.join(needed)}")
        if negative := {d: n for d, n in dims.items() if n < 0}:
            raise InputError(f"{kernel.name}: negative extents {negative}; dims are 0 or more")
        strides = []
        for name in present:
            shape = [dims[d] for d in kernel.tensors[name]]
            strides.append((name, tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))))
        values = kernel.static_values(statics, partial=True)
        return Problem(
            kernel,
            tuple((t, None if dtypes[t] is None else dtype(dtypes[t]).name) for t in kernel.tensors),
            tuple((d, int(dims[d])) for d in needed), tuple(strides), values,
            frozenset(present), kernel.now(), _functions(values),
        )  # fmt: skip

    def with_dims(self, **extents: int) -> "Problem":
        """The same problem with other extents, contiguous."""
        return self._like(Problem.of_shapes(self.kernel, dict(self.dims) | extents, dict(self.dtypes)))

    def dim(self, name: str) -> int:
        """Extent of a dim."""
        return self._extents[name]

    def dtype(self, tensor: str) -> DType | None:
        """Element type of a tensor, None when it is absent."""
        name = dict(self.dtypes)[tensor]
        return None if name is None else dtype(name)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Extents of a tensor."""
        return tuple([self._extents[dim] for dim in self.kernel.tensors[tensor]])

    def stride(self, tensor: str) -> tuple[int, ...]:
        """Strides of a present tensor, in elements."""
        return self._steps[tensor]

    # What a launch of every new length asks for, over and over.
    @cached_property
    def _extents(self) -> dict[str, int]:
        return dict(self.dims)

    @cached_property
    def _steps(self) -> dict[str, tuple[int, ...]]:
        return dict(self.strides)

    def lower(self, choices: Mapping[str, Any] | None = None) -> ir.Kernel:
        """The tile IR for these dtypes and statics under algorithm choices, or a config that holds them.

        Choices that are not given take their first option. Raises KernelError where the text is not a kernel, InputError where
        int32 does not hold an extent, or what is computed of extents alone, IndexRangeError for an index that a dim of this
        extent does not have.
        """
        return self.lowerings.checked(choices or {}, dict(self.dims), self._lower).kernel

    def alike(self, choices: Mapping[str, Any]) -> Mapping[str, Span]:
        """The extents, these among them, that have the same IR under these choices. Raises as ``lower``."""
        return self.lowerings.checked(choices, dict(self.dims), self._lower).spans

    def unchecked(self, choices: Mapping[str, Any]) -> ir.Kernel:
        """The same of any extents: nothing is known of its indices."""
        return self.lowerings.unchecked(choices, self._lower)

    @property
    def specialisation(self) -> Hashable:
        """What problems have in common that differ in extents, strides and alignment only."""
        return self.kernel, self.dtypes, self._exactly

    @cached_property
    def lowerings(self) -> Lowerings:
        """The IR of the specialisation."""
        return _lowerings(self.specialisation)

    def _lower(self, choices: dict[str, Any]) -> ir.Kernel:
        return lower(self._specialisation(choices))

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
        kernels, dims = self._every_choice(), dict(self.dims)
        for kernel in kernels:
            ranges.check(kernel, dims, integers)
        self._safe.update(ranges.widened(kernels, dims, integers, known))

    def _every_choice(self) -> tuple[ir.Kernel, ...]:
        """The IR under every algorithm choice."""
        found: dict[ir.Kernel, None] = {}
        waiting: list[dict[str, Any]] = [{}]
        while waiting:
            choices = waiting.pop()
            kernel = self.lower(choices)
            found[kernel] = None
            if unmet := [(name, options) for name, options in kernel.choices if name not in choices]:
                name, options = unmet[0]
                waiting += [choices | {name: option} for option in options]
        return tuple(found)

    def _specialisation(self, choices: dict[str, Any]) -> Specialisation:
        kernel, statics = self.kernel, dict(self.statics)
        dtypes = dict(self.dtypes)
        tensors = tuple(
            ir.Tensor(name, dims, dtype(dtypes[name]), kernel.roles[name])
            for name, dims in kernel.tensors.items()
            if dtypes[name] is not None
        )
        absent = {name: None for name, known in dtypes.items() if known is None}
        scalars = tuple(
            ir.Scalar(name, f32 if kind == "float" else i32, name in kernel.positive)
            for name, kind in kernel.scalars.items()
            if name not in statics
        )
        known = frozenset(d for t in tensors for d in t.dims)
        outside = {key: value for each in self.functions.values() for key, value in each.values.items()}
        nowhere = {
            name: kernel.tensors.get(name, ()) for name in (*absent, *(s for s in kernel.scalars if s in statics))
        }
        return Specialisation(
            kernel.name, self.meaning.source, tensors, scalars, {**absent, **statics}, known, choices,
            outside | dict(self.meaning.values), nowhere,
        )  # fmt: skip

    def contiguous(self) -> "Problem":
        """The same problem on contiguous, aligned tensors."""
        return self._like(Problem.of_shapes(self.kernel, dict(self.dims), dict(self.dtypes)))

    def _like(self, other: "Problem") -> "Problem":
        """Another problem of the kernel with the static arguments and the meaning of this one."""
        return replace(other, statics=self.statics, meaning=self.meaning, functions=self.functions)

    def __str__(self) -> str:
        dims = ",".join(f"{d}={n}" for d, n in self.dims)
        dtypes = ",".join(dict.fromkeys(t for _, t in self.dtypes if t is not None))
        statics = "".join(f" {k}={v.name if isinstance(v, Helper) else v}" for k, v in self.statics)
        return f"{self.kernel.name}[{dims} {dtypes}{statics}]"


@lru_cache(maxsize=1024)
def _lowerings(_: Hashable) -> Lowerings:
    """One for each specialisation."""
    return Lowerings()


def _functions(statics: tuple[tuple[str, Any], ...]) -> dict[str, Meaning]:
    return {name: value.now() for name, value in statics if isinstance(value, Helper)}
