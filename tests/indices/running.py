"""One call on one backend, whatever it runs on: outputs begin as 77, so that what nobody stored shows."""

from typing import Any

import torch

import kpt_dsl as kd
from kpt_dsl import ir
from kpt_dsl.instance import Instance

BACKENDS = ("numpy", "triton", "pallas")


def whole(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def run(
    kernel: kd.Kernel, backend: str, shapes: dict[str, Any], block: int | None = None, **inputs: Any
) -> dict[str, Any]:
    """The outputs; ``shapes``: of each, a tensor to be like or a tuple. ``block``: of every tiled dim."""
    if backend == "pallas":
        import pytest

        pytest.importorskip("jax")
    outputs = {n: torch.full(s, 77.0) if isinstance(s, tuple) else torch.full_like(s, 77) for n, s in shapes.items()}
    tiled = {tile.block for tile in ir.tiles(Instance.bind(kernel, {**inputs, **outputs}).lower())}
    config = None if block is None else dict.fromkeys(tiled, block)
    kernel(**inputs, **outputs, backend=backend, config=config)
    return outputs
