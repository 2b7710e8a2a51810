"""Linear layers whose biases get their gradients from kpt's sums of columns: all plain ones that are called."""

from collections.abc import Collection

from torch import nn

from kpt.ops.replace.candidates import replacement_of
from kpt.ops.replace.fused import fused_layers
from kpt.ops.replace.rules import BIASES, Rule


class Biases:
    """The answers for one model, whose other replacements are made. ``kinds``: which are meant."""

    def __init__(self, kinds: Collection[str]) -> None:
        self.is_meant = BIASES.kind in kinds
        self._fused: set[int] = set()

    def of(self, module: nn.Module) -> Rule | None:
        """What a module is replaced by, or None. Asked of every module before its children."""
        if (rule := replacement_of(module)) is not None:
            self._fused.update(id(layer) for layer, _ in fused_layers(module, rule.served))
        elif self.is_meant and type(module) is BIASES.original and id(module) not in self._fused:
            return BIASES if module.bias is not None and module.bias.requires_grad else None
        return None
