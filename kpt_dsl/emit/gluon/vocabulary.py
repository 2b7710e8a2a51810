"""What Gluon calls things, by version of Triton: names moved while the language was experimental."""

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

_MOVED = {
    "barrier": {(3, 6): "gl.thread_barrier", (3, 7): "gl.barrier"},
    "load": {(3, 6): "tma.async_copy_global_to_shared", (3, 8): "tma.async_load"},
    "store": {(3, 6): "tma.async_copy_shared_to_global", (3, 8): "tma.async_store"},
}
"""Our word -> its name from each version on."""

IMPORTS = (
    "from triton.experimental import gluon",
    "from triton.experimental.gluon import language as gl",
    "from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma",
    "from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait",
)

NAN_IMPORT = "import triton.language as tl"
"""For ``tl.PropagateNan``, which Gluon's language does not hand on, in modules that use it."""

RESERVED = (
    "gluon",
    "gl",
    "tl",
    "fence_async_shared",
    "mbarrier",
    "tma",
    "warpgroup_mma",
    "warpgroup_mma_init",
    "warpgroup_mma_wait",
)

LOCAL = ("programs", "consumer", "i")
"""Names that functions of a module have of their own."""

LEFT = "LEFT_OPERAND"
"""The layout of a product's left side in registers, by the name that a module gives it."""


def names(triton: tuple[int, int]) -> dict[str, str]:
    """The names that a version of Triton knows; those of the nearest older entry."""
    return {
        word: by_version[max((v for v in by_version if v <= triton), default=min(by_version))]
        for word, by_version in _MOVED.items()
    }


@lru_cache(maxsize=1)
def installed() -> tuple[int, int]:
    """The version of Triton that will compile; where there is none, the newest whose names are known."""
    try:
        major, minor, *_ = version("triton").split(".")
    except PackageNotFoundError:
        return max(v for by_version in _MOVED.values() for v in by_version)
    return int(major), int(minor)
