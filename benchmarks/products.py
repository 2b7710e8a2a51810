"""What a run of a model multiplies, and nothing else: the floor under what the run takes, whoever does the rest, if products
are PyTorch's as it calls them. Who multiplies otherwise may be quicker: all of GPT-2's forward, with 50257 classes, takes
Inductor, which pads such rows, two thirds of what PyTorch's products take.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from benchmarks.case import Run

aten = torch.ops.aten
PRODUCTS = frozenset({
    aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.convolution.default,
    aten.convolution_backward.default,
})  # fmt: skip
"""Attention's own are not among them: they are part of one operation."""


def alone(run: Run) -> Run:
    """The products that PyTorch is asked for in one run, one after the other: on tensors that lie as theirs did, of which those
    that are alike are one. So operands may be in a cache that they were not in: it is a floor."""
    with _Noting() as noted:
        run()
    known: dict[Any, torch.Tensor] = {}
    products = [(product, *tree_map_only(_Alike, lambda like: like.tensor(known), given)) for product, *given in noted.products]

    def multiply() -> None:
        with torch.no_grad():
            for product, args, kwargs in products:
                product(*args, **kwargs)

    return multiply


class _Alike:
    """How a tensor lies, and no more of it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.how = tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device

    def tensor(self, known: dict[Any, torch.Tensor]) -> torch.Tensor:
        """The one that lies so, of normal numbers."""
        if self.how not in known:
            shape, stride, dtype, device = self.how
            known[self.how] = torch.empty_strided(shape, stride, dtype=dtype, device=device).normal_()
        return known[self.how]


class _Noting(TorchDispatchMode):
    """Notes the products of a run, forward and backward, with how their operands lie."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            self.products.append((func, *tree_map_only(torch.Tensor, _Alike, (args, kwargs or {}))))
        return func(*args, **(kwargs or {}))
