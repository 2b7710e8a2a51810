"""What a tuning came to."""

from dataclasses import dataclass

from autotune_db.entry import Origin
from autotune_db.key import Key
from autotune_db.trial import Trial
from kpt_dsl.space import Config


@dataclass(frozen=True)
class Result:
    """The winner for a key, beside the first config.

    ``microseconds`` and ``first_microseconds`` are of the final round (a model's estimates where ``origin`` is predicted).
    ``interrupted``: by Ctrl-C, and finished with what there was. ``unsaved``: why the database lacks it, "" where it does not.
    """

    key: Key
    origin: Origin
    config: Config
    first: Config
    microseconds: float | None
    first_microseconds: float | None
    trials: tuple[Trial, ...]
    seconds: float
    interrupted: bool = False
    unsaved: str = ""

    @property
    def speedup(self) -> float | None:
        """Of the winner over the first config."""
        if self.microseconds is None or self.first_microseconds is None:
            return None
        return self.first_microseconds / self.microseconds

    @property
    def held(self) -> int:
        """How many predictions are the peak's and not the code's, which would be quicker (``model.held``)."""
        return sum(trial.outcome == "predicted" and bool(trial.detail) for trial in self.trials)
