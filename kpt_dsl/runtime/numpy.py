"""Running generated NumPy source, on NumPy arrays or on torch tensors of the CPU.

Torch tensors are handed over as views of the same memory, bfloat16 and fp8 ones too, so outputs are written in place
through any strides. Generated text is known to ``linecache``: tracebacks show it, and a debugger steps through it.
"""

import linecache
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kpt_dsl import targets
from kpt_dsl.arrays import library
from kpt_dsl.dtypes import DType, dtype
from kpt_dsl.emit import Source
from kpt_dsl.emit.numpy import Precision, emit_kernel
from kpt_dsl.errors import InputError
from kpt_dsl.runtime.memory import overwritten, refuse_shared_outputs

if TYPE_CHECKING:
    import numpy as np

    from kpt_dsl.instance import Instance
    from kpt_dsl.space import Config
    from kpt_dsl.targets import Target

    Array = np.ndarray[Any, np.dtype[Any]]


def run(instance: "Instance", arrays: Mapping[str, Any], config: "Config", precision: Precision = "typed") -> None:
    """Run an instance on its arguments by name, tensors and scalars; outputs are written in place.

    ``precision="f64"`` computes in float64 whatever the dtypes; float64 outputs then keep what was computed.
    Raises InputError for an array that is neither NumPy's nor a torch tensor of the CPU, and for outputs that share memory.
    """
    kernel = instance.kernel
    views = {name: as_numpy(name, arrays[name]) for name in kernel.tensors if arrays[name] is not None}
    refuse_shared_outputs(kernel, views)
    views |= {name: views[name].copy() for name in overwritten(kernel, views)}
    source = emit_kernel(instance.lower(config), config, precision)
    load(source)(*(views[name] if name in views else arrays[name] for name in source.abi))


def target(arrays: Mapping[str, Any]) -> "Target":
    """The target whose configs the NumPy run takes."""
    return targets.get("cpu")


def launcher(instance: "Instance", arrays: Mapping[str, Any], config: "Config", target: "Target") -> Callable[[], None]:
    """A run with everything bound."""
    return lambda: run(instance, arrays, config)


@lru_cache(maxsize=256)
def load(source: Source) -> Callable[..., None]:
    """The function that a source defines."""
    file = f"<kpt numpy {source.name} {source.digest}>"
    linecache.cache[file] = (len(source.text), None, source.text.splitlines(keepends=True), file)
    module: dict[str, Any] = {"__name__": f"kpt_numpy_{source.name}"}
    exec(compile(source.text, file, "exec"), module)
    function: Callable[..., None] = module[source.name]
    return function


def as_numpy(name: str, array: Any) -> "Array":
    """A NumPy view of an argument: the array itself, or the memory of a torch tensor of the CPU."""
    import numpy as np

    if isinstance(array, np.ndarray):
        return np.asarray(array)  # without the operators of a subclass
    if library(array) != "torch":
        raise InputError(
            f"{name} is {type(array).__name__}; backend numpy takes NumPy arrays and torch tensors of the CPU"
        )
    if array.device.type != "cpu":
        raise InputError(f"{name} is on {array.device}; backend numpy takes tensors of the CPU: {name}.cpu()")
    return _torch_view(array.detach(), dtype(array.dtype))


def _torch_view(tensor: Any, element: DType) -> "Array":
    """bfloat16 and fp8 do not exist in NumPy itself: they cross as integers of their width.

    Through DLPack: ``tensor.numpy()`` makes a tensor's memory unresizable for good, and FSDP frees parameters by resizing.
    """
    import ml_dtypes
    import numpy as np
    import torch

    crossing = {
        "bf16": (torch.int16, ml_dtypes.bfloat16),
        "f8e4m3": (torch.uint8, ml_dtypes.float8_e4m3fn),
        "f8e5m2": (torch.uint8, ml_dtypes.float8_e5m2),
    }
    if element.name not in crossing:
        view: Array = np.from_dlpack(tensor)
        return view
    integer, narrow = crossing[element.name]
    crossed: Array = np.from_dlpack(tensor.view(integer)).view(narrow)
    return crossed
