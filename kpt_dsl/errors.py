"""The errors that kpt raises on purpose, one small tree.

Every message names the argument or the line, what it was, and what is accepted. Nothing here knows of torch or of a backend.
"""

from collections.abc import Sequence
from itertools import pairwise


class KptError(Exception):
    """Base of every error that kpt raises on purpose."""


class InputError(KptError, ValueError):
    """An argument of a call is wrong: its rank, dtype, device, value or name."""


class IndexRangeError(InputError):
    """A kernel indexed a dim of a tensor with what is no index of it. Nothing beyond the tensor was read or written."""

    @classmethod
    def at(cls, place: str, index: int, extent: int) -> "IndexRangeError":
        """For an index that a run met; ``place`` says which file, line, kernel, tensor and dim."""
        allowed = f"indices go from 0 to {extent - 1}" if extent else "it has none"
        return cls(f"{place} with {index}, but its extent is {extent}: {allowed}")

    @classmethod
    def check_groups(cls, kernel: str, tensor: str, starts: Sequence[int], extent: int) -> None:
        """Raises where groups that begin where a tensor says do not lie one behind the other in a dim."""
        for i, (one, other) in enumerate(pairwise((0, *starts, extent)) if len(starts) > 1 else ()):
            if one > other:
                found = [f"{tensor}[{at}] is {starts[at]}" for at in (i - 1, i) if 0 <= at < len(starts)]
                raise cls(f"{kernel}: {' and '.join(found)}; where groups begin must ascend from 0 or more to {extent} or less")


class KernelError(KptError):
    """The text of a kernel is wrong; the message shows file, line, caret and the remedy."""


class TargetError(KptError, LookupError):
    """A target is unknown, or cannot do what was asked of it."""


class ConfigError(KptError):
    """A config is illegal for a kernel, a shape and a target."""


class CompileError(KptError, RuntimeError):
    """A compiler refused generated code, or a device failed while running it."""


class MissingPackageError(KptError, ImportError):
    """An optional package is needed for this call; the message says which and how to install it."""


class StoreError(KptError):
    """The config database cannot be used as asked; nothing already stored was changed."""
