"""Reading the final code of Google's TPU compiler: how many cycles a kernel takes.

A TensorCore issues one bundle (a very long instruction word) a cycle, in order, so a program's time is how often each bundle
runs. Parts of a kernel that run under a condition are regions that a branch skips; the emitter knows how often each runs.
The estimate is the largest of four times: issuing bundles, multiplying at nearly the peak rate, moving blocks, starting steps.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kpt_dsl.emit.pallas.module import Abi
    from kpt_dsl.targets import Target

STEP_SECONDS = 0.35e-6
"""What a step takes at least, however little it does: the pipeline's own work and waiting (published matmul and attention times
of v5e and v6e at tiles of 128)."""

BELIEVED = 0.95
"""Of the peak rate, what products are believed to reach: waiting for matrix units shows in no bundle (the best published
products reach 0.92 of a v5e's peak)."""

_BUNDLE = re.compile(r"\s*0(?:x[0-9a-f]+)?\s+(?:L[HBE]|P[BF]|CT)?\s*:\s*(?P<loops>(?:> ?)*)\{(?P<text>.*)")
_SKIP = re.compile(r"sbr\.rel \(!?%p\w+\) target = \$region(\d+)")
_END = re.compile(r"Start/End empty region (\d+)")


def bundles(listing: str, parts: int) -> tuple[int, tuple[int, ...]]:
    """Bundles that run on every step, and those of each of ``parts`` conditional parts, in order.

    Where the listing shows fewer parts (small ones may run unconditionally), all bundles count as running on every step.
    """
    texts = [(m["loops"].count(">"), m["text"]) for m in map(_BUNDLE.match, listing.splitlines()) if m]
    opened: dict[str, int] = {}
    regions: list[tuple[int, int]] = []
    for i, (_, text) in enumerate(texts):
        regions += [(opened.pop(number) + 1, i) for number in _END.findall(text) if number in opened]
        if skip := _SKIP.search(text):
            opened[skip[1]] = i
    inner = [(a, b) for a, b in regions if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in regions)]
    vector = sorted((a, b) for a, b in inner if any(re.search(r"%v\d", text) for _, text in texts[a:b]))
    every_step = sum(depth > 0 for depth, _ in texts) or len(texts)
    if len(vector) < parts:
        return every_step, (0,) * parts
    sizes = tuple(b - a for a, b in vector[:parts])
    return every_step - sum(sizes), sizes


def cycles(listing: str, abi: "Abi", target: "Target") -> int:
    """Estimated clock cycles of a run of a kernel whose final code is ``listing``."""
    always, parts = bundles(listing, len(abi.visits))
    issued = always * abi.steps + sum(size * count for size, count in zip(parts, abi.visits, strict=True))
    starting = STEP_SECONDS * target.clock_hz * abi.steps / target.cores
    moving = abi.moved_bytes / target.bandwidth_bytes_per_s
    multiplying = sum(flops / target.peak(dtype) for dtype, flops in abi.flops) / BELIEVED
    return round(max(issued / target.cores, starting, moving * target.clock_hz, multiplying * target.clock_hz))
