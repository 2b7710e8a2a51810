"""Plain linear layers, computed together with nothing else, of which kpt does a part more quickly."""

from collections.abc import Collection

from torch import nn

from kpt.ops.replace.candidates import replacement_of
from kpt.ops.replace.fused import fused_layers
from kpt.ops.replace.rules import LINEARS, Rule


class Linears:
    """The answers for one model, whose other replacements are made. ``kinds``: which are meant."""

    def __init__(self, kinds: Collection[str]) -> None:
        self._rules = [rule for rule in LINEARS if rule.kind in kinds]
        self._fused: set[int] = set()

    def of(self, module: nn.Module) -> Rule | None:
        """What a module is replaced by, or None. Asked of every module before its children."""
        if (rule := replacement_of(module)) is not None:
            self._fused.update(id(layer) for layer, _ in fused_layers(module, rule.served))
        elif id(module) not in self._fused:
            return next((r for r in self._rules if type(module) is r.original and r.applies(module)), None)
        return None
