"""The tile IR of one specialisation of a kernel: lowered once, and checked once for all extents of a span.

A program's lengths change with every call; what its kernels' text means does not. Checks of indices and of whole numbers follow
intervals, so that one of a span of extents holds for each of them, where it comes to the same as one of a single extent.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kpt_dsl import ir
from kpt_dsl.buckets import Span, spans
from kpt_dsl.passes import indices, ranges
from kpt_dsl.passes.intervals import alone
from kpt_dsl.values import told_apart


@dataclass(frozen=True)
class Checked:
    """IR that holds for all extents within the spans."""

    spans: Mapping[str, Span]
    kernel: ir.Kernel

    def holds(self, dims: Mapping[str, int]) -> bool:
        return all(low <= dims[dim] <= high for dim, (low, high) in self.spans.items())


@dataclass
class _Lowered:
    """The IR under the choices that were met on the way: what else a config holds does not matter to it."""

    taken: Mapping[str, Any]
    kernel: ir.Kernel
    checked: list[Checked] = field(default_factory=list)


class Lowerings:
    """The IR of one specialisation, by choices of algorithms and by extents."""

    def __init__(self) -> None:
        self._lowered: list[_Lowered] = []

    def unchecked(self, choices: Mapping[str, Any], lower: Callable[[dict[str, Any]], ir.Kernel]) -> ir.Kernel:
        """The IR before anything is known of extents; ``lower`` makes it where it was not made before."""
        return self._of(choices, lower).kernel

    def checked(
        self, choices: Mapping[str, Any], dims: Mapping[str, int], lower: Callable[[dict[str, Any]], ir.Kernel]
    ) -> Checked:
        """The IR for extents, and for which others. Raises InputError and IndexRangeError as
        ``Specialisation.lower`` says."""
        lowered = self._of(choices, lower)
        kernel = lowered.kernel
        ranges.check_dims(kernel.name, dims)  # a span may end one beyond what int32 holds
        for known in lowered.checked:
            if known.holds(dims):
                return known
        ranges.check(kernel, dims, {})
        found = indices.check(kernel, alone(dims))
        held = spans(kernel, dims)
        if ranges.beyond(kernel, held, {}) is not None or indices.check(kernel, held) != found:
            held = {dim: Span(extent, extent) for dim, extent in dims.items()}
        # Equal IR is one object: texts are remembered by it.
        found = next((known.kernel for known in lowered.checked if known.kernel == found), found)
        made = Checked(held, found)
        lowered.checked = [made, *lowered.checked[:_KEPT]]
        return made

    def _of(self, choices: Mapping[str, Any], lower: Callable[[dict[str, Any]], ir.Kernel]) -> _Lowered:
        for known in self._lowered:
            options = known.kernel.choices
            if all(told_apart(choices.get(name, first)) == told_apart(known.taken[name]) for name, (first, *_) in options):
                return known
        kernel = lower(dict(choices))
        taken = {name: choices.get(name, first) for name, (first, *_) in kernel.choices}
        made = _Lowered(taken, kernel)
        self._lowered.append(made)  # another thread may have added its own meanwhile
        return made


_KEPT = 64
"""Spans whose IR is remembered; the latest is asked first."""
