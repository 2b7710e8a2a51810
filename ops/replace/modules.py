"""The classes that replaced modules get: PyTorch's own, with another ``forward``.

A replaced module is the same object with the same parameters, buffers, hooks and flags; only its class differs. So state
dicts, optimizers, references from elsewhere, ``deepcopy``, pickle (these classes import by name), ``isinstance`` and
``torch.compile`` all hold, and the class alone tells how to restore.
"""

from typing import Any, TypeGuard

import torch
from torch import nn
from torch.nn.modules import module as nn_module

from kpt.ops.add_layer_norm.op import add_layer_norm
from kpt.ops.add_rms_norm.op import add_rms_norm
from kpt.ops.layer_norm.op import layer_norm
from kpt.ops.linear_act.op import linear_act
from kpt.ops.replace.functions.cross_entropy import cross_entropy
from kpt.ops.replace.linear import linear, unaligned_linear
from kpt.ops.rms_norm.op import rms_norm


class KptLayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` through ``kpt.ops.layer_norm``."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (PyTorch's name)
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def after_sum(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """That of a sum, and the sum."""
        return add_layer_norm(x, residual, self.normalized_shape, self.weight, self.bias, self.eps)


class KptRMSNorm(nn.RMSNorm):
    """``nn.RMSNorm`` through ``kpt.ops.rms_norm``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def after_sum(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """That of a sum, and the sum."""
        return add_rms_norm(x, residual, self.normalized_shape, self.weight, self.eps)


class KptCrossEntropyLoss(nn.CrossEntropyLoss):
    """``nn.CrossEntropyLoss`` through ``kpt.ops.cross_entropy``."""

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:  # noqa: A002 (PyTorch's name)
        return cross_entropy(
            input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )  # fmt: skip


class KptLinear(nn.Linear):
    """``nn.Linear`` whose bias has its gradient from ``kpt.ops.linear_act_backward``."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (PyTorch's name)
        return linear(input, self.weight, self.bias)


class KptUnalignedLinear(nn.Linear):
    """``nn.Linear`` through ``kpt.ops.linear_act`` where that is quicker than PyTorch's product."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (PyTorch's name)
        return unaligned_linear(input, self.weight, self.bias)


class KptSequential(nn.Sequential):
    """``nn.Sequential`` that runs a linear layer and the activation behind it as one ``kpt.ops.linear_act``.

    The children stay what they are. A pair that someone watches (a hook, a patched ``forward``) runs as two modules, so that
    every hook sees what it always saw.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (PyTorch's name)
        x, children = input, list(self)
        while children:
            child = children.pop(0)
            activation = activation_name(children[0]) if children else None
            if (
                is_linear(child)
                and activation is not None
                and not (is_watched(child) or is_watched(children[0]))
            ):
                x = linear_act(x, child.weight, child.bias, activation=activation)
                children.pop(0)
            else:
                x = child(x)
        return x


LINEAR = (nn.Linear, KptLinear, KptUnalignedLinear)
"""The classes of layers that compute ``x @ weight.T + bias`` and nothing else."""


def is_linear(module: Any) -> TypeGuard[nn.Linear]:
    """Whether it is such a layer."""
    return type(module) in LINEAR


def activation_name(module: nn.Module) -> str | None:
    """How ``linear_act`` calls this activation, or None."""
    kind = type(module)
    if kind is nn.GELU:
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(str(module.approximate))
    return {nn.ReLU: "relu", nn.SiLU: "silu"}.get(kind)


def is_watched(module: nn.Module) -> bool:
    """Whether someone sees the calls of a module, by a hook or a patched forward."""
    return bool(
        "forward" in module.__dict__
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or nn_module._has_any_global_hook()
    )
