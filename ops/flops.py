"""How many operations the products of an op take: told to ``torch.utils.flop_counter.FlopCounterMode`` while one counts.

Its own table of formulas would have to be imported with the ops, and imports Triton.
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any

from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

FORMULAS: dict[Any, Callable[..., int]] = {}
"""By op, as ``torch.ops.kpt`` has it."""


def enter(op: Any, formula: Callable[..., int]) -> None:
    """Note the formula of an op: of its arguments, in order."""

    def counted(*arguments: Any, out_val: Any = None, **_: Any) -> int:
        return formula(*arguments)

    FORMULAS[op] = counted


def tell_counters() -> None:
    """Give every counter that is at work the formulas of our ops."""
    known = sys.modules.get("torch.utils.flop_counter")
    if known is not None:
        modes: Iterable[Any] = _get_current_dispatch_mode_stack()
        for counter in {getattr(mode, "counter", None) for mode in modes}:
            if isinstance(counter, known.FlopCounterMode):
                counter.flop_registry.update(FORMULAS)


def product(m: int, n: int, k: int) -> int:
    """Of an (m, k) and a (k, n) matrix."""
    return 2 * m * n * k
