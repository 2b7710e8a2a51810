"""Element types of tiles and tensors, by the short names used in kernels, keys and on the command line.

Knows no array library: emitters map these names to their own types.
"""

from dataclasses import dataclass
from typing import Literal

from kpt_dsl.errors import InputError

Kind = Literal["float", "int", "bool"]


@dataclass(frozen=True, slots=True)
class DType:
    """An element type: its short name, width in bits, and kind."""

    name: str
    bits: int
    kind: Kind

    def __str__(self) -> str:
        return self.name

    @property
    def bytes(self) -> int:
        """Size of one element in memory, in bytes."""
        return max(1, self.bits // 8)

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_fp8(self) -> bool:
        return self.kind == "float" and self.bits == 8

    @property
    def is_narrow_int(self) -> bool:
        """An integer type that tensors have; arithmetic is in i32."""
        return self.kind == "int" and self.bits < 32


f32 = DType("f32", 32, "float")
f16 = DType("f16", 16, "float")
bf16 = DType("bf16", 16, "float")
f8e4m3 = DType("f8e4m3", 8, "float")
f8e5m2 = DType("f8e5m2", 8, "float")
i8 = DType("i8", 8, "int")
u8 = DType("u8", 8, "int")
i32 = DType("i32", 32, "int")
i64 = DType("i64", 64, "int")
bool_ = DType("bool", 1, "bool")

ALL: dict[str, DType] = {t.name: t for t in (f32, f16, bf16, f8e4m3, f8e5m2, i8, u8, i32, i64, bool_)}

# Names under which array libraries and people know the same types.
_ALIASES = {
    "float32": f32, "fp32": f32, "float": f32,
    "float16": f16, "fp16": f16, "half": f16,
    "bfloat16": bf16,
    "float8_e4m3fn": f8e4m3, "e4m3": f8e4m3, "fp8": f8e4m3,
    "float8_e5m2": f8e5m2, "e5m2": f8e5m2,
    "int8": i8, "uint8": u8, "int32": i32, "int64": i64,
}  # fmt: skip


def dtype(name: object) -> DType:
    """The DType of a short name, or of an array library's dtype (``torch.bfloat16``, ``numpy.dtype("float32")``).

    Raises InputError for a type that kernels cannot hold.
    """
    if isinstance(name, DType):
        return name
    text = str(getattr(name, "name", name)).removeprefix("torch.")
    found = ALL.get(text) or _ALIASES.get(text)
    if found is None:
        raise InputError(f"dtype {text!r} is not one that kernels can hold; accepted are {', '.join(ALL)}")
    return found
