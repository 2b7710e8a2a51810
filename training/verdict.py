"""Whether kpt's run is PyTorch's within noise, by three criteria that are fixed before anything runs. Knows numbers only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import sqrt

WINDOWS = 4
"""A run is judged in so many parts: rounding matters at once, its amplification later."""

CURVE_FACTOR = 2.0
"""How much further from PyTorch's curve kpt's may be than PyTorch's curves are from each other."""

GRADIENT_FACTOR = 2.0
"""How much larger kpt's errors may be than PyTorch's own, as tests of attention kernels ask since FlashAttention-2."""

EPS_F32 = 2.0**-23
RESOLUTION = 4 * EPS_F32
"""Of a loss, relative: it is float32, a mean of many terms; and what no criterion looks below."""

GRADIENT_RESOLUTION = 16 * EPS_F32
"""Of a gradient's error, relative: sums of products in float32, whose order is free."""

CRITERIA = {
    "curves": f"in each of {WINDOWS} equal parts of the run, the root mean square of kpt's loss less PyTorch's is at most "
    f"{CURVE_FACTOR:g} times the largest between two PyTorch runs that differ in rounding",
    "gradients": "before the first step, the relative error of each gradient, against one a precision higher, is at most "
    f"{GRADIENT_FACTOR:g} times that of PyTorch's",
    "served": "generated kernels served every call of the ops and of their backwards",
}


@dataclass(frozen=True)
class Window:
    """Steps ``first`` to ``last`` (exclusive): how far apart the curves are, and how far they may be."""

    first: int
    last: int
    difference: float
    noise: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.allowed  # a NaN does not pass


def windows(kpt: Sequence[float], pytorch: Sequence[Sequence[float]]) -> list[Window]:
    """Judges a loss curve against the first of several PyTorch curves of the same length."""
    steps = len(kpt)
    edges = [round(i * steps / WINDOWS) for i in range(WINDOWS + 1)]
    found = []
    for first, last in pairwise(edges):
        if first == last:
            continue
        noise = max(distance(a[first:last], b[first:last]) for a, b in combinations(pytorch, 2))
        size = sum(map(abs, pytorch[0][first:last])) / (last - first)
        allowed = CURVE_FACTOR * max(noise, RESOLUTION * size)
        found.append(Window(first, last, distance(kpt[first:last], pytorch[0][first:last]), noise, allowed))
    return found


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Root mean square of the difference."""
    return sqrt(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / len(one))


@dataclass(frozen=True)
class Gradient:
    """Relative errors of one parameter's gradient, by both."""

    parameter: str
    kpt: float
    pytorch: float

    @property
    def passed(self) -> bool:
        return self.kpt <= GRADIENT_FACTOR * max(self.pytorch, GRADIENT_RESOLUTION)


def unserved(served: Mapping[str, Mapping[str, int]], needed: Sequence[str]) -> list[str]:
    """What was not served by generated kernels, in words. ``served``: op -> implementation -> calls; ``needed``: ops."""
    by_pytorch = [
        f"{op}: PyTorch served {calls['reference']} of {sum(calls.values())} calls"
        for op, calls in served.items()
        if calls.get("reference")
    ]
    return by_pytorch + [f"{op}: never called" for op in needed if not sum(served.get(op, {}).values())]
