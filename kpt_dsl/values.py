"""Values as keys. Knows nothing of kernels."""

from collections.abc import Hashable
from typing import Any


def told_apart(value: Any) -> Hashable:
    """A number, word or None as a key: 1, 1.0 and True, which Python takes for equal, differ, as 0.0 and -0.0 do; NaN equals
    itself."""
    return (type(value), value.hex()) if isinstance(value, float) else (type(value), value)
