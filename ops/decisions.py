"""How kinds of calls are served, as it is remembered; and who hears of those that are forgotten."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kpt.ops.choice import Choice
from kpt.ops.registry import Op, Ready

if TYPE_CHECKING:
    from kpt.ops.behind import Pending


class Decision:
    """How one kind of call is served, and how often it was. ``choice`` None: PyTorch's dispatcher takes it, and comes back.
    ``pending``: what another process compiles for it, until when this holds."""

    __slots__ = ("calls", "choice", "pending", "ready", "seen")

    def __init__(self, choice: Choice | None, ready: Ready, pending: "Pending | None" = None) -> None:
        self.choice = choice
        self.ready = ready
        self.pending = pending
        self.calls = 0
        self.seen = 1
        """How many calls there were when it was last looked at whether it is still in use; the first one does not count."""

    def count(self, served: Counter[str], fallbacks: Counter[str]) -> None:
        """Add its calls to those by implementation, and by reason where they fell back."""
        if self.choice is None or not self.calls:
            return
        served[self.choice.implementation.name] += self.calls
        if self.choice.fallback_reason is not None:
            fallbacks[self.choice.fallback_reason] += self.calls


Leaving = Callable[[Op, Any, Decision], None]
"""Is told of a kind of call that is being forgotten: its op, its key, its decision."""

_told_of_leaving: list[Leaving] = []


@contextmanager
def leaving(tell: Leaving) -> Iterator[None]:
    """Within the block, ``tell`` hears of kinds of calls that are forgotten, with how often they came."""
    _told_of_leaving.append(tell)
    try:
        yield
    finally:
        _told_of_leaving.remove(tell)


def tell_of_leaving(op: Op, key: Any, decision: Decision) -> None:
    """A kind of call is forgotten."""
    for tell in _told_of_leaving:
        tell(op, key, decision)
