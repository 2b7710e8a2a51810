"""Generated Pallas functions as ops of TorchTPU, whose tensors are on devices ``tpu``. Written after its release 0.2.0, which
was read, not run: it needs a TPU.

``jax_op`` makes an op of a function by its annotations, which generated ones have, and compiles it for each shape.
"""

from sys import modules
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kpt_dsl.emit import Source

_operators: dict[str, Any] = {}


def operator(source: "Source", function: Any) -> Any:
    """The op that a generated function is: takes tensors and numbers, and gives its outputs."""
    name = f"kpt_tpu::{source.name}_{source.digest}"
    if name not in _operators:
        _operators[name] = modules["torch"].tpu.pallas.jax_op(name, function)
    return _operators[name]


def device_name() -> str:
    """What kind of TPU this machine has."""
    name: str = modules["torch"].tpu.get_device_name()
    return name
