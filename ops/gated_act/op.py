"""The op of a gate: public function, checks, and the kernel call behind it."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from kpt.ops.backends import Launch, as_matrix, generated, wide_dtype
from kpt.ops.gated_act import reference
from kpt.ops.gated_act.backward import GRADIENT, check_gate
from kpt.ops.gated_act.kernels import gated_act_fwd
from kpt.ops.gated_act.shapes import DIMS, SHAPES, arguments
from kpt.ops.library import define
from kpt.ops.linear_act.activations import ACTIVATIONS
from kpt.ops.registry import Op, Sharding


def gated_act(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    """``activation(gate) * up``: SwiGLU with "silu", GeGLU with "gelu" (Shazeer 2020, arXiv:2002.05202).

    ``gate``, ``up``: of one shape, (..., N), and one dtype, float16, bfloat16, float32 or float64; halves of one tensor are not
    copied. ``activation``: "none", or a name in Transformers' table (docs/transformer-blocks.md). Gives a contiguous tensor of
    that shape and dtype. Kernels compute in float32 and round once, where models in PyTorch round ``activation(gate)`` first.
    Raises InputError for arguments that do not fit.
    """
    result: torch.Tensor = _dispatch(gate, up, activation)
    return result


def _fake(gate: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(gate, memory_format=torch.contiguous_format)


def _why_not(gate: torch.Tensor, *_: Any) -> str | None:
    return wide_dtype(gate)


def _shardings(_: int, gate: torch.Tensor, *__: Any) -> Iterator[Sharding]:
    for dim in range(gate.ndim):
        yield Sharding((dim,), (dim, dim, None))


def _run(launch: Launch, gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    width = gate.shape[-1]
    y = torch.empty_like(gate, memory_format=torch.contiguous_format)
    launch(gated_act_fwd, as_matrix(gate, width), as_matrix(up, width), as_matrix(y, width), ACTIVATIONS[activation])
    return y


_dispatch = define(
    Op(
        schema="(Tensor gate, Tensor up, str activation) -> Tensor",
        reference=reference.gated_act,
        public=gated_act,
        fake=_fake,
        check=partial(check_gate, "gated_act"),
        kernels=generated(_run, _why_not),
        dims=DIMS,
        arguments=arguments,
        shapes=SHAPES,
        lengths={"gate": slice(0, -1), "up": slice(0, -1)},
        fuses=True,
        autocast={"cuda": "keep", "cpu": "keep"},
        gradient=GRADIENT,
        shardings=_shardings,
    )
)
