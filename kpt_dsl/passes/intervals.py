"""Intervals of whole numbers: what operations make of what their operands may be. Knows no kernel."""

from collections.abc import Mapping

Interval = tuple[int, int]
"""The least and the greatest number that an expression may come to."""


def alone(numbers: Mapping[str, int]) -> dict[str, Interval]:
    """The intervals of numbers that are known."""
    return {name: (number, number) for name, number in numbers.items()}


def around(intervals: list[Interval | None]) -> Interval | None:
    """The least interval that holds all; None where one is unknown."""
    known = [i for i in intervals if i is not None]
    if len(known) < len(intervals):
        return None
    return min(low for low, _ in known), max(high for _, high in known)


def of_one(op: str, x: Interval) -> Interval | None:
    """The interval of a unary operation; None for one that is not of whole numbers."""
    low, high = x
    match op:
        case "neg":
            return -high, -low
        case "abs":
            return max(low, -high, 0), max(-low, high)
    return None


def of_two(op: str, a: Interval, b: Interval) -> Interval | None:
    """The interval of a binary operation, before bits that leave the type are dropped; None where a divisor may be zero or bits
    may be shifted by more than there are, and for an operation that does not give whole numbers."""
    match op:
        case "add":
            return a[0] + b[0], a[1] + b[1]
        case "sub":
            return a[0] - b[1], a[1] - b[0]
        case "max":
            return max(a[0], b[0]), max(a[1], b[1])
        case "min":
            return min(a[0], b[0]), min(a[1], b[1])
        case "and" | "or" | "xor":
            return _of_bits(op, a, b)
        case "shr":  # by a count that is none, all bits are shifted out
            counts = (min(b[0], 63), min(b[1], 63)) if b[0] >= 0 else (0, 63)
            return min(x >> n for x in a for n in counts), max(x >> n for x in a for n in counts)
        case "shl" if b[0] >= 0 and b[1] < 64:
            return min(x << n for x in a for n in b), max(x << n for x in a for n in b)
    if op not in ("mul", "floordiv", "mod") or (op != "mul" and b[0] <= 0 <= b[1]):
        return None
    if op == "mod":
        if b[0] > 0:
            return a if a[0] >= 0 and a[1] < b[0] else (0, b[1] - 1)
        return b[0] + 1, 0
    corners = [x * y if op == "mul" else x // y for x in a for y in b]
    return min(corners), max(corners)


def _of_bits(op: str, a: Interval, b: Interval) -> Interval:
    """What fits in as many bits as the operands take; a number that is not negative leaves ``and`` no more than it is."""
    positive = [x[1] for x in (a, b) if x[0] >= 0]
    if op == "and" and positive:
        return 0, min(positive)
    reach = 1 << max(max(high, ~low).bit_length() for low, high in (a, b))
    return 0 if len(positive) == 2 else -reach, reach - 1
