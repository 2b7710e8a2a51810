"""What a program would take on a TPU that is not here: by the code that Google's compiler made of it, and how often it runs.

One method for all candidates, kpt's and others', Pallas kernels and XLA's own: the one that kpt's offline tuning has
(``kpt_dsl.build.tpu_bundles``), which is given the same four facts of each kernel.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from kpt_dsl.build.tpu_bundles import BELIEVED, bundles, cycles
from kpt_dsl.emit.pallas.module import Abi
from kpt_dsl.errors import CompileError
from kpt_dsl.targets import Target

METHOD = (
    "predicted, run on no TPU: a kernel's time is the largest of issuing the compiler's final bundles (one a cycle, as often "
    "as grid and conditions say, shared by the cores), moving its blocks at the peak bandwidth, its products at 0.95 of "
    "the peak rate, and 0.35 µs a grid step. XLA's fusions run as often as the iteration bounds that the compiler states; "
    "several of them count as one, whose inputs and outputs move once, which favours XLA. Clocks are inferred from peak rates"
)


@dataclass(frozen=True)
class Counts:
    """Of a Pallas kernel: grid steps, how often each part runs that is under a condition, in the order of the code, and what
    its pipeline copies."""

    steps: int
    visits: tuple[int, ...]
    moved_bytes: int


@dataclass(frozen=True)
class Work:
    """What any program must do that computes a case: FLOPs of bfloat16 products, and bytes that are read or written."""

    flops: float
    bytes: int

    def least(self, target: Target) -> float:
        """Microseconds in which its products are believed to be possible."""
        return self.flops / (BELIEVED * target.peak("bf16")) * 1e6


def microseconds(answer: Mapping[str, Any], counts: Counts | None, work: Work, target: Target) -> float:
    """Of a compiled program (``tpu_compiler.compiled``). ``counts``: of the one Pallas kernel in it, None where there is none.

    Raises CompileError where its code does not show the parts that were counted.
    """
    flops = (("bf16", work.flops),)
    if counts is not None:
        listings = [answer["bundles"][kernel] for kernel in _pallas_kernels(answer["program"])]
        if len(listings) != 1:
            raise CompileError(f"the program has {len(listings)} Pallas kernels; one was counted")
        (listing,) = listings
        if counts.visits and not any(bundles(listing, len(counts.visits))[1]):
            raise CompileError(f"the code does not show the {len(counts.visits)} conditional parts that were counted")
        abi = Abi((), (), (), counts.steps, counts.visits, counts.moved_bytes, flops)
        return cycles(listing, abi, target) / target.clock_hz * 1e6
    issued = sum(
        bundles(listing, 0)[0] * steps
        for kernel, listing in answer["bundles"].items()
        if (steps := _iterations(answer["program"], kernel))
    )
    moving = work.bytes / target.bandwidth_bytes_per_s * 1e6
    return max(issued / target.cores / target.clock_hz * 1e6, moving, work.least(target))


def _pallas_kernels(program: str) -> list[str]:
    return re.findall(r"^ *(?:ROOT )?%([\w.-]+) = .*custom_call_target=\"tpu_custom_call\"", program, re.MULTILINE)


def _iterations(program: str, kernel: str) -> int:
    """How often the body of one of XLA's kernels runs, 0 for what is none of them."""
    line = re.search(rf"^ *(?:ROOT )?%{re.escape(kernel)} = .*", program, re.MULTILINE)
    bounds = re.search(r'"iteration_bounds":\[([^\]]*)\]', line[0]) if line else None
    return prod(int(bound.strip('"')) for bound in bounds[1].split(",")) if bounds else 0
