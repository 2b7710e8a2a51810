"""A gate in native PyTorch: contract, oracle (float64 in, float64 out) and last fallback."""

from collections.abc import Sequence

import torch

from kpt.ops.linear_act.reference import ACTIVATIONS, BACKWARD


def gated_act(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    """``activation(gate) * up``, contiguous; the activation is rounded to its dtype."""
    return (ACTIVATIONS[activation](gate) * up).contiguous()


def gated_act_backward(
    dy: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, activation: str, needed: Sequence[bool]
) -> list[torch.Tensor]:
    """The wanted gradients, by PyTorch's own operations."""
    gradients = []
    if needed[0]:
        slope = dy * up
        gradients.append((slope if activation == "none" else BACKWARD[activation](slope, gate)).contiguous())
    if needed[1]:
        gradients.append((dy * ACTIVATIONS[activation](gate)).contiguous())
    return gradients
