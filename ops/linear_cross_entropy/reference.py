"""A linear layer and its cross-entropy in native PyTorch: contract, oracle (float64 in, float64 out) and last fallback."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from kpt.ops.cross_entropy import reference


def linear_cross_entropy(
    x: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    bias: torch.Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    saving: bool | None = None,
) -> list[torch.Tensor]:
    """``cross_entropy`` of ``torch.nn.functional.linear``, both PyTorch's, which hold the logits."""
    logits = F.linear(x, weight, bias).reshape(-1, weight.shape[0])
    options = (ignore_index, reduction, label_smoothing, z_loss, softcap, bool(saving), saving)
    loss, *saved = reference.cross_entropy(logits, target.reshape(-1), None, *options)
    if reduction == "none":
        loss = loss.view(target.shape)
    return [loss, *([saved[0].view(target.shape), saved[1]] if saving else [])]


def linear_cross_entropy_backward(
    dloss: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    bias: torch.Tensor | None,
    lse: torch.Tensor,
    count: torch.Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    needed: Sequence[bool],
) -> list[torch.Tensor]:
    """The gradients that are needed, by way of that of the logits."""
    rows, classes = x.reshape(-1, x.shape[-1]), weight.shape[0]
    given = (dloss, F.linear(rows, weight, bias), target.reshape(-1), lse.reshape(-1), count, None)
    slopes = reference.cross_entropy_backward(*given, ignore_index, label_smoothing, z_loss, softcap, 0, classes)
    gradients = []
    if needed[0]:
        gradients.append((slopes @ weight).view(x.shape))
    if needed[1]:
        gradients.append((slopes.T @ rows).contiguous())
    if needed[2]:
        gradients.append(slopes.sum(0))
    return gradients
