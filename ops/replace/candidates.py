"""What takes a module's place: by the table for PyTorch's own classes, by form and proof for all others."""

from collections.abc import Collection, Iterable
from itertools import chain
from typing import Any

from torch import nn

from kpt.ops.replace.forms import activated, calls, gated_mlp, head_and_loss, norm
from kpt.ops.replace.proof import attributes, told
from kpt.ops.replace.proven import Refused, Served, is_proven, proven_class
from kpt.ops.replace.rules import LINEARS, RULES, Rule

FORMS: tuple[Any, ...] = (norm, gated_mlp, activated, calls, head_and_loss)

class Candidates:
    """The answers for one model: modules of one class whose parameters and attributes are alike are looked at once."""

    def __init__(self, kinds: Collection[str]) -> None:
        self.kinds = kinds
        self._answers: dict[Any, Rule | Refused | None] = {}

    def of(self, module: nn.Module) -> Rule | Refused | None:
        """What a module is replaced by, why it is not, or None where it is replaced already or looks like nothing that is."""
        if replacement_of(module) is not None:
            return None
        rules = [rule for rule in RULES if isinstance(module, rule.original) and rule.applies(module)]
        for rule in rules:
            if type(module) is rule.original:
                if rule.kind not in self.kinds:
                    return None
                return rule if (reason := rule.why_not(module)) is None else Refused(rule.kind, reason)
        matches = ((form, matched) for form in FORMS if (matched := form.match(module)) is not None)
        for first in matches:
            key = key_of(module)
            if key not in self._answers:
                self._answers[key] = self._answer(module, chain((first,), matches))
            return self._answers[key]
        for rule in rules:
            if rule.kind in self.kinds:
                reason = f"{type(module).__name__} is a subclass of {rule.original.__name__} and may compute something else"
                return Refused(rule.kind, reason)
        return None

    def _answer(self, module: nn.Module, matches: Iterable[tuple[Any, Any]]) -> Rule | Refused | None:
        """By the first form that it was shown to have; why not by the first that it seems to have, where it has none."""
        refused = None
        for form, matched in matches:
            proven: Served | Refused | None = form.prove(module, matched, self.kinds)
            if proven is not None and not isinstance(proven, Refused):
                return Rule(proven.kind, type(module), proven_class(type(module), proven))
            refused = refused or proven
        return refused


def replacement_of(module: nn.Module) -> Rule | None:
    """How a module was replaced, also where its class was changed again afterwards; None where it was not."""
    for kind in type(module).__mro__:
        if is_proven(kind):
            return Rule(kind.served.kind, kind.original, kind)
        for rule in (*RULES, *LINEARS):
            if kind is rule.replacement:
                return rule
    return None


def key_of(module: nn.Module) -> Any:
    """The same for modules that are alike in all that a proof can depend on."""
    parameters = {name: (p.shape, p.dtype, p.device) for name, p in module._parameters.items() if p is not None}
    known = tuple([(name, told(value)) for name, value in attributes(module).items()])
    return type(module), tuple(parameters.items()), known, tuple([(name, key_of(m)) for name, m in module.named_children()])
