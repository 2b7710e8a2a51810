"""A kernel with all that its IR follows from: element types, static arguments, and what its text means. It knows no extents."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from kpt_dsl import ir
from kpt_dsl.buckets import Span
from kpt_dsl.dtypes import DType, dtype, f32, i32
from kpt_dsl.frontend.lower import Given, lower
from kpt_dsl.frontend.outside import Helper, Meaning
from kpt_dsl.lowerings import Lowerings
from kpt_dsl.values import told_apart

if TYPE_CHECKING:
    from kpt_dsl.definition import Definition


@dataclass(frozen=True)
class Specialisation:
    """What calls have in common that differ in extents, strides and alignment only.

    ``dtypes``: tensor parameter -> dtype name, None for an absent optional tensor. ``statics``: static argument -> value, and
    absent optional scalars -> None. ``meaning``: the kernel's text with what it named from outside when the specialisation was
    made; ``functions`` the same of static arguments that are functions.
    """

    kernel: "Definition"
    dtypes: tuple[tuple[str, str | None], ...]
    statics: tuple[tuple[str, Any], ...] = field(compare=False)
    meaning: Meaning = field(compare=False, repr=False)
    functions: Mapping[str, Meaning] = field(compare=False, repr=False)
    _exactly: Hashable = field(init=False, repr=False)

    def __post_init__(self) -> None:
        values = {name: self.functions.get(name, value) for name, value in self.statics}
        exactly = (self.meaning.hash, *((name, told_apart(value)) for name, value in values.items()))
        object.__setattr__(self, "_exactly", exactly)

    @staticmethod
    def now(
        kernel: "Definition", dtypes: tuple[tuple[str, str | None], ...], statics: tuple[tuple[str, Any], ...]
    ) -> "Specialisation":
        """With what the kernel and the functions among its static arguments mean now."""
        functions = {name: value.now() for name, value in statics if isinstance(value, Helper)}
        return Specialisation(kernel, dtypes, statics, kernel.now(), functions)

    def dtype(self, tensor: str) -> DType | None:
        """Element type of a tensor, None when it is absent."""
        name = dict(self.dtypes)[tensor]
        return None if name is None else dtype(name)

    def lower(self, choices: Mapping[str, Any], dims: Mapping[str, int]) -> ir.Kernel:
        """The tile IR under algorithm choices, or a config that holds them, checked for extents.

        Choices that are not given take their first option. Raises KernelError where the text is not a kernel, InputError where
        int32 does not hold an extent, or what is computed of extents alone, IndexRangeError for an index that a dim of this
        extent does not have.
        """
        return self.lowerings.checked(choices, dims, self._lower).kernel

    def alike(self, choices: Mapping[str, Any], dims: Mapping[str, int]) -> Mapping[str, Span]:
        """The extents, these among them, that have the same IR under these choices. Raises as ``lower``."""
        return self.lowerings.checked(choices, dims, self._lower).spans

    def unchecked(self, choices: Mapping[str, Any]) -> ir.Kernel:
        """The same of any extents: nothing is known of its indices."""
        return self.lowerings.unchecked(choices, self._lower)

    def every_choice(self, dims: Mapping[str, int]) -> tuple[ir.Kernel, ...]:
        """The IR under every algorithm choice. Raises as ``lower``."""
        found: dict[ir.Kernel, None] = {}
        waiting: list[dict[str, Any]] = [{}]
        while waiting:
            choices = waiting.pop()
            kernel = self.lower(choices, dims)
            found[kernel] = None
            if unmet := [(name, options) for name, options in kernel.choices if name not in choices]:
                name, options = unmet[0]
                waiting += [choices | {name: option} for option in options]
        return tuple(found)

    @cached_property
    def meant(self) -> tuple[tuple[Callable[[], Meaning], Meaning], ...]:
        """What gives the meanings of the kernel and of the functions among its static arguments now; and what they are here."""
        functions = [(value.now, self.functions[name]) for name, value in self.statics if name in self.functions]
        return ((self.kernel.now, self.meaning), *functions)

    @cached_property
    def lowerings(self) -> Lowerings:
        """The IR of this specialisation, and of all that equal it."""
        return _lowerings(self)

    def _lower(self, choices: dict[str, Any]) -> ir.Kernel:
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
        return lower(Given(
            kernel.name, self.meaning.source, tensors, scalars, {**absent, **statics}, known, choices,
            outside | dict(self.meaning.values), nowhere,
        ))  # fmt: skip


@lru_cache(maxsize=1024)
def _lowerings(_: Specialisation) -> Lowerings:
    """One for each specialisation."""
    return Lowerings()
