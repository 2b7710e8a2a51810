"""A trial: one config that was tried for a key, and what became of it."""

from dataclasses import dataclass
from typing import Literal, get_args

from kpt_dsl.space import Config

Outcome = Literal[
    "timed", "predicted", "rejected", "compile error", "crash", "timeout", "out of memory", "wrong result"
]
"""``rejected``: compiled, but spills or does not fit. ``predicted``: ranked by a model without running."""

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True)
class Trial:
    """``microseconds`` is a median of cold-cache runs, ``reference_microseconds`` the first config's, interleaved with it."""

    config: Config
    outcome: Outcome
    microseconds: float | None = None
    reference_microseconds: float | None = None
    detail: str = ""

    @property
    def cost(self) -> float:
        """Time relative to the first config, which clocks that drift do not move; infinite where there is no time."""
        if self.microseconds is None:
            return float("inf")
        return self.microseconds / (self.reference_microseconds or 1.0)
