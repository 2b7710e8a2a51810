"""What a rewritten forward calls in the place of a sum and a norm of it.

Which op that is, is asked of the norm as it is at the call: where somebody watches it, or put another in its place, both happen
as the forward's own text says.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from kpt.ops.eager import is_autocasting
from kpt.ops.replace.forms.norm import LayerNorm, RMSNorm
from kpt.ops.replace.modules import KptLayerNorm, KptRMSNorm, is_watched
from kpt.ops.replace.proven import is_proven


def after_sum(norm: nn.Module) -> Callable[..., tuple[torch.Tensor, torch.Tensor]] | None:
    """How a norm that kpt serves runs together with the sum before it: (norm, parts of the sum) -> (norm of it, sum). None for
    any other module."""
    kind: Any = type(norm)
    if kind in (KptLayerNorm, KptRMSNorm):
        return kind.after_sum  # type: ignore[no-any-return]
    if is_proven(kind) and isinstance(kind.served, (LayerNorm, RMSNorm)):
        return kind.served.after_sum
    return None


def sum_and_norm(norm: nn.Module, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``x + residual``, and ``norm`` of it: in one pass over memory where the two are alike.

    Under autocast, where a sum may be of half precision and a norm is not, they stay two.
    """
    together = after_sum(norm)
    if (
        together is None
        or type(x) is not torch.Tensor
        or type(residual) is not torch.Tensor
        or x.shape != residual.shape
        or x.dtype is not residual.dtype
        or x.device != residual.device
        or is_autocasting()
        or is_watched(norm)
    ):
        total = x + residual
        return total, norm(total)
    normed, total = together(norm, x, residual)
    return total, normed
