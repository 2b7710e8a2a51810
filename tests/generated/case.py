"""What a generated case is: a kernel, its arguments made from plain numbers, and what float64 says about the results."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from kpt_dsl import Kernel
from tests.generated.arrays import exact
from tests.tolerances import assert_within, tolerance

Array = NDArray[np.float64]

LARGEST = {"f8e4m3": 448.0, "f8e5m2": 57344.0}
"""Largest finite number of each fp8 type."""

_NARROW = {"f8e4m3": ml_dtypes.float8_e4m3fn, "f8e5m2": ml_dtypes.float8_e5m2}


@dataclass(frozen=True)
class Close:
    """An output must be within ``allowed`` (a number, or one for each element) of these values.

    ``summed``: it is partial sums, and their sums along this axis must be: where one share ends is the config's affair.
    ``beside``: it is what was dropped of numbers of this size.
    """

    values: Array
    allowed: Array | float
    summed: int | None = None
    beside: float = 0.0

    def check(self, got: torch.Tensor, name: str) -> None:
        """Fails unless it is."""
        assert_within(self.compared(exact(got)), self.values, self.allowed, name)

    def compared(self, got: Array) -> Array:
        """What of an output is compared with the values."""
        return got if self.summed is None else got.sum(self.summed)


@dataclass(frozen=True)
class Rounded:
    """Each element of an output must be the fp8 rounding of a number that float32 cannot tell from this value."""

    values: Array
    dtype: str

    def check(self, got: torch.Tensor, name: str) -> None:
        """Fails unless it is."""
        near = tolerance("f32") * np.abs(self.values)
        low, high = (self._round(x) for x in (self.values - near, self.values + near))
        values = exact(got)
        assert values.shape == self.values.shape, f"{name}: shape {values.shape}, expected {self.values.shape}"
        wrong = ~((low <= values) & (values <= high))
        assert not wrong.any(), (
            f"{name}: {int(wrong.sum())} of {wrong.size} elements are not the {self.dtype} rounding: the first, at "
            f"{tuple(map(int, np.argwhere(wrong)[0]))}, is {values[wrong][0]}, of {self.values[wrong][0]}"
        )

    def compared(self, got: Array) -> Array:
        """What of an output is compared with the values: all of it."""
        return got

    @property
    def saturated(self) -> Array:
        """The values as far as the type reaches, not rounded."""
        return np.clip(self.values, -LARGEST[self.dtype], LARGEST[self.dtype])

    def _round(self, x: Array) -> Array:
        """To nearest even, saturating."""
        largest = LARGEST[self.dtype]
        return np.clip(x, -largest, largest).astype(_NARROW[self.dtype]).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Case(ABC):
    """One ugly call of one kernel. Its repr is all that is needed to run it again."""

    kernel: ClassVar[Kernel]
    seed: int = 0

    @property
    def on_tpu(self) -> bool:
        """Whether TPUs have a form of it."""
        return True

    @property
    def rounds_on_the_way(self) -> bool:
        """Whether the kernel goes on from a value that it rounds, which NumPy's float64 mode does not."""
        return False

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """Arguments by name: torch tensors of the CPU (outputs hold NaN), None for what is absent, scalars, statics."""

    @abstractmethod
    def expected(self, arguments: Mapping[str, Any], cuda: bool) -> Mapping[str, Close | Rounded]:
        """What each output must be, from float64 arithmetic on the values that the arguments really hold."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the tensors that the kernel writes."""
        kernel = self.kernel
        return tuple(name for name, role in kernel.roles.items() if role == "out" and name not in kernel.defaults)
