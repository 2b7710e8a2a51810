"""The form of a gated MLP: linear layers for gate and up, each of its own or joined in one, and for down, around an activation.

``down(activation(gate(x)) * up(x))``; what lies between the products becomes one ``kpt.ops.gated_act``, which is not kept for
the backward where a model's logits are not either. The layers stay modules and are called as such, so that hooks, adapters,
quantised and sharded layers hold.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import torch
from torch import nn

from kpt.ops.gated_act import reference
from kpt.ops.gated_act.op import gated_act
from kpt.ops.linear_act.reference import ACTIVATIONS
from kpt.ops.replace import proof
from kpt.ops.replace.anew import fed_anew
from kpt.ops.replace.forms import head_and_loss
from kpt.ops.replace.forms.classes import inputs, is_pytorchs, taking, why_not
from kpt.ops.replace.forms.stand_ins import Children, Given, Negated, are_as_proven, as_it_is
from kpt.ops.replace.proven import Refused, Served, runs_its_own

WIDTH = 24
"""Of what is drawn for the outputs of gate and up."""


@dataclass(frozen=True, slots=True)
class GatedMLP:
    """What a module calls its parts. ``products``: the linear layers whose outputs are the gate and what it is multiplied with,
    or the one that has both, which of them first by ``gate_first``. ``others``: its children that are no linear layers, as
    they are."""

    input: str
    products: tuple[str, ...]
    down: str
    others: Children
    gate_first: bool = True
    activation: str = ""
    anew: bool = False
    kind = "gated_act"
    live = ()

    def law(self) -> proof.Law:
        def law(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            gate, up = (first, second) if self.gate_first else (second, first)
            return -reference.gated_act(gate, up, self.activation)

        return law

    def forward(self, original: type[nn.Module]) -> Callable[..., torch.Tensor]:
        activation, others, down, gate_first = self.activation, self.others, self.down, self.gate_first
        fed = fed_anew if self.anew else _fed
        (first, *second) = self.products

        def apart(self: Any, x: torch.Tensor) -> Any:
            if not runs_its_own(self) and are_as_proven(self, others):
                gate, up = getattr(self, first)(x), getattr(self, second[0])(x)
                if gate.dtype is up.dtype:
                    return fed(getattr(self, down), gate, up, activation)
            return original.forward(self, x)

        def joined(self: Any, x: torch.Tensor) -> Any:
            if runs_its_own(self) or not are_as_proven(self, others):
                return original.forward(self, x)
            left, right = getattr(self, first)(x).chunk(2, -1)
            gate, up = (left, right) if gate_first else (right, left)
            return fed(getattr(self, down), gate, up, activation)

        return taking(self.input, apart if second else joined)


def _fed(layer: Callable[..., Any], gate: torch.Tensor, up: torch.Tensor, activation: str) -> Any:
    return layer(gated_act(gate, up, activation))


def match(module: nn.Module) -> tuple[GatedMLP, ...] | None:
    """What a module of this form may call its parts, in each way that its layers' sizes allow; None for one of another."""
    layers = {name: child for name, child in module.named_children() if isinstance(child, nn.Linear)}
    others = {name: child for name, child in module.named_children() if name not in layers}
    if (
        len(layers) not in (2, 3)
        or any(True for _ in module.parameters(recurse=False))
        or any(True for _ in module.buffers())
        or any(True for other in others.values() for _ in other.parameters())
        or is_pytorchs(module)
        or len(inputs(module)) != 1
    ):
        return None
    known = tuple([(name, as_it_is(child)) for name, child in others.items()])
    return tuple([GatedMLP(inputs(module)[0], products, down, known) for products, down in _ways(layers)]) or None


def _ways(layers: dict[str, nn.Linear]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The gate and what it is multiplied with, or the layer that has both; and down."""
    for *products, down in permutations(layers):
        made = [layers[name].out_features for name in products]
        if sum(made) == layers[down].in_features * 2 and len(set(made)) == 1:
            yield tuple(products), down


def prove(module: nn.Module, ways: tuple[GatedMLP, ...], kinds: Collection[str]) -> Served | Refused | None:
    """What serves a module of this form, or what comes nearest and differs; None where its kind is not meant."""
    if GatedMLP.kind not in kinds:
        return None
    if (reason := why_not(module)) is not None:
        return Refused(GatedMLP.kind, reason)
    tests = tuple(proof.cases(next(module.parameters()).dtype))
    nearest, passed = "", -1
    for way in _claims(ways, anew=head_and_loss.KIND in kinds):
        difference = proof.difference(_trial(module, way), way.law(), tests, proof.device_of(module))
        if difference is None:
            return way
        if difference.passed > passed:
            name, passed = type(module).__name__, difference.passed
            nearest = f"{name} is gated by no activation of kpt's; with {way.activation}, {difference.what}"
    return Refused(GatedMLP.kind, nearest)


def _claims(ways: tuple[GatedMLP, ...], anew: bool) -> Iterator[GatedMLP]:
    for way in ways:
        for activation in ACTIVATIONS:
            for gate_first in (True, False) if len(way.products) == 1 else (True,):
                yield replace(way, activation=activation, gate_first=gate_first, anew=anew)


def _trial(module: nn.Module, way: GatedMLP) -> proof.Trial:
    def trial(case: proof.Case, draw: proof.Draw) -> proof.Run:
        x = draw(*case.rows, 8)
        first, second = draw(*case.rows, WIDTH, scale=case.x), draw(*case.rows, WIDTH, scale=case.parameters)

        def forward() -> Any:
            drawn = [first, second] if len(way.products) == 2 else [torch.cat([first, second], -1)]
            layers = {name: Given(x, y) for name, y in zip(way.products, drawn, strict=True)}
            subject = proof.twin(module, case.training, children={**layers, way.down: Negated()})
            return proof.called(subject, x)

        return proof.Run({"gate or up": first, "up or gate": second}, forward)

    return trial
