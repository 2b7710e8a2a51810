"""What a generated Triton module and the code that compiles and launches it agree on: arguments, grid, compile options.

Knows nothing of the tile IR and imports no Triton: the emitter writes one of these, ``build`` and ``runtime`` read it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

from kpt_dsl.errors import IndexRangeError

TYPES = {
    "f32": "fp32", "f16": "fp16", "bf16": "bf16", "f8e4m3": "fp8e4nv", "f8e5m2": "fp8e5", "i32": "i32", "i64": "i64",
    "i8": "i8", "u8": "u8", "bool": "i1",
}  # fmt: skip
"""Triton's names of element types in signatures."""


@dataclass(frozen=True, slots=True)
class Pointer:
    """A tensor by the address of its first element. ``bits``: its elements are read as bytes, the target lacks the type."""

    name: str
    tensor: str
    dtype: str
    aligned: bool
    ranged: bool
    bits: bool = False

    @property
    def signature(self) -> str:
        return "*u8" if self.bits else f"*{TYPES[self.dtype]}"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A tensor by a host-side tensor descriptor that moves blocks of ``block`` elements (one entry a tensor dim).

    ``layout``: how blocks lie in shared memory, where the module says so itself (Gluon).
    """

    name: str
    tensor: str
    dtype: str
    block: tuple[int, ...]
    layout: str = ""

    @property
    def signature(self) -> str:
        if self.layout:
            return f"tensordesc<{TYPES[self.dtype]}[{','.join(map(str, self.block))}],{self.layout}>"
        return f"tensordesc<{TYPES[self.dtype]}{list(self.block)}>"


@dataclass(frozen=True, slots=True)
class Scalar:
    """A scalar argument of the kernel, there called ``scalar``."""

    name: str
    scalar: str
    dtype: str

    @property
    def signature(self) -> str:
        return TYPES[self.dtype]


@dataclass(frozen=True, slots=True)
class Extent:
    """The extent of a dim."""

    name: str
    dim: str
    divisible: bool

    @property
    def signature(self) -> str:
        return "i32"


@dataclass(frozen=True, slots=True)
class Stride:
    """The stride of one dim of a tensor, in elements."""

    name: str
    tensor: str
    axis: int
    wide: bool
    divisible: bool

    @property
    def signature(self) -> str:
        return "i64" if self.wide else "i32"


@dataclass(frozen=True, slots=True)
class Report:
    """The address of a word of 64 bits, zero before, for the first index that is none of its dim: the number of its place in
    ``TritonAbi.places`` above, the index below."""

    name: str

    @property
    def signature(self) -> str:
        return "*i64"


@dataclass(frozen=True, slots=True)
class Place:
    """Where an index is checked: its dim, and what an error says of it."""

    dim: str
    text: str


Argument = Pointer | Descriptor | Scalar | Extent | Stride | Report


@dataclass(frozen=True, slots=True)
class Counted:
    """Tiles of ``block`` indices of a dim. ``groups``: the dim of ``starts``, which says where groups of these begin; no tile
    reaches from one into another, so that there may be one more for each."""

    dim: str
    block: int
    groups: str = ""
    starts: str = ""

    def tiles(self, extents: dict[str, int]) -> int:
        """How many there are, or may be."""
        if not self.groups:
            return -(-extents[self.dim] // self.block)
        groups = extents[self.groups] - 1
        return extents[self.dim] // self.block + groups if groups > 0 else 0

    def check(self, kernel: str, starts: Sequence[int], extents: dict[str, int]) -> None:
        """Raises IndexRangeError where groups begin at no places of a dim, or not one behind the other."""
        IndexRangeError.check_groups(kernel, self.starts, starts, extents[self.dim])


@dataclass(frozen=True, slots=True)
class TritonAbi:
    """How to compile and launch one generated module.

    ``grid``: what programs are counted over; ``persistent``: no more programs than the device
    runs at a time. ``options`` go to Triton's compiler. ``language``: what the module is written in, "triton" or "gluon".
    ``places``: where indices are checked, numbered from one.
    """

    arguments: tuple[Argument, ...]
    grid: tuple[Counted, ...]
    persistent: bool
    options: tuple[tuple[str, object], ...]
    language: str = "triton"
    places: tuple[Place, ...] = field(default=(), repr=False)

    def signature(self) -> dict[str, str]:
        """Triton's signature: argument name -> type, in order."""
        return {a.name: a.signature for a in self.arguments}

    def attributes(self) -> dict[tuple[int, ...], list[list[object]]]:
        """What the compiler may rely on, by position: multiples of 16, tensors below 2 GiB."""
        found: dict[tuple[int, ...], list[list[object]]] = {}
        for position, argument in enumerate(self.arguments):
            facts: list[list[object]] = []
            if isinstance(argument, Pointer) and argument.aligned:
                facts.append(["tt.divisibility", 16])
            if isinstance(argument, Pointer) and argument.ranged:
                facts.append(["tt.pointer_range", 32])
            if isinstance(argument, Extent | Stride) and argument.divisible:
                facts.append(["tt.divisibility", 16])
            if facts:
                found[(position,)] = facts
        return found

    def bad_index(self, word: int, extents: dict[str, int]) -> IndexRangeError:
        """The error that a reported word stands for."""
        place = self.places[(word >> 32) - 1]
        index = word & 0xFFFFFFFF
        return IndexRangeError.at(place.text, index - (index >> 31 << 32), extents[place.dim])

    def tiles(self, extents: dict[str, int]) -> int:
        """How many tiles the grid has for these extents of dims."""
        return prod(counted.tiles(extents) for counted in self.grid)
