"""Expressions of a drawn kernel, with what is known of their values: how large, how fine, how far float32 may be from float64.

Most values are *exact*: whole multiples of a power of two so few that float32 holds every one, and then all backends must agree
to the last bit. What functions like ``kd.exp`` give is *approximate*, and the error that float32 may have is followed through
arithmetic. An approximate value never decides anything (a comparison, a floor, a cast to integers): it would by chance.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from tests.tolerances import EPS_F32, SUM_FACTOR

Kind = Literal["float", "int", "bool"]

UNIT = "1"
"""The axis that ``None`` in a subscript makes."""

MOST_STEPS = 2.0**22
"""How many steps of its grain an exact value may be from zero: float32 holds 2**24 of them."""
MOST_WHOLE = 2.0**29
"""The largest integer that arithmetic may make."""
INTEGERS = {"i8": 8, "u8": 8, "i32": 32, "i64": 64}
"""Bits of each integer type."""
UNITS = 16
"""Units in the last place that a function of one backend may be off."""

SIGNIFICANT = {"f32": 24, "f16": 11, "bf16": 8, "f8e4m3": 4, "f8e5m2": 3}
"""Bits of a number of each type."""
LARGEST = {"f32": 3e38, "f16": 6e4, "bf16": 3e38, "f8e4m3": 448.0, "f8e5m2": 57344.0}
"""Largest number of each type (of f16 a little less: what is beyond becomes infinite, where fp8 saturates)."""


@dataclass(frozen=True)
class Expr:
    """Text, type and bounds. ``shape``: names of axes, a tile variable, a dim, or UNIT. ``most``: the largest finite magnitude;
    ``grain``: values are multiples of 2**grain; ``off``: how far float32 may be from the value, 0 where it is exact;
    ``odd``: it may be infinite or NaN; ``literal``: it is a Python number."""

    text: str
    dtype: str
    shape: tuple[str, ...] = ()
    most: float = 0.0
    grain: int = 0
    off: float = 0.0
    odd: bool = False
    literal: bool = False

    @property
    def kind(self) -> Kind:
        return "bool" if self.dtype == "bool" else "int" if self.dtype in INTEGERS else "float"

    @property
    def exact(self) -> bool:
        return self.off == 0.0

    @property
    def sound(self) -> bool:
        """Whether float32 (or int32) holds what the bounds allow."""
        if self.kind == "int":
            return self.most <= MOST_WHOLE
        if self.exact:
            return self.most <= MOST_STEPS * 2.0**self.grain
        return self.most <= 2.0**20 and self.off <= 2.0**-6 * max(1.0, self.most)


def number(value: float) -> Expr:
    """A Python number that is a multiple of 2**-3, or infinite."""
    if isinstance(value, int):
        return Expr(str(value), "i32", most=abs(value), literal=True)
    if math.isinf(value):
        return Expr("kd.inf" if value > 0 else "-kd.inf", "f32", grain=8, odd=True, literal=True)
    return Expr(repr(value), "f32", most=abs(value), grain=-3, literal=True)


def common(a: Expr, b: Expr) -> str:
    """The dtype in which two operands meet."""
    if "float" in (a.kind, b.kind):
        return "f32"
    if a.kind == b.kind == "bool":
        return "bool"
    return "i64" if any(x.dtype == "i64" for x in (a, b)) else "i32"


def arithmetic(x: Expr) -> str:
    """The dtype in which an operand alone is computed with."""
    return "f32" if x.kind == "float" else "i64" if x.dtype == "i64" else "i32"


def broadcast(a: Expr, b: Expr) -> tuple[str, ...]:
    """The shape of an operator's result."""
    if not a.shape or not b.shape:
        return a.shape or b.shape
    return tuple(y if x == UNIT else x for x, y in zip(a.shape, b.shape, strict=True))


def _joined(text: str, a: Expr, b: Expr, most: float, grain: int, off: float) -> Expr:
    dtype = common(a, b)
    if dtype == "f32" and off:
        off += EPS_F32 * most
    return Expr(text, dtype, broadcast(a, b), most, grain, off, a.odd or b.odd)


def as_float(x: Expr) -> Expr:
    """What an integer becomes beside a float: float32, which does not hold the largest ones."""
    if x.kind != "int":
        return x
    exact = x.most <= 2.0**24
    return replace(x, dtype="f32", off=0.0 if exact else EPS_F32 * x.most)


def _meeting(a: Expr, b: Expr) -> tuple[Expr, Expr]:
    return (as_float(a), as_float(b)) if "float" in (a.kind, b.kind) else (a, b)


def plus(a: Expr, b: Expr, sign: str = "+") -> Expr:
    a, b = _meeting(a, b)
    return _joined(f"({a.text} {sign} {b.text})", a, b, a.most + b.most, min(a.grain, b.grain), a.off + b.off)


def times(a: Expr, b: Expr) -> Expr:
    a, b = _meeting(a, b)
    off = a.most * b.off + b.most * a.off + a.off * b.off
    return _joined(f"({a.text} * {b.text})", a, b, a.most * b.most, a.grain + b.grain, off)


def larger(a: Expr, b: Expr, word: str) -> Expr:
    """``kd.maximum`` or ``kd.minimum``."""
    a, b = _meeting(a, b)
    joined = _joined(f"kd.{word}({a.text}, {b.text})", a, b, max(a.most, b.most), min(a.grain, b.grain), 0.0)
    return replace(joined, off=max(a.off, b.off))


def either(condition: Expr, a: Expr, b: Expr) -> Expr:
    """``kd.where``."""
    if a.dtype != b.dtype:
        a, b = _meeting(a, b)
    shape = broadcast(condition, Expr("", "f32", broadcast(a, b)))
    dtype = a.dtype if a.dtype == b.dtype and not (a.literal and b.literal) else common(a, b)
    text = f"kd.where({condition.text}, {a.text}, {b.text})"
    off, odd = max(a.off, b.off), a.odd or b.odd
    return Expr(text, dtype, shape, max(a.most, b.most), min(a.grain, b.grain), off, odd)


def compared(a: Expr, b: Expr, sign: str) -> Expr:
    return Expr(f"({a.text} {sign} {b.text})", "bool", broadcast(a, b))


def negative(x: Expr) -> Expr:
    return replace(x, text=f"(-{x.text})", dtype=arithmetic(x), literal=False)


def magnitude(x: Expr) -> Expr:
    return replace(x, text=f"kd.abs({x.text})", dtype=arithmetic(x))


def halved(x: Expr, by: int) -> Expr:
    """Divided by a power of two."""
    x = as_float(x)
    power = by.bit_length() - 1
    return replace(x, text=f"({x.text} / {by})", dtype="f32", most=x.most / by, grain=x.grain - power, off=x.off / by)


def floored(x: Expr) -> Expr:
    return replace(x, text=f"kd.floor({x.text})", dtype="f32", most=x.most + 1, grain=max(0, x.grain))


def rounded(x: Expr) -> Expr:
    return replace(floored(x), text=f"kd.round({x.text})")


def quotient(a: Expr, b: Expr, sign: str) -> Expr:
    """``//`` or ``%`` of integers; whoever draws it makes sure that b is not zero."""
    most = a.most + 1 if sign == "//" else b.most
    return _joined(f"({a.text} {sign} {b.text})", a, b, most, 0, 0.0)


def of_bits(a: Expr, b: Expr, sign: str) -> Expr:
    """``&``, ``|`` or ``^`` of integers: what fits in as many bits as they take."""
    return _joined(f"({a.text} {sign} {b.text})", a, b, 2.0 ** int(max(a.most, b.most)).bit_length(), 0, 0.0)


def shifted(x: Expr, count: Expr, sign: str) -> Expr:
    """``>>``, or ``<<`` by at most three or by none of the counts that leave bits."""
    most = x.most * 8 if sign == "<<" else max(x.most, 1.0)
    return _joined(f"({x.text} {sign} {count.text})", x, count, most, 0, 0.0)


def divided(a: Expr, b: Expr) -> Expr:
    """a / (kd.abs(b) + 1.0)"""
    a, b = as_float(a), as_float(b)
    off = a.off + a.most * b.off + 2 * EPS_F32 * a.most
    return replace(_joined(f"({a.text} / (kd.abs({b.text}) + 1.0))", a, b, a.most, 0, off), dtype="f32")


def smooth(word: str, x: Expr) -> Expr:
    """A function of real analysis, fed with what it can take."""
    x = as_float(x)
    most, slope, text = {
        "exp": (math.exp(2), math.exp(2), f"kd.exp(kd.minimum({x.text}, 2.0))"),
        "exp2": (4.0, 3.0, f"kd.exp2(-kd.abs({x.text}) + 2.0)"),
        "log": (math.log1p(x.most), 1.0, f"kd.log(kd.abs({x.text}) + 1.0)"),
        "log2": (2 * math.log1p(x.most), 1.5, f"kd.log2(kd.abs({x.text}) + 1.0)"),
        "sqrt": (math.sqrt(x.most + 1), 0.5, f"kd.sqrt(kd.abs({x.text}) + 1.0)"),
        "rsqrt": (1.0, 0.5, f"kd.rsqrt(kd.abs({x.text}) + 1.0)"),
        "sin": (1.0, 1.0, f"kd.sin({x.text})"),
        "cos": (1.0, 1.0, f"kd.cos({x.text})"),
        "tanh": (1.0, 1.0, f"kd.tanh({x.text})"),
        "erf": (1.0, 1.2, f"kd.erf({x.text})"),
        "ndtr": (1.0, 0.4, f"kd.ndtr({x.text})"),
        "sigmoid": (1.0, 0.3, f"kd.sigmoid({x.text})"),
    }[word]
    # The argument itself is rounded where it is large: exp2(-1000.25) is off by more than its last place, but it is nothing.
    argument = x.off + EPS_F32 * min(x.most + 2, 32.0)
    return Expr(text, "f32", x.shape, most, 0, slope * argument + UNITS * EPS_F32 * max(1.0, most), x.odd)


SMOOTH = ("exp", "exp2", "log", "log2", "sqrt", "rsqrt", "sin", "cos", "tanh", "erf", "ndtr", "sigmoid")


def narrowed(x: Expr, dtype: str) -> Expr | None:
    """``x.to(dtype)`` for a float type; None where the result would hang on how the cast rounds or overflows."""
    x = as_float(x)
    if x.most > LARGEST[dtype] and not dtype.startswith("f8"):
        return None
    most = min(x.most, LARGEST[dtype])
    fits = x.exact and x.most <= LARGEST[dtype] and x.most <= 2.0 ** (SIGNIFICANT[dtype] + x.grain)
    if dtype in ("f8e4m3", "f8e5m2") and x.grain < -6:
        fits = False
    off = (
        x.off if fits or (dtype == "f32" and not x.exact) else x.off + 2.0 ** (1 - SIGNIFICANT[dtype]) * most + 2.0**-8
    )
    if dtype == "f32" and not fits and x.exact:
        off = EPS_F32 * most
    return replace(x, text=f"{x.text}.to(kd.{dtype})", dtype=dtype, most=most, off=off)


def whole(x: Expr, dtype: str = "i32") -> Expr:
    """``x.to(kd.i32)``: towards zero, saturating, NaN to 0."""
    most = min(x.most, 2.0**31) if not x.odd else 2.0**31
    return Expr(f"{x.text}.to(kd.{dtype})", dtype, x.shape, most)


def reduced(x: Expr, op: str, axis: int, count: int, written: int) -> Expr:
    """``kd.sum`` and so on along an axis of ``count`` elements, which the text calls ``written``."""
    shape = x.shape[:axis] + x.shape[axis + 1 :]
    text, dtype = f"kd.{op}({x.text}, axis={written})", arithmetic(x)
    if op == "sum":
        off = x.off * count + (SUM_FACTOR * EPS_F32 * math.sqrt(max(1, count)) * count * x.most if x.off else 0.0)
        return replace(x, text=text, dtype=dtype, shape=shape, most=x.most * count, off=off)
    empty = count == 0
    most = 2.0**31 if empty and dtype == "i32" else 2.0**63 if empty and dtype == "i64" else x.most
    return replace(x, text=text, dtype=dtype, shape=shape, most=most, odd=x.odd or (empty and dtype == "f32"))


def place(x: Expr, word: str, axis: int, count: int) -> Expr:
    """``kd.argmax`` or ``kd.argmin`` along an axis of ``count`` elements."""
    return Expr(f"kd.{word}({x.text}, axis={axis})", "i32", x.shape[:axis] + x.shape[axis + 1 :], count - 1)


def product(a: Expr, b: Expr, acc: Expr | None, count: int) -> Expr | None:
    """``kd.dot(a, b, acc)``; None where the types do not multiply."""
    types = {a.dtype, b.dtype}
    if types == {"f16", "bf16"}:
        return None
    rounded = types - {"f32"} if len(types) > 1 else set()
    if len(types) > 1 and rounded and not all(t.startswith("f8") for t in types):
        to = next((t for t in ("f16", "bf16") if t in types), None) or next(iter(rounded))
        left, right = (x if x.dtype == to else narrowed(x, to) for x in (a, b))
        if left is None or right is None or not (left.exact and right.exact):
            return None
    term = times(replace(a, dtype="f32"), replace(b, dtype="f32"))
    shape = (a.shape[0], b.shape[1])
    off = term.off * count + (SUM_FACTOR * EPS_F32 * math.sqrt(max(1, count)) * count * term.most if term.off else 0.0)
    text = f"kd.dot({a.text}, {b.text})" if acc is None else f"kd.dot({a.text}, {b.text}, {acc.text})"
    found = Expr(text, "f32", shape, term.most * count, term.grain, off, term.odd)
    if acc is None:
        return found
    total = plus(replace(found, text=""), replace(acc, text=""))
    return replace(total, text=text, shape=shape)


def lengthened(x: Expr, keep: tuple[bool, ...], shape: tuple[str, ...]) -> Expr:
    """``x[:, None]``: a unit axis for each axis of ``shape`` that is not kept."""
    if all(keep):
        return x
    text = f"{x.text}[{', '.join(':' if k else 'None' for k in keep)}]"
    return replace(x, text=text, shape=tuple(a if k else UNIT for a, k in zip(shape, keep, strict=True)))
