"""The classes that PyTorch's multi-head attention and transformer layers get: its own code, which calls kpt's attention.

In eval PyTorch runs a whole layer, or all of an attention, as one function of its own, beside which no replaced part would be
called. Here its other path runs, in which a layer calls its parts, and attention calls ``scaled_dot_product_attention``. That
path copies queries, keys and values into an order of its own; without masks, attention reads them here where products put them.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kpt.ops.dispatch import DISPATCHERS
from kpt.ops.eager import PLAIN
from kpt.ops.flash_attention.sdpa import scaled_dot_product_attention
from kpt.ops.linear_act.op import linear_act
from kpt.ops.replace.exchange import Within, exchanged
from kpt.ops.replace.linear import linear
from kpt.ops.replace.modules import activation_name, is_linear, is_watched

_ALL_PARTS = Within(torch, "backends.mha.get_fastpath_enabled", lambda: False)
"""torch, as it is where layers call their parts."""

_functional = exchanged(
    F.multi_head_attention_forward,
    {
        "scaled_dot_product_attention": scaled_dot_product_attention,
        "linear": linear,
        "_in_projection_packed": exchanged(vars(F)["_in_projection_packed"], {"linear": linear}),
    },
)
_attend = exchanged(
    nn.MultiheadAttention.forward, {"torch": _ALL_PARTS, "F": Within(F, "multi_head_attention_forward", _functional)}
)
_encode = exchanged(nn.TransformerEncoderLayer.forward, {"torch": _ALL_PARTS})


class KptMultiheadAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` through ``kpt.ops.scaled_dot_product_attention``, but where attention weights are asked for."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not need_weights and key_padding_mask is None and _is_simple(self, query, key, value, attn_mask, is_causal):
            return _attend_simply(self, query, key, value, is_causal), None
        run: Callable[..., tuple[torch.Tensor, torch.Tensor | None]] = _attend
        if need_weights or query.is_nested or key.is_nested or value.is_nested:
            _count("nn.MultiheadAttention: " + ("attention weights are asked for" if need_weights else "tensors are nested"))
            run = nn.MultiheadAttention.forward
        return run(self, query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)


def _is_simple(
    module: nn.MultiheadAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, is_causal: bool
) -> bool:
    """Whether attention is over batches of plain tensors that fit, and no mask counts: with ``is_causal`` one that is given is
    taken to be that (nn.MultiheadAttention). Weights that are parametrized would be made once more for the question."""
    weights = module._parameters.get("in_proj_weight"), module.out_proj._parameters.get("weight")
    width, batch = (module.embed_dim,), int(not module.batch_first)
    return (
        (mask is not None) == is_causal
        and appends_keys(module) is None
        and all(type(t) in PLAIN for t in (query, key, value, *weights))
        and not (query.is_nested or key.is_nested or value.is_nested)
        and query.ndim == key.ndim == 3
        and query.shape[2:] == key.shape[2:] == width
        and key.shape == value.shape
        and query.shape[batch] == key.shape[batch]
        and query.numel() > 0
        and key.numel() > 0
    )


def _attend_simply(
    module: nn.MultiheadAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_causal: bool
) -> torch.Tensor:
    """Each input goes through one product, with those parts of the weight that it is for, and stays as that leaves it."""
    groups: tuple[tuple[torch.Tensor, int], ...]
    if query is key:
        groups = ((query, 3),) if key is value else ((query, 2), (value, 1))
    else:
        groups = ((query, 1), (key, 2)) if key is value else ((query, 1), (key, 1), (value, 1))
    parts = [n * module.embed_dim for _, n in groups]
    weights, biases = ([p] * len(parts) if p is None or len(parts) == 1 else p.split(parts)
                       for p in (module.in_proj_weight, module.in_proj_bias))  # fmt: skip
    q, k, v = (
        part.transpose(1, 2) if module.batch_first else part.permute(1, 2, 0, 3)
        for (x, n), weight, bias in zip(groups, weights, biases, strict=True)
        for part in linear(x, weight, bias).reshape(*x.shape[:-1], n, module.num_heads, -1).unbind(2)
    )
    dropout = module.dropout if module.training else 0.0
    attended = scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=is_causal)
    rows = attended.transpose(1, 2) if module.batch_first else attended.permute(2, 0, 1, 3)
    return linear(rows.flatten(2), module.out_proj.weight, module.out_proj.bias)


class KptTransformerEncoderLayer(nn.TransformerEncoderLayer):
    """``nn.TransformerEncoderLayer`` that calls its parts in eval as well, the first linear layer and the activation as one
    ``kpt.ops.linear_act``."""

    def forward(
        self,
        src: torch.Tensor,
        src_mask: torch.Tensor | None = None,
        src_key_padding_mask: torch.Tensor | None = None,
        is_causal: bool = False,
    ) -> torch.Tensor:
        run: Callable[..., torch.Tensor] = _encode
        if src.is_nested:
            _count("nn.TransformerEncoderLayer: tensors are nested")
            run = nn.TransformerEncoderLayer.forward
        return run(self, src, src_mask, src_key_padding_mask, is_causal)

    def _ff_block(self, x: torch.Tensor) -> torch.Tensor:
        hidden = _hidden(self, x)
        return super()._ff_block(x) if hidden is None else self.dropout2(self.linear2(self.dropout(hidden)))


class KptTransformerDecoderLayer(nn.TransformerDecoderLayer):
    """``nn.TransformerDecoderLayer`` with its first linear layer and the activation as one ``kpt.ops.linear_act``."""

    def _ff_block(self, x: torch.Tensor) -> torch.Tensor:
        hidden = _hidden(self, x)
        return super()._ff_block(x) if hidden is None else self.dropout3(self.linear2(self.dropout(hidden)))


def appends_keys(module: nn.MultiheadAttention) -> str | None:
    """Why attention that appends keys of its own stays, or None."""
    for name, there in (("add_bias_kv", module.bias_k is not None), ("add_zero_attn", module.add_zero_attn)):
        if there:
            return f"it has {name}"
    return None


_NAMES: dict[Any, str] = {F.relu: "relu", torch.relu: "relu", F.gelu: "gelu", F.silu: "silu"}
"""How ``linear_act`` calls activations that are functions."""


def hidden_activation(layer: Any) -> str | None:
    """How ``linear_act`` calls the activation of a transformer layer, a module or a function; None for one that it has not."""
    activation = layer.activation
    return activation_name(activation) if isinstance(activation, nn.Module) else _NAMES.get(activation)


def _hidden(layer: Any, x: torch.Tensor) -> torch.Tensor | None:
    """What the first linear layer and the activation make of x; None where they are none that the op has, or watched."""
    name, first, activation = hidden_activation(layer), layer.linear1, layer.activation
    is_seen = isinstance(activation, nn.Module) and is_watched(activation)
    if name is None or not is_linear(first) or is_watched(first) or is_seen:
        return None
    return linear_act(x, first.weight, first.bias, activation=name)


def _count(reason: str) -> None:
    if not torch.compiler.is_compiling():
        DISPATCHERS["flash_attention"].count_outside(reason)
