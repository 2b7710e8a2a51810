"""How long and how much a tuning may take."""

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Budget:
    """``seconds`` of searching, ``trials`` at most; the clock runs from the moment it is made. The final round is not in it."""

    seconds: float = 60.0
    trials: int = 200
    started: float = field(default_factory=time.monotonic)

    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def over(self, trials: int) -> bool:
        """Whether no further trial may begin after so many."""
        return trials >= self.trials or self.spent() >= self.seconds
