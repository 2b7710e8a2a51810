"""Ops that PyTorch's dispatcher brings to tensors of PyTorch/XLA, which are functional tensors all the time: views and writes
are noted on a wrapper, and what it holds has no address to ask for, on pain of a segmentation fault.

The dispatcher takes wrappers off before it runs an op of ours, as where a mode looks on. An op's ``run`` views and writes, so
here they are put on again.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

IS_INSTALLED = find_spec("torch_xla") is not None

FUNCTIONAL = torch._C.DispatchKey.Functionalize


def wrapped(run: Callable[..., Any]) -> Callable[..., Any]:
    """The function of tensors as one of what their wrappers hold."""

    def run_wrapped(*arguments: Any) -> Any:
        given = tree_map_only(torch.Tensor, _put_on, arguments)
        include, exclude = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
        with torch._C._ForceDispatchKeyGuard(include, exclude - torch._C.DispatchKeySet(FUNCTIONAL)):
            return tree_map_only(torch.Tensor, _taken_off, run(*given))

    return run_wrapped


def _put_on(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if torch._is_functional_tensor(tensor) else torch._to_functional_tensor(tensor)


def _taken_off(tensor: torch.Tensor) -> torch.Tensor:
    torch._functionalize_sync(tensor)
    return torch._from_functional_tensor(tensor)
