"""The table of which classes of PyTorch's are replaced by what. A new one is a class in ``modules.py`` and a row here."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from kpt.ops.linear_act.alignment import may_be_slow
from kpt.ops.replace.modules import (
    KptCrossEntropyLoss,
    KptLayerNorm,
    KptLinear,
    KptRMSNorm,
    KptSequential,
    KptUnalignedLinear,
    activation_name,
)
from kpt.ops.replace.transformer_layers import (
    KptMultiheadAttention,
    KptTransformerDecoderLayer,
    KptTransformerEncoderLayer,
    appends_keys,
)


@dataclass(frozen=True, slots=True)
class Rule:
    """Modules of exactly the class ``original`` become ``replacement`` where ``applies`` to them, and ``why_not`` knows nothing
    against one. ``unserved``: what of them stays PyTorch's."""

    kind: str
    original: type[nn.Module]
    replacement: type[nn.Module]
    applies: Callable[[nn.Module], bool] = lambda _: True
    why_not: Callable[[Any], str | None] = lambda _: None
    unserved: tuple[str, ...] = ()

    @property
    def served(self) -> Any:
        """What serves modules of a form, by its own record; None for PyTorch's classes."""
        return vars(self.replacement).get("served")

    @property
    def ops(self) -> tuple[str, ...]:
        """Those that serve such modules, where the kind does not say which."""
        found: tuple[str, ...] = getattr(self.served, "ops", ())
        return found


def has_pair(module: nn.Module) -> bool:
    """Some linear layer is followed by an activation that can be fused into it."""
    pairs = pairwise(module.children())
    return any(isinstance(a, nn.Linear) and activation_name(b) is not None for a, b in pairs)


def weighs_classes(module: nn.CrossEntropyLoss) -> str | None:
    """Why a loss with weights of classes stays, or None."""
    return None if module.weight is None else "its classes have weights"


def has_unaligned_rows(module: Any) -> bool:
    """Whether a linear layer's product may be slow in half precision for how rows begin."""
    return may_be_slow(module.out_features, module.in_features)


def trains_bias(module: Any) -> bool:
    """Whether a linear layer has a bias that trains."""
    return module.bias is not None and bool(module.bias.requires_grad)


RULES = (
    Rule("layer_norm", nn.LayerNorm, KptLayerNorm),
    Rule("rms_norm", nn.RMSNorm, KptRMSNorm),
    Rule("linear_act", nn.Sequential, KptSequential, applies=has_pair),
    Rule(
        "scaled_dot_product_attention", nn.MultiheadAttention, KptMultiheadAttention, why_not=appends_keys,
        unserved=("calls that ask for attention weights, as they do if not told need_weights=False",),
    ),
    Rule(
        "linear_act", nn.TransformerEncoderLayer, KptTransformerEncoderLayer,
        unserved=("nested tensors: nn.TransformerEncoder makes them of padding in eval, by enable_nested_tensor",),
    ),
    Rule("linear_act", nn.TransformerDecoderLayer, KptTransformerDecoderLayer),
    Rule("cross_entropy", nn.CrossEntropyLoss, KptCrossEntropyLoss, why_not=weighs_classes),
)

LINEARS = (
    Rule(
        "unaligned_linear", nn.Linear, KptUnalignedLinear, applies=has_unaligned_rows,
        unserved=("products in float32, and short ones",),
    ),
    Rule("bias_gradient", nn.Linear, KptLinear, applies=trains_bias),
)
"""Of layers that no op computes together with what is behind them; the first that applies."""

ATTENTION = "attention"
"""The kind that is no module class: the attention function of Transformers models."""

PLACE = "_kpt_place"
"""The attribute of a module of a model whose attention is replaced that says where it stands."""

CHANGED = "_kpt_changed"
"""The attribute of a module that was shown to compute what an op does, and some other attribute of which is no more what it
was: its own code serves it."""

SUMS = "add_norm"
"""The kind of layers whose sums are joined with the norms of them."""

KINDS = (*dict.fromkeys(rule.kind for rule in RULES), "gated_act", "rotary", ATTENTION)
"""What is replaced unasked."""

PAIRS = "inner_linear_act"
"""The kind of modules that take an activation of what a linear layer gives somewhere in their forward."""

ASKED_FOR = (*(rule.kind for rule in LINEARS), SUMS, PAIRS)
"""What is replaced where it is named."""
