"""Classes of calls: what configs follow from. Programs change lengths with every call, and configs must not be chosen anew.

A class is a specialisation of a kernel, the layouts of its tensors, and spans of extents: buckets or halves of them, but for
dims that a model fixes. Its configs are legal at both ends of the spans; the first of them, and the model that ranks them, look
at the upper end, its representative, and at both where the model cannot tell tiles apart.
"""

import itertools
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

from kpt_dsl import ir
from kpt_dsl.buckets import Span, class_spans
from kpt_dsl.errors import KptError, TargetError
from kpt_dsl.extents import Extents
from kpt_dsl.first_configs import kept
from kpt_dsl.instance import Instance
from kpt_dsl.layouts import VECTOR_BYTES, layout_class
from kpt_dsl.space import PIPELINED, Config, Space, space
from kpt_dsl.space.config import Value
from kpt_dsl.space.facts import Facts
from kpt_dsl.specialisation import Specialisation
from kpt_dsl.targets import Target


class _Tensor(NamedTuple):
    """How a tensor of a class lies in memory: its layout class; its axes from the largest stride to the smallest, but for those
    along which all is the same; and the smallest stride."""

    name: str
    layout: str
    order: tuple[int, ...]
    step: int


@dataclass(frozen=True)
class Class:
    """A class of calls. ``sample``: the extents of one of them, the first that was met."""

    specialisation: Specialisation
    tensors: tuple[_Tensor, ...]
    spans: tuple[tuple[str, Span], ...]
    sample: Extents = field(compare=False, repr=False)

    @staticmethod
    def of(instance: Instance) -> "Class":
        """The class of an instance. Raises as ``Instance.lower`` does."""
        kernel, extents, elements = instance.lower({}), instance.extents, dict(instance.specialisation.dtypes)
        held = class_spans(kernel, dict(extents.dims))
        tensors = []
        for name, strides in extents.strides:
            shape = instance.shape(name)
            layout = layout_class(shape, strides, elements[name] or "", name in extents.aligned)
            stepped = (a for a, stride in enumerate(strides) if stride or shape[a] == 1)
            order = tuple(sorted(stepped, key=lambda a: (-strides[a], a)))
            step = min((strides[a] for a in order if shape[a] != 1), default=1)
            tensors.append(_Tensor(name, layout, order, step))
        return Class(instance.specialisation, tuple(tensors), tuple(held.items()), extents)

    @cached_property
    def representative(self) -> Instance:
        """A call with the greatest extents."""
        return self._at(1)

    @cached_property
    def least(self) -> Instance:
        """A call with the least extents."""
        return self._at(0)

    def _at(self, end: int) -> Instance:
        """A call with the extents of one end, and rows where they begin at multiples of 16 bytes if those of the class do."""
        dims = {dim: span[end] for dim, span in self.spans}
        for tensor in self.tensors:
            if tensor.layout.endswith("B") and tensor.order:
                along = self.specialisation.kernel.tensors[tensor.name][tensor.order[-1]]
                even = -(-dims[along] // VECTOR_BYTES) * VECTOR_BYTES
                dims[along] = even if even <= dict(self.spans)[along].high else dims[along]
        return self.at(dims)

    def at(self, dims: Mapping[str, int]) -> Instance:
        """The sample with other extents, its tensors as dense in the order of their axes as they can be where these changed."""
        strides, aligned = dict(self.sample.strides), self.sample.aligned
        for tensor in self.tensors:
            names = self.specialisation.kernel.tensors[tensor.name]
            if all(dims[dim] == extent for dim, extent in self.sample.dims if dim in names):
                continue
            step, found = tensor.step, [0] * len(names)
            for axis in reversed(tensor.order):
                found[axis], step = step, step * max(1, dims[names[axis]])
            strides[tensor.name] = tuple(found)
            if not tensor.layout.endswith("B"):  # whatever is dense now, the tensors of the class are not aligned
                aligned -= {tensor.name}
        extents = Extents(tuple(dims.items()), tuple(strides.items()), aligned)
        return Instance(self.specialisation, extents)

    def __str__(self) -> str:
        return f"{self.specialisation.kernel.name}[{','.join(f'{dim}={span}' for dim, span in self.spans)}]"


class ClassSpace(Space):
    """The configs of a class on a target."""

    def __init__(self, made: Class, target: Target) -> None:
        super().__init__(made.representative, target)
        self.made = made
        self._least = Space(made.least, target)

    @property
    def sample(self) -> Instance:
        return Instance(self.made.specialisation, self.made.sample)

    def _facts(self, choices: Config) -> Facts:
        facts, least = super()._facts(choices), self._least._facts(choices)
        return facts if least.extents == facts.extents else replace(facts, least=least)

    def _why_not(self, config: Mapping[str, Value], asked: bool) -> str | None:
        if reason := super()._why_not(config, asked):
            return reason
        at_least = self._least.canonical(config)  # where the least extents leave no choice of a schedule, its name goes
        schedule = config.get("schedule", PIPELINED)
        if schedule != at_least.get("schedule", PIPELINED):
            reason = f"there is no schedule {schedule!r}"
        else:
            reason = self._least._why_not(at_least, asked)
        return reason and f"{reason} (as for the least of its class, {self.made.least})"

    def _firsts(self) -> tuple[Config, ...]:
        return kept((self.made.representative, self.made.least), self.target, self._chosen)

    def _chosen(self) -> tuple[Config, ...]:
        """The configs to begin with, of those that are legal all over the class; else those of its least extents."""
        for at_end in (super()._firsts, self._least._firsts):
            if found := tuple(config for config in at_end() if self.why_illegal(config) is None):
                return found
        raise TargetError(f"no config of {self.made} is legal on {self.target.name}")


def extents(instance: Instance, target: Target) -> str:
    """The extents that have the config of an instance, in words: ``M=513..1024 N=2048``."""
    found = options(instance, target)
    spans = found.made.spans if isinstance(found, ClassSpace) else instance.extents.dims
    return " ".join(f"{dim}={span}" for dim, span in spans)


def options(instance: Instance, target: Target) -> Space:
    """The space that an instance's config is taken from: that of its class; its own where blocks may be as long as dims (a
    TPU's, NumPy's), or nothing holds all over the class."""
    if target.exact_blocks:
        return space(instance, target)
    return _options(Class.of(instance), target) or space(instance, target)


@lru_cache(maxsize=4096)
def _options(made: Class, target: Target) -> ClassSpace | None:
    try:
        found = ClassSpace(made, target)
        _ = found.firsts
    except KptError:  # an end has no legal config, or numbers and indices that only other extents allow
        return None
    return found


DIVISORS = (1, 3)
POWERS = 9
"""What launches tell apart of an extent: which tiles divide it, of powers of two up to 256 elements, and of thrice as many, as
three groups of warps have."""


def samples(instance: Instance, target: Target) -> tuple[Instance, ...]:
    """Calls of an instance's class that have, together, the texts of all of its calls, where dims that are equal stay so."""
    found = options(instance, target)
    if not isinstance(found, ClassSpace):
        return (instance,)
    tiled = {tile.dim for tile in ir.tiles(instance.lower({}))}
    equal: dict[int, list[str]] = {}
    spans = dict(found.made.spans)
    for dim, extent in instance.extents.dims:
        if spans[dim].low < spans[dim].high and dim in tiled:
            equal.setdefault(extent, []).append(dim)
    choices = [[dict.fromkeys(dims, n) for n in _told_apart(*spans[dims[0]])] for dims in equal.values()]
    every = (ChainMap(*chosen) for chosen in itertools.product(*choices))
    return tuple(dict.fromkeys([instance, *(found.made.at(dict(instance.extents.dims) | dict(changed)) for changed in every)]))


def _told_apart(low: int, high: int) -> list[int]:
    """The greatest extents of a span of each kind that launches tell apart."""
    found = {high}
    for divisor, power in itertools.product(DIVISORS, range(POWERS)):
        step = divisor << power
        multiple = high // step
        found.add(step * (multiple - (multiple + 1) % 2))  # an odd one: twice as large a tile does not divide it
    return sorted((n for n in found if n >= low), reverse=True)
