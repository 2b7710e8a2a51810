"""The op of rotary position embedding: public function, checks, and the kernel call behind it."""

from functools import partial
from typing import Any

import torch

from kpt.ops.backends import generated
from kpt.ops.library import define
from kpt.ops.registry import Op
from kpt.ops.rotary import contract, reference
from kpt.ops.rotary.backward import GRADIENT
from kpt.ops.rotary.shapes import DIMS, SHAPES, arguments

OP = "rotary"


def rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys with their positions: pairs of their elements turned by angles (Su et al. 2021, arXiv:2104.09864).

    ``q``: (B, H, T, D), ``k``: (B, G, T, D), float16, bfloat16, float32 or float64, both alike, any strides. ``cos``, ``sin``:
    of the dtype of q, or float32 beside half precision, (T, R), (B, T, R) or (1, T, R), or broadcast against q already:
    (B, 1, T, R), and for q of (B, T, H, D) and k of (B, T, G, D) (B, T, 1, R).

    The first R of D columns are turned, the others passed on. A pair is an element of the first half of these columns and
    that of the second, or two neighbours if ``interleaved``. cos and sin have a column for each element, as models make
    them: of a pair (a, b) come out ``a * cos_a - b * sin_a`` and ``b * cos_b + a * sin_b``. Gives q and k turned, each in
    its memory order. Kernels compute in float32 and round once. There are gradients of q and k; where cos or sin need one,
    PyTorch serves. Raises InputError for arguments that do not fit.
    """
    turned_q, turned_k = _dispatch(q, k, cos, sin, interleaved)
    return turned_q, turned_k


def _check(q: Any, k: Any, cos: Any, sin: Any, interleaved: Any) -> None:
    contract.check(OP, {"q": q, "k": k}, cos, sin, interleaved)


_run = partial(contract.turn, back=False)

_dispatch = define(
    Op(
        schema="(Tensor q, Tensor k, Tensor cos, Tensor sin, bool interleaved) -> Tensor[]",
        reference=reference.rotary,
        public=rotary,
        fake=contract.fake,
        check=_check,
        kernels=generated(_run, contract.why_not),
        dims=DIMS,
        arguments=arguments,
        shapes=SHAPES,
        lengths={"q": slice(2, 3), "k": slice(2, 3), "cos": slice(-2, -1), "sin": slice(-2, -1)},
        autocast={"cuda": "keep", "cpu": "keep"},
        gradient=GRADIENT,
        shardings=contract.shardings,
    )
)
