"""A soft cap, ``cap * tanh(x / cap)`` (Gemma 2, arXiv:2408.00118): which caps ops take, and which ones their kernels do."""

from typing import Any

from kpt.ops import checks
from kpt_dsl.language import SMALLEST_POSITIVE

LARGEST = 1 / SMALLEST_POSITIVE
"""Whose reciprocal is still a normal float32."""


def check(op: str, softcap: Any) -> None:
    """Raises InputError unless it is None, or a finite number above zero."""
    if softcap is None:
        return
    checks.number(op, "softcap", softcap)
    if not 0 < softcap < float("inf"):
        checks.reject(op, "softcap", repr(softcap), "None, or a finite number above zero")


def why_not(softcap: float | None) -> str | None:
    """Why kernels, which compute in float32, pass a cap over, or None."""
    if softcap is None or SMALLEST_POSITIVE <= softcap <= LARGEST:
        return None
    return f"softcap is below {SMALLEST_POSITIVE:.3g}" if softcap < 1 else f"softcap is above {LARGEST:.3g}"
