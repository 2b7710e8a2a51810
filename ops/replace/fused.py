"""Linear layers that a replaced module calls no more: an op computes them together with the activation behind them."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from torch import nn

from kpt.ops.replace.forms.activated import Activated
from kpt.ops.replace.layers import Joined
from kpt.ops.replace.modules import activation_name
from kpt.ops.replace.transformer_layers import hidden_activation


def fused_layers(module: nn.Module, served: Any) -> Iterator[tuple[nn.Module, str]]:
    """Those of a module that is replaced or would be, and what ``linear_act`` calls the activation. ``served``: what serves a
    module of a form, or None."""
    match module, served:
        case _, Activated(first=(name, _), activation=activation):
            yield getattr(module, name), activation
        case _, Joined(pairs=pairs):
            yield from ((getattr(module, served.pair.linear), served.activation) for served in pairs)
        case nn.Sequential(), None:
            for layer, behind in pairwise(module.children()):
                if isinstance(layer, nn.Linear) and (found := activation_name(behind)) is not None:
                    yield layer, found
        case (nn.TransformerEncoderLayer() | nn.TransformerDecoderLayer()), None:
            if (hidden := hidden_activation(module)) is not None:
                yield module.linear1, hidden
