"""The processes that tuning takes, kept from one key to the next: to start them takes longer than many a search."""

import os

from autotune_db.crew import Crew


class Workshop:
    """Compiling processes, one a core unless told otherwise, and one that times. Use as a context manager."""

    def __init__(self, processes: int | None = None) -> None:
        self.compilers = Crew(processes or os.cpu_count() or 1)
        self.timer = Crew(1)

    def clear(self) -> None:
        """Leave nothing of one key's work to the next."""
        self.compilers.abandon()
        self.timer.abandon()

    def __enter__(self) -> "Workshop":
        return self

    def __exit__(self, *_: object) -> None:
        self.compilers.close()
        self.timer.close()
