"""The form of a linear layer whose output goes to one activation, and from there from child to child: most MLPs without a gate.

``c_proj(act(c_fc(x)))`` of GPT-2, ``act(dense(x))`` of BERT, ``fc2(dropout(act(fc1(x))))`` of vision transformers. The
activation is a child, or a function that the code calls. The first layer and the activation become one
``kpt.ops.linear_act``; what comes behind is called as it was.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from kpt.ops.eager import is_autocasting
from kpt.ops.linear_act.op import linear_act
from kpt.ops.linear_act.reference import ACTIVATIONS
from kpt.ops.replace import lowered, operations, proof
from kpt.ops.replace.activation_proof import WIDTH, nearest
from kpt.ops.replace.forms.classes import inputs, is_pytorchs, taking, why_not
from kpt.ops.replace.forms.stand_ins import Child, Children, Given, Negated, Noted, are_as_proven, as_it_is
from kpt.ops.replace.modules import LINEAR
from kpt.ops.replace.proven import Refused, Served, runs_its_own

IDLE = (nn.Dropout, nn.Identity)
"""Behind a layer, no activation."""


@dataclass(frozen=True, slots=True)
class Activated:
    """What a module calls its parts. ``between``: the child that is the activation, if one is. ``after``: the children that are
    called one after the other behind it. Children stand as they are where they are not called any more. ``widens``: its
    own code may give float32 under autocast, where the op gives half precision. ``operations``: how many of PyTorch's the
    activation is."""

    input: str
    first: tuple[str, Child]
    between: Children
    after: tuple[str, ...]
    activation: str = ""
    widens: bool = False
    operations: int = 1
    kind = "linear_act"
    live = ()

    def law(self) -> proof.Law:
        made, sign = ACTIVATIONS[self.activation], -1 if self.after else 1
        return lambda y: sign * made(y)

    def forward(self, original: type[nn.Module]) -> Callable[..., torch.Tensor]:
        activation, gone, after, first = self.activation, (self.first, *self.between), self.after, self.first[0]
        widens, transposed = self.widens, self.first[1].kind not in LINEAR

        def is_unlike(self: Any) -> bool:
            return runs_its_own(self) or not are_as_proven(self, gone) or (widens and is_autocasting())

        def forward(self: Any, x: torch.Tensor) -> Any:
            if is_unlike(self):
                return original.forward(self, x)
            layer = getattr(self, first)
            y = linear_act(x, layer.weight.mT if transposed else layer.weight, layer.bias, activation=activation)
            for name in after:
                y = getattr(self, name)(y)
            return y

        return taking(self.input, forward)


def match(module: nn.Module) -> Activated | None:
    """What a module of this form may call its parts; None for one of another."""
    layers = [name for name, child in module.named_children() if _is_linear(type(child))]
    if (
        not 1 <= len(layers) <= 2
        or any(True for _ in module.parameters(recurse=False))
        or any(True for _ in module.buffers())
        or any(True for name, child in module.named_children() if name not in layers for _ in child.parameters())
        or is_pytorchs(module)
        or len(inputs(module)) != 1
    ):
        return None
    found = _calls(module, training=False)
    if found is None or found != _calls(module, training=True):
        return None
    (first, *others), at_once = found
    if first not in layers or (at_once and (not others or others[0] in layers or isinstance(getattr(module, others[0]), IDLE))):
        return None
    layer = first, Child(type(getattr(module, first)))
    between = tuple([(name, as_it_is(getattr(module, name))) for name in others[: int(at_once)]])
    return Activated(inputs(module)[0], layer, between, tuple(others[len(between) :]))


def _calls(module: nn.Module, training: bool) -> tuple[list[str], bool] | None:
    """The children that a forward calls, each with what the one before gave, but that something may happen behind the first;
    and whether nothing does. None where it is otherwise."""
    calls: list[tuple[str, Any, torch.Tensor]] = []
    subject = proof.twin(module, training, children={name: Noted(name, calls) for name, _ in module.named_children()})
    x = torch.zeros(2, 3, WIDTH, device="cpu")
    try:
        with torch.random.fork_rng([]), torch.no_grad():
            result = type(module).forward(subject, x)
    except Exception:  # whatever a stranger's code raises
        return None
    if not calls:
        return None
    given, made = [given for _, given, _ in calls] + [result], [x] + [y for _, _, y in calls]
    same = [a is b for a, b in zip(given, made, strict=True)]
    return ([name for name, _, _ in calls], same[1]) if same[0] and all(same[2:]) else None


def prove(module: nn.Module, parts: Activated, kinds: Collection[str]) -> Served | Refused | None:
    """What serves a module of this form, or what comes nearest and differs; None where its kind is not meant."""
    if Activated.kind not in kinds:
        return None
    if (reason := why_not(module)) is not None:
        return Refused(Activated.kind, reason)

    def claim(activation: str) -> tuple[proof.Trial, proof.Law]:
        claimed = replace(parts, activation=activation)
        return _trial(module, claimed), claimed.law()

    activation, difference = nearest(claim, next(module.parameters()).dtype, proof.device_of(module))
    if difference is None:
        narrowed = any(_is_linear(type(getattr(module, name))) for name in parts.after)  # whatever it is given
        trial, _ = claim(activation)
        widens = not narrowed and lowered.widens(trial)
        return replace(parts, activation=activation, widens=widens, operations=operations.count(trial))
    reason = f"{type(module).__name__} has no activation of kpt's; with {activation}, {difference.what}"
    return Refused(Activated.kind, reason)


def _trial(module: nn.Module, claim: Activated) -> proof.Trial:
    def trial(case: proof.Case, draw: proof.Draw) -> proof.Run:
        x, y = draw(*case.rows, 8), draw(*case.rows, WIDTH, scale=case.x)
        behind = {name: nn.Identity() if number else Negated() for number, name in enumerate(claim.after)}
        subject = proof.twin(module, case.training, children={claim.first[0]: Given(x, y), **behind})
        return proof.Run({"what the first layer gives": y}, lambda: proof.called(subject, x))

    return trial


def _is_linear(kind: type) -> bool:
    return kind in LINEAR or (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")
