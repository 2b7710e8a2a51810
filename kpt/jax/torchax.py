"""The ops of kpt.ops on tensors of torchax, which hold JAX arrays: as kpt.jax serves those.

Written for torchax 0.0.13. Its tensors are a subclass of PyTorch's, for which each op gets a rule of its own; how JAX
differentiates, maps and compiles a program of such tensors is then what it does with kpt.jax.
"""

from functools import cache
from itertools import product
from typing import Any

import torch

from kpt.jax.interpreter import Interpreter
from kpt.jax.serve import serve
from kpt.ops.registry import OPS
from kpt_dsl.errors import MissingPackageError


@cache
def serve_torchax() -> None:
    """Have kpt.ops serve tensors of torchax, in this process, from now on; modules that were replaced call them, too.

    Where PyTorch's autograd follows a call, PyTorch's operations serve it. Raises MissingPackageError without torchax.
    """
    try:
        from torchax.interop import jax_view, torch_view
        from torchax.tensor import Tensor
        from torchax.view import View
    except ModuleNotFoundError as error:
        raise MissingPackageError("kpt.jax.serve_torchax needs the package torchax: pip install torchax") from error

    def served(_: type, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return torch_view(Interpreter(serve).call(function, *jax_view(args)))

    for name, kind in product(OPS, (Tensor, View)):
        torch.library.register_torch_dispatch(f"kpt::{name}", kind, served)
