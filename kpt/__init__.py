"""kpt: GPU and TPU kernels from one tile-language source, tuned, as drop-in PyTorch ops.

    import kpt
    y = kpt.ops.layer_norm(x, (4096,), weight, bias)
    print(kpt.optimize(model))

The door only: every name is imported when it is first used, so ``import kpt`` costs nothing and needs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kpt import ops
    from kpt.ops.replace import optimize, replace_modules, restore_modules
    from kpt_dsl.errors import (
        CompileError,
        ConfigError,
        InputError,
        KernelError,
        KptError,
        MissingPackageError,
        StoreError,
        TargetError,
    )

__all__ = [
    "CompileError",
    "ConfigError",
    "InputError",
    "KernelError",
    "KptError",
    "MissingPackageError",
    "StoreError",
    "TargetError",
    "ops",
    "optimize",
    "replace_modules",
    "restore_modules",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    import importlib

    if name in ("jax", "ops"):  # the former is none of the public names, which anybody can import: it needs JAX
        return importlib.import_module(f"kpt.{name}")
    if name in ("optimize", "replace_modules", "restore_modules"):
        return getattr(importlib.import_module("kpt.ops.replace"), name)
    if name in __all__:
        return getattr(importlib.import_module("kpt_dsl.errors"), name)
    raise AttributeError(f"module 'kpt' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted(__all__)
