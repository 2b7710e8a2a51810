"""What a generated case is: a kernel, its arguments made from plain numbers, and what float64 says about the results."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from kpt_dsl import Kernel


@dataclass(frozen=True, kw_only=True)
class Case(ABC):
    """One ugly call of one kernel. Its repr is all that is needed to run it again."""

    kernel: ClassVar[Kernel]
    seed: int = 0

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """Arguments by name: torch tensors of the CPU (outputs hold NaN), None for what is absent, scalars, statics."""

    @abstractmethod
    def check(self, arguments: Mapping[str, Any], outputs: Mapping[str, torch.Tensor]) -> None:
        """Fails unless the outputs are what float64 gives for the arguments, within the tolerances."""
