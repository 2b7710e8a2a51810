"""The table of which classes of PyTorch's are replaced by what. A new one is a class in ``modules.py`` and a row here."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from kpt.ops.replace.modules import KptLayerNorm, KptRMSNorm, KptSequential, activation_name


@dataclass(frozen=True, slots=True)
class Rule:
    """Modules of exactly the class ``original`` become ``replacement`` where ``applies`` to them."""

    kind: str
    original: type[nn.Module]
    replacement: type[nn.Module]
    applies: Callable[[nn.Module], bool] = lambda _: True


def has_pair(module: nn.Module) -> bool:
    """Some linear layer is followed by an activation that can be fused into it."""
    pairs = pairwise(module.children())
    return any(isinstance(a, nn.Linear) and activation_name(b) is not None for a, b in pairs)


RULES = (
    Rule("layer_norm", nn.LayerNorm, KptLayerNorm),
    Rule("rms_norm", nn.RMSNorm, KptRMSNorm),
    Rule("linear_act", nn.Sequential, KptSequential, applies=has_pair),
)

ATTENTION = "attention"
"""The kind that is no module class: the attention function of Transformers models."""

PLACE = "_kpt_place"
"""The attribute of a module of a model whose attention is replaced that says where it stands."""

SUMS = "add_norm"
"""The kind of layers whose sums are joined with the norms of them."""

KINDS = (*(rule.kind for rule in RULES), "gated_act", "rotary", ATTENTION)
"""What is replaced unasked."""

ASKED_FOR = (SUMS,)
"""What is replaced where it is named."""
