"""From a launch that is ready to others of its class: straight-line Python that sees whether only extents differ.

A program's lengths change with every call. All that a launch was prepared for (config, text, binary) holds for a class of
extents; what is left is to see that arguments belong to it and to work out their numbers. That is written as a function, once
a launch, which is generated text as kernels are: a few comparisons of integers, and no search.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

from kpt_dsl import arrays, ir
from kpt_dsl.buckets import Span
from kpt_dsl.classes import ClassSpace, options
from kpt_dsl.dtypes import DType, dtype
from kpt_dsl.emit import Source
from kpt_dsl.emit.triton.abi import Counted, Descriptor, Extent, Pointer, Stride
from kpt_dsl.emit.triton.facts import DIVISOR, INT32_MAX, TMA_BYTES, TensorFacts, facts, tiles
from kpt_dsl.errors import InputError
from kpt_dsl.frontend.outside import Helper
from kpt_dsl.language import SMALLEST_POSITIVE
from kpt_dsl.passes.bounds import settle
from kpt_dsl.runtime.triton_launch import Launch, address, describer

if TYPE_CHECKING:
    from kpt_dsl.instance import Instance
    from kpt_dsl.space import Config
    from kpt_dsl.specialisation import Specialisation
    from kpt_dsl.targets import Target

_KEPT = 64
"""Launches of a kernel that others are made of."""

At = Callable[..., Launch | None]
"""A launch for these arguments of the kernel, in the order of its signature; None where another one may serve them."""


@dataclass(frozen=True, slots=True)
class Known:
    """A launch that was prepared, and what makes others of its specialisation."""

    specialisation: "Specialisation"
    text: str
    kept: tuple[Any, ...]
    at: At

    def means_the_same(self) -> bool:
        """Whether names that the kernel uses from outside mean what they did."""
        return not [None for now, meaning in self.specialisation.meant if now() is not meaning]


def written(
    instance: "Instance", target: "Target", config: "Config", source: Source
) -> tuple[str, tuple[Any, ...]] | None:
    """The function that the launch of an instance leaves behind for its class, and what it calls ``v0``, ``v1`` and so on; None
    where it holds for no other call."""
    of_class = options(instance, target)
    if not isinstance(of_class, ClassSpace) or source.abi.places:
        return None
    writer = _Writer(instance, of_class.made.spans, config, source)
    return writer.text(), tuple(writer.kept)


def remember(made: list[Known], instance: "Instance", text: str, kept: tuple[Any, ...], launch: Launch) -> None:
    """Put what the launch of an instance leaves behind first in a list, where it is not there yet."""
    if all((known.text, known.kept) != (text, kept) for known in made):
        scope: dict[str, Any] = {"launch": launch, "address": address, "describer": describer}
        scope |= {f"v{i}": value for i, value in enumerate(kept)}
        exec(compile(text, f"<kpt launches of {instance.kernel.name}>", "exec"), scope)
        made[:] = [Known(instance.specialisation, text, kept, scope["at"]), *made[:_KEPT]]


@dataclass(frozen=True)
class _Product:
    """A stride or an extent as a product: of a number, and of dims that vary."""

    number: int
    dims: tuple[str, ...] = ()

    def times(self, other: "_Product") -> "_Product":
        return _Product(self.number * other.number, self.dims + other.dims)

    def at(self, extents: Mapping[str, int]) -> int:
        return self.number * prod(extents[dim] for dim in self.dims)

    def __str__(self) -> str:
        return " * ".join(
            [*([str(self.number)] if self.number != 1 or not self.dims else []), *map(_variable, self.dims)]
        )


class _Writer:
    """Writes the function for one launch."""

    def __init__(self, instance: "Instance", spans: Iterable[tuple[str, Span]], config: "Config", source: Source) -> None:
        self.instance, self.config, self.abi = instance, config, source.abi
        self.kernel = settle(instance.lower(config))
        self.extents = dict(instance.extents.dims)
        lowered = instance.specialisation.alike(config, self.extents)
        self.spans = {
            dim: Span(max(low, lowered[dim].low), min(high, lowered[dim].high, INT32_MAX)) for dim, (low, high) in spans
        }
        self.varying = {dim for dim, (low, high) in self.spans.items() if low < high}
        self.kept: list[Any] = []
        """What the text calls ``v0``, ``v1`` and so on."""
        self.strides = {name: self._products(name) for name, _ in instance.extents.strides}
        self._narrow_to_equal_sizes()

    # ------------------------------------------------------------------ what is known of strides
    def _of_dim(self, dim: str) -> _Product:
        return _Product(1, (dim,)) if dim in self.varying else _Product(self.extents[dim])

    def _products(self, tensor: str) -> tuple[_Product, ...]:
        """A tensor's strides: a product wherever an axis steps over all of the next smaller one, else the number that it is."""
        names, steps = self.instance.kernel.tensors[tensor], self.instance.extents.stride(tensor)
        found = [_Product(step) for step in steps]
        inner: int | None = None
        for axis in sorted(range(len(steps)), key=lambda a: (steps[a], self.extents[names[a]] > 1, -a)):
            if inner is not None and steps[axis] == steps[inner] * self.extents[names[inner]]:
                found[axis] = found[inner].times(self._of_dim(names[inner]))
            inner = axis
        return tuple(found)

    def _effective(self, tensor: str) -> list[tuple[_Product, ...]]:
        """As the emitter's ``effective_strides``: an axis of one element steps over what comes after it. Each is the maximum of
        some products."""
        names, found = self.instance.kernel.tensors[tensor], []
        step: tuple[_Product, ...] = (_Product(1),)
        for name, stride in zip(reversed(names), reversed(self.strides[tensor]), strict=True):
            mine = step if self.extents[name] == 1 else (stride,)
            found.append(mine)
            over = tuple(one.times(self._of_dim(name)) for one in mine)
            step = over if self._covers(over, step) else (*step, *over)
        return found[::-1]

    def _covers(self, ones: tuple[_Product, ...], others: tuple[_Product, ...]) -> bool:
        """Whether one of some products is not below any of the others, whatever the extents."""
        return all(any(o.number <= one.number and _within(o.dims, one.dims) for one in ones) for o in others)

    def _narrow_to_equal_sizes(self) -> None:
        """Let extents vary only where all of them make offsets as wide as those that are here. Widths grow with extents."""
        here = self._widths(self.extents)
        for end in (0, 1):
            ends = {dim: span[end] for dim, span in self.spans.items()}
            if self._widths(ends) != here:
                self.spans = {
                    dim: Span(self.extents[dim], high) if end == 0 else Span(low, self.extents[dim])
                    for dim, (low, high) in self.spans.items()
                }

    def _widths(self, extents: Mapping[str, int]) -> list[tuple[object, ...]]:
        strides = tuple((name, tuple(one.at(extents) for one in steps)) for name, steps in self.strides.items())
        at = replace(self.instance.extents, dims=tuple(extents.items()), strides=strides)
        return [_width(tensor) for tensor in facts(self.instance.lower(self.config), at, self.config).tensors.values()]

    # ------------------------------------------------------------------ conditions
    def _conditions(self, names: Mapping[str, str]) -> Iterator[str]:
        """What must hold. The extents that vary are read, and told apart, before tensors are looked at: most launches of one
        class differ in what divides them."""
        instance = self.instance
        read: set[str] = set()
        present = {tensor: dims for tensor, dims in instance.kernel.tensors.items() if instance.specialisation.dtype(tensor)}
        for tensor, dims in present.items():
            for position, dim in enumerate(dims):
                if dim in self.varying - read:
                    read.add(dim)
                    low, high = self.spans[dim]
                    yield f"{low} <= ({_variable(dim)} := {names[tensor]}.shape[{position}]) <= {high}"
        for dim in sorted(self.varying):
            for unit in sorted(self._units(dim)):
                yield f"{_variable(dim)} % {unit} {'==' if self.extents[dim] % unit == 0 else '!='} 0"
        yield from self._level_loops()
        yield from self._divided()
        for tensor, dims in instance.kernel.tensors.items():
            argument, element = names[tensor], instance.specialisation.dtype(tensor)
            if element is None:
                yield f"{argument} is None"
                continue
            yield f"{argument}.shape == ({''.join(f'{self._of_dim(dim)}, ' for dim in dims)})"
            yield f"{argument}.stride() == ({''.join(f'{step}, ' for step in self.strides[tensor])})"
            yield f"{argument}.dtype is {self._keep(_in_torch(element))}"
            if instance.kernel.roles[tensor] == "out":
                yield from self._apart(tensor)
            same = "==" if tensor in instance.extents.aligned else "!="
            yield f"(place := {argument}.data_ptr()) and place % {arrays.ALIGNMENT} {same} 0"
        yield from self._values(names)

    def _apart(self, tensor: str) -> Iterator[str]:
        """What keeps the elements of an output apart, where the step over an axis that varies is a number."""
        names, steps = self.instance.kernel.tensors[tensor], self.strides[tensor]
        order = sorted(
            (a for a, dim in enumerate(names) if self.extents[dim] > 1), key=lambda a: steps[a].at(self.extents)
        )
        for inner, axis in pairwise(order):
            over = steps[inner].times(self._of_dim(names[inner]))
            if over.dims and over != steps[axis]:
                yield f"{over} <= {steps[axis]}"

    def _units(self, dim: str) -> set[int]:
        """The lengths of the tiles that cover a dim, and how much of it a program of the grid has."""
        lengths = {int(self.config[tile.block]) for tile in tiles(self.kernel).values() if tile.dim == dim}
        return lengths.union(counted.block for counted in self.abi.grid if counted.dim == dim) - {1}

    def _level_loops(self) -> Iterator[str]:
        """Where tiles of loops with bounds of their own may all be whole: which powers of two divide the dims."""
        along_grid = {loop.dim for loop in self.kernel.grid if isinstance(loop, ir.Tile)}
        lengths = {tile.dim: int(self.config[tile.block]) for tile in tiles(self.kernel).values()}
        if any(self.extents[dim] % n for dim, n in lengths.items() if dim in self.varying - along_grid):
            return  # a dim of loops is ragged, and stays so: then none is taken for level
        loops = [s for s in self.kernel.body if isinstance(s, ir.For) and isinstance(s.over, ir.Tile)]
        if any(
            loop.over.dim in self.varying or not self._same(loop.start) or not self._same(loop.stop) for loop in loops
        ):
            for dim in sorted(self.varying):
                extent, most = self.extents[dim], max(lengths.values())
                yield f"min({_variable(dim)} & -{_variable(dim)}, {most}) == {min(extent & -extent, most)}"

    def _same(self, bound: ir.Expr) -> bool:
        """Whether a bound is a number whatever the extents."""
        return isinstance(bound, ir.Const) or (isinstance(bound, ir.Size) and bound.dim not in self.varying)

    def _divided(self) -> Iterator[str]:
        """What divides strides is told to the compiler, and tensor maps need multiples of 16 bytes."""
        written: set[tuple[_Product, int]] = set()
        for tensor in self.strides:
            element = self.instance.specialisation.dtype(tensor)
            assert element is not None
            divisors = {DIVISOR, max(1, TMA_BYTES // element.bytes)}
            for step in {one for ones in (self.strides[tensor], *self._effective(tensor)) for one in ones if one.dims}:
                written.update((step, divisor) for divisor in divisors if step.number % divisor)
        for step, divisor in sorted(written, key=str):
            yield f"{step} % {divisor} {'==' if step.at(self.extents) % divisor == 0 else '!='} 0"

    def _values(self, names: Mapping[str, str]) -> Iterator[str]:
        """The arguments that are no tensors: numbers of the kinds that a kernel takes as they are, and statics."""
        kernel, statics = self.instance.kernel, dict(self.instance.specialisation.statics)
        for scalar, kind in kernel.scalars.items():
            if scalar in statics:
                yield f"{names[scalar]} is None"
                continue
            yield f"type({names[scalar]}) is {kind}"
            if kind == "int":
                yield f"-0x80000000 <= {names[scalar]} <= 0x7FFFFFFF"
            elif scalar in kernel.positive:
                yield f"{names[scalar]} >= {SMALLEST_POSITIVE!r}"
        for static in kernel.statics:
            value, argument = statics[static], names[static]
            same = self._keep(value)
            if value is None or isinstance(value, (Helper, bool)):
                yield f"{argument} is {same}"
            else:
                told = f"{argument}.hex() == {same}.hex()" if isinstance(value, float) else f"{argument} == {same}"
                yield f"type({argument}) is type({same}) and {told}"

    # ------------------------------------------------------------------ the function
    def text(self) -> str:
        """The function, which makes launches like ``launch``."""
        parameters = tuple(self.instance.kernel.signature.parameters)
        names = {name: f"a{i}" for i, name in enumerate(parameters)}
        conditions = self._conditions(names)
        tensors = [a for a in self.abi.arguments if isinstance(a, (Pointer, Descriptor))]
        are_described = any(isinstance(a, Descriptor) for a in tensors)
        makers = [f"({parameters.index(a.tensor)}, {self._maker(a)}), " for a in tensors] if are_described else []
        lines = [
            f"def at({', '.join(names.values())}):",
            "    try:",
            "        if not (",
            *(f"            {'and ' if i else ''}{condition}" for i, condition in enumerate(conditions)),
            "        ):",
            "            return None",
            "    except (AttributeError, IndexError, RuntimeError, TypeError):  # no tensor of this rank, or none with memory",
            "        return None",
            f"    return launch.of_extents({self._programs()}, [{', '.join(self._numbers())}], ({''.join(makers)}))",
        ]
        return "\n".join(lines)

    def _keep(self, value: Any) -> str:
        self.kept.append(value)
        return f"v{len(self.kept) - 1}"

    def _programs(self) -> str:
        return " * ".join(f"({self._tiles(counted)})" for counted in self.abi.grid) or "1"

    def _tiles(self, counted: Counted) -> str:
        extent, block = self._of_dim(counted.dim), counted.block
        if counted.groups:
            ends = self._of_dim(counted.groups)
            return f"({extent} // {block} + {ends} - 1) * ({ends} > 1)"
        return f"-(-{extent} // {block})" if block > 1 else str(extent)

    def _numbers(self) -> Iterator[str]:
        for a in self.abi.arguments:
            if isinstance(a, Extent):
                yield str(self._of_dim(a.dim))
            elif isinstance(a, Stride):
                yield _largest(self._effective(a.tensor)[a.axis])

    def _maker(self, a: Pointer | Descriptor) -> str:
        if isinstance(a, Pointer):
            return "address"
        shape = ", ".join(str(self._of_dim(dim)) for dim in self.instance.kernel.tensors[a.tensor])
        strides = ", ".join(map(_largest, self._effective(a.tensor)))
        return f"describer([{shape}], [{strides}], {self._keep(list(a.block))})"


def _in_torch(element: DType) -> Any:
    """An element type as PyTorch has it."""
    import torch

    return next(kind for kind in vars(torch).values() if isinstance(kind, torch.dtype) and _named(kind) == element)


def _named(kind: Any) -> DType | None:
    try:
        return dtype(kind)
    except InputError:  # kernels cannot hold it
        return None


def _variable(dim: str) -> str:
    """What a dim's extent is called in the function: dims may have any name."""
    return f"n_{dim}"


def _largest(products: tuple[_Product, ...]) -> str:
    return str(products[0]) if len(products) == 1 else f"max({', '.join(map(str, products))})"


def _within(ones: tuple[str, ...], others: tuple[str, ...]) -> bool:
    return all(ones.count(dim) <= others.count(dim) for dim in ones)


def _width(tensor: TensorFacts) -> tuple[object, ...]:
    return tensor.large, tensor.ranged, *((stride.wide, stride.far) for stride in tensor.strides)
