"""What a replaced model was really served by, after it ran: calls by implementation, why not by kernels, shares of a run."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from kpt.ops.dispatch import counters
from kpt.ops.estimates import estimate
from kpt.ops.rehearsal import called
from kpt.ops.replace.rates import microseconds
from kpt_dsl import targets

if TYPE_CHECKING:
    from kpt.ops.calls import Call

Counts = Mapping[str, Mapping[str, Mapping[str, int]]]
"""As ``kpt.ops.counters`` gives them."""

REFERENCE = "reference"

PARTS = {"linear_cross_entropy": ("cross_entropy",)}
"""Ops that are called inside of another."""


@dataclass(frozen=True, slots=True)
class Served:
    """The calls of some ops and of their gradients since a moment, by all of the process. Printing gives a table.

    ``by``: op -> implementation -> calls; "reference" is PyTorch. ``reasons``: op -> why -> calls that kernels did not take.
    """

    by: Mapping[str, Mapping[str, int]]
    reasons: Mapping[str, Mapping[str, int]]
    shares: "Shares | None" = None

    def __str__(self) -> str:
        rows = [("op", "calls", "served by", "why not by kernels")]
        for op, by in self.by.items():
            who = ", ".join(f"{'PyTorch' if name == REFERENCE else name} {n}" for name, n in by.items())
            why = "; ".join(f"{reason} ({n})" for reason, n in self.reasons[op].items())
            rows.append((op, str(sum(by.values())), who or "nothing yet", why))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"{op:{widths[0]}}  {n:>{widths[1]}}  {who:{widths[2]}}  {why}".rstrip() for op, n, who, why in rows
        ]
        return "\n".join(lines if self.shares is None else [*lines, str(self.shares)])

    __repr__ = __str__


@dataclass(frozen=True, slots=True)
class Shares:
    """Of one run: operations of kpt's kernels by op, and how many were PyTorch's. With a target, the microseconds of either, by
    measurements or models of kernels, and by the rates that PyTorch's operations reach: rough."""

    kernels: Mapping[str, int]
    pytorchs: int
    target: str = ""
    kernels_microseconds: Mapping[str, float] | None = None
    pytorchs_microseconds: float = 0.0

    def __str__(self) -> str:
        operations = sum(self.kernels.values()) + self.pytorchs
        lines = [f"of {operations} operations kernels were {sum(self.kernels.values())}"]
        if self.kernels_microseconds is not None:
            taken = sum(self.kernels_microseconds.values()) + self.pytorchs_microseconds
            lines[0] += f"; of about {taken / 1e3:.3g} ms on {self.target}, roughly estimated:"
            named = [*self.kernels_microseconds.items(), ("PyTorch's", self.pytorchs_microseconds)]
            lines += [f"  {name}: {us / 1e3:.3g} ms, {us / taken:.0%}" for name, us in named if taken]
        return "\n".join(lines)


class Watch(TorchDispatchMode):
    """Sees the operations of a run: calls that kernels serve, and what PyTorch's move and multiply. Views are none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.pytorchs: list[tuple[int, int, torch.dtype]] = []
        """Bytes, floating-point operations of products, and in which type."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        call = called(func, args)
        if call is not None and call.served != REFERENCE:
            self.calls.append(call)
        elif not func.is_view:
            tensors = [t for t in tree_leaves((args, kwargs, found)) if isinstance(t, torch.Tensor)]
            count = flop_registry.get(func._overloadpacket)
            flops = count(*args, **(kwargs or {}), out_val=found) if count is not None else 0
            moved = sum(t.numel() * t.element_size() for t in tensors)
            self.pytorchs.append((moved, flops, tensors[0].dtype if tensors else torch.float32))
        return found

    def shares(self, target: str) -> Shares:
        """Of what was seen. ``target``: the name of the device that times are estimated for; "" for none. Raises TargetError
        for an unknown name."""
        kernels: dict[str, int] = {}
        for call in self.calls:
            kernels[call.op] = kernels.get(call.op, 0) + 1
        if not target:
            return Shares(kernels, len(self.pytorchs))
        chip = targets.get(target)
        times = dict.fromkeys(kernels, 0.0)
        known = {str(call): estimate(call, chip) for call in {str(call): call for call in self.calls}.values()}
        for call in self.calls:
            found = known[str(call)]
            times[call.op] += 0.0 if found is None else found.microseconds
        taken = sum(microseconds(chip, *one) for one in self.pytorchs)
        return Shares(kernels, len(self.pytorchs), target, times, taken)


def since(before: Counts, ops: Collection[str], shares: Shares | None = None) -> Served:
    """What served these ops, with what belongs to them, since there were so many calls."""
    now = counters()
    names = [op for name in ops for op in sorted(now) if op.startswith((name, *PARTS.get(name, ())))]
    by, reasons = (
        {op: _more(now[op][key], before.get(op, {}).get(key, {})) for op in names} for key in ("served", "fallbacks")
    )
    return Served(by, reasons, shares)


def _more(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """How many more by name, most first and else by name, whatever came first in this process."""
    more = {name: n - before.get(name, 0) for name, n in sorted(now.items()) if n > before.get(name, 0)}
    return dict(sorted(more.items(), key=lambda item: -item[1]))
