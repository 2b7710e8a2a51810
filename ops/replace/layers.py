"""Modules that add and then take the norm of the sum, or an activation of what a linear layer gives, by the text of their
forward: both become one op, where the norm is kpt's, and where the activation was shown to be one of kpt's."""

from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from torch import nn

from kpt.ops.replace import pair_proof, sum_proof
from kpt.ops.replace.after_linear import linear_and
from kpt.ops.replace.after_sum import after_sum, sum_and_norm
from kpt.ops.replace.candidates import key_of, replacement_of
from kpt.ops.replace.forms import norm as norms
from kpt.ops.replace.forms.stand_ins import as_it_is
from kpt.ops.replace.modules import LINEAR, is_linear
from kpt.ops.replace.proven import Refused, proven_class
from kpt.ops.replace.rewriting.pairs import ACTIVATED, Pair, Place, join_pairs
from kpt.ops.replace.rewriting.sums import JOINED, Sum, join_sums
from kpt.ops.replace.rewriting.text import Text, text_of
from kpt.ops.replace.rules import PAIRS, SUMS, Rule

WhyNot = Callable[[nn.Module, str, Any], str | None]
"""Of a module, a kind, and what would serve it: why it is better left as it is, or None."""


@dataclass(frozen=True, slots=True)
class Served:
    """An activation behind a linear layer: what ``linear_act`` calls it, and the child that it is, as it is, or the
    function, where it is an attribute of self. ``widens``, ``operations``: as ``pair_proof.Shown`` has them."""

    pair: Pair
    activation: str
    known: Any
    widens: bool
    operations: int


@dataclass(frozen=True, slots=True)
class Joined:
    """A forward in which sums are joined with the norms of them that have these names, and linear layers with activations.
    ``ops``: what becomes of both."""

    norms: tuple[str, ...]
    pairs: tuple[Served, ...]
    ops: tuple[str, ...] = ()
    live = None

    @property
    def kind(self) -> str:
        return ", ".join([SUMS] * bool(self.norms) + [PAIRS] * bool(self.pairs))

    def forward(self, original: type[nn.Module]) -> Callable[..., Any]:
        text = text_of(original.forward)
        if text is None:
            return original.forward
        self.join(text)
        names: dict[str, Callable[..., Any]] = {JOINED: sum_and_norm}
        for number, served in enumerate(self.pairs):
            known = served.known if served.pair.attribute else _looked_up(served.pair.activation, text.function)
            names[f"{ACTIVATED}{number}"] = linear_and(served.activation, known, served.widens)
        return text.made(names)

    def join(self, text: Text) -> list[Sum]:
        """Rewrite a text of the forward; gives its sums."""
        numbers = {served.pair: number for number, served in enumerate(self.pairs)}
        join_pairs(text, numbers.get)
        return join_sums(text.tree.body, self.norms)


class Layers:
    """The answers for one model: modules of one class whose norms, linear layers and activations are alike are looked at once.

    ``kinds``: which are meant. ``why_not``: asked of each linear layer that has an activation behind it.
    """

    def __init__(self, kinds: Collection[str], why_not: WhyNot) -> None:
        self.kinds, self.why_not = kinds, why_not
        self._places: dict[Any, list[Place]] = {}
        self._answers: dict[Any, Rule | Refused | None] = {}

    def of(self, module: nn.Module) -> Rule | Refused | None:
        """What a module is replaced by, why it is not, or None where it is replaced already or does neither."""
        if replacement_of(module) is not None:
            return None
        children = {name: child for name, child in module.named_children() if SUMS in self.kinds and _is_norm(child)}
        places = self._places_of(module) if PAIRS in self.kinds else []
        if not children and not places:
            return None
        parts = [*children, *[name for place in places for name in (place.pair.linear, place.pair.attribute) if name]]
        key = type(module), tuple([(name, _told(getattr(module, name, None))) for name in parts])
        if key not in self._answers:
            self._answers[key] = self._answer(module, children, places)
        return self._answers[key]

    def _places_of(self, module: nn.Module) -> list[Place]:
        """Where a module's text may have pairs, once each."""
        key = type(module), tuple([(name, type(child)) for name, child in module.named_children()])
        if not any(kind in LINEAR for _, kind in key[1]):
            return []
        if key not in self._places:
            text = text_of(type(module).forward)
            found = [] if text is None else join_pairs(text, lambda pair: 0 if _has(module, pair) else None)
            self._places[key] = list({place.pair: place for place in found}.values())
        return self._places[key]

    def _answer(self, module: nn.Module, children: Mapping[str, nn.Module], places: list[Place]) -> Rule | Refused | None:
        kind = type(module)
        text = text_of(kind.forward)
        if text is None:
            return None
        pairs, left = self._pairs(module, places, text.function)
        names, reason = _sums(module, children, pairs, text)
        left += [Refused(SUMS, reason)] if reason else []
        if names or pairs:
            sums = {f"add_{rule.kind}": None for name in names if (rule := replacement_of(children[name])) is not None}
            joined = Joined(names, pairs, (*sums, *["linear_act"] * bool(pairs)))
            return Rule(joined.kind, kind, proven_class(kind, joined), unserved=tuple([refused.reason for refused in left]))
        return Refused(left[0].kind, "; ".join([refused.reason for refused in left])) if left else None

    def _pairs(
        self, module: nn.Module, places: list[Place], function: FunctionType
    ) -> tuple[tuple[Served, ...], list[Refused]]:
        """The pairs that are joined, and why others are not."""
        served, left = [], []
        for place in places:
            pair, linear = place.pair, getattr(module, place.pair.linear)
            shown = pair_proof.activation_of(module, place, function)
            if shown.difference is not None:
                what = f"{pair.activation} of {pair.linear}"
                left.append(f"{what} is no activation of kpt's; with {shown.activation}, {shown.difference}")
            elif shown.activation:
                found = Served(pair, shown.activation, _known(module, pair), shown.widens, shown.operations)
                reason = self.why_not(linear, "linear_act", found)
                if reason is None:
                    served.append(found)
                else:
                    left.append(f"{pair.activation} of {pair.linear}: {reason}")
        return tuple(served), [Refused(PAIRS, reason) for reason in left]


def _sums(
    module: nn.Module, children: Mapping[str, nn.Module], pairs: tuple[Served, ...], text: Text
) -> tuple[tuple[str, ...], str | None]:
    """The norms that are joined with the sums before them, or why none is where there are some."""
    every = [found.norm for found in Joined(tuple(children), pairs).join(deepcopy(text))]
    if not every:
        return (), None
    served = tuple([name for name, child in children.items() if after_sum(child) is not None])
    found = Joined(served, pairs).join(text)
    if not found:
        return (), f"it adds before {', '.join(dict.fromkeys(every))}, of which kpt serves none"
    for each in found:
        if (difference := sum_proof.difference(module, children[each.norm], each, text.function)) is not None:
            return (), f"the sum before {each.norm} could not be shown to stay the same: {difference}"
    return tuple(dict.fromkeys([each.norm for each in found])), None


def _is_norm(child: nn.Module) -> bool:
    return after_sum(child) is not None or isinstance(child, (nn.LayerNorm, nn.RMSNorm)) or norms.match(child) is not None


def _has(module: nn.Module, pair: Pair) -> bool:
    """Whether a module has a linear layer of that name, and what is called behind it may be an activation: a child without
    parameters, a function that it keeps, or one that the text looks up."""
    if not is_linear(module._modules.get(pair.linear)):
        return False
    child = module._modules.get(pair.attribute)
    if child is not None:
        return not any(True for _ in child.parameters())
    return not pair.attribute or pair.attribute in vars(module)


def _known(module: nn.Module, pair: Pair) -> Any:
    """What an activation that is an attribute of self is known by at a call: a child as it is, or a function; None for
    others."""
    own = getattr(module, pair.attribute, None)
    return as_it_is(own) if isinstance(own, nn.Module) else own


def _told(part: Any) -> Any:
    return (key_of(part), part.training) if isinstance(part, nn.Module) else id(part)


def _looked_up(path: str, function: FunctionType) -> Any:
    """What a name with dots between means in a function; None where it is gone."""
    first, *others = path.split(".")
    found = function.__globals__.get(first)
    for name in others:
        found = getattr(found, name, None)
    return found
