"""Stands in for PyTorch/XLA where it is not installed: the CPU's tensors count as its own, and ``call_jax`` runs what it gets.

What it traced it knows again as the real one does; what is lazy there is done at once here.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map

from kpt.ops.choice import standing_in
from kpt_dsl.arrays import library
from kpt_dsl.runtime import xla
from kpt_dsl.runtime.pallas import INTERPRETING

QUICK = {"xla_backend_optimization_level": INTERPRETING["xla_backend_optimization_level"]}


class CallJax:
    """``torch_xla.core.xla_builder.call_jax``."""

    def __init__(self) -> None:
        self.traced: dict[Any, Any] = {}

    def __call__(self, function: Any, args: tuple[Any, ...], *, override_hash: Any) -> Any:
        """Run a function of JAX on tensors and numbers, and give tensors."""
        import jax

        is_tensor = [isinstance(a, torch.Tensor) for a in args]
        key = (override_hash, *[(a.shape, a.dtype) if t else a for a, t in zip(args, is_tensor, strict=True)])

        def of_tensors(*arrays: Any) -> Any:
            rest = iter(arrays)
            return function(*[next(rest) if t else a for a, t in zip(args, is_tensor, strict=True)])

        if key not in self.traced:
            self.traced[key] = jax.jit(of_tensors, compiler_options=QUICK)
        arrays = [jax.dlpack.from_dlpack(a.detach().contiguous()) for a, t in zip(args, is_tensor, strict=True) if t]
        return tree_map(lambda found: torch.from_dlpack(found).clone(), self.traced[key](*arrays))


@contextmanager
def stand_in() -> Iterator[None]:
    """Within the block tensors of the CPU are those of PyTorch/XLA."""
    call = CallJax()
    names = ("torch_xla", "torch_xla.core", "torch_xla._internal")
    modules = {name: ModuleType(name) for name in names}
    modules["torch_xla.core.xla_builder"] = builder = ModuleType("xla_builder")
    modules["torch_xla.core.xla_model"] = model = ModuleType("xla_model")
    builder.call_jax = call  # type: ignore[attr-defined]
    builder._jax_to_xla_computation_cache_elements = lambda: len(call.traced)  # type: ignore[attr-defined]
    model.xla_device_kind = lambda _: "cpu"  # type: ignore[attr-defined]
    modules["torch_xla.core"].xla_builder, modules["torch_xla.core"].xla_model = builder, model  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch, standing_in("xla"):
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        patch.setattr(xla, "is_xla", lambda array: library(array) == "torch")
        patch.setattr(xla, "CALLED_THROUGH", ())
        xla._kind.cache_clear()
        yield
    xla._kind.cache_clear()
