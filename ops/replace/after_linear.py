"""What a rewritten forward calls in the place of a linear layer and the activation of what it gives.

Whether both are what they were when that was shown is asked at the call: where somebody watches one of them, or put another in
its place, both are called as the forward's own text says.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from kpt.ops.eager import is_autocasting
from kpt.ops.linear_act.op import linear_act
from kpt.ops.replace.forms.stand_ins import Child
from kpt.ops.replace.modules import is_linear, is_watched


def linear_and(activation: str, known: Any, widens: bool) -> Callable[..., torch.Tensor]:
    """A function of a linear layer, an activation, an input and what the activation is given besides. ``activation``: what
    ``linear_act`` calls it; ``known``: the child that it is, or what it is itself; ``widens``: it may give another
    type than ``linear_act`` under autocast, where it is called itself."""

    def linear_and_activation(
        linear: nn.Module, own: Any, x: torch.Tensor, *beside: Any, **keywords: Any
    ) -> torch.Tensor:
        is_own = known.is_still(own) if isinstance(known, Child) else own is known
        is_own = is_own and not (widens and is_autocasting())
        if is_own and is_linear(linear) and not is_watched(linear):
            return linear_act(x, linear.weight, linear.bias, activation=activation)
        return own(linear(x), *beside, **keywords)  # type: ignore[no-any-return]

    return linear_and_activation
