"""Showing which activation of kpt's a text takes of what a linear layer gives.

The calls of both run as they are, on drawn rows, beside what they are to be rewritten to; the linear layer is stood for.
"""

import ast
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import nn

from kpt.ops.linear_act.reference import ACTIVATIONS
from kpt.ops.replace import lowered, operations, proof
from kpt.ops.replace.activation_proof import WIDTH, is_activation, nearest
from kpt.ops.replace.forms.stand_ins import Layer, Negated
from kpt.ops.replace.rewriting.pairs import ACTIVATED, GIVEN, Place


class Shown(NamedTuple):
    """``activation``: what ``linear_act`` calls it, or which comes nearest where there is a ``difference``; "" for what is no
    activation. ``widens``: the text may give float32 under autocast, where the op gives half precision. ``operations``: how
    many of PyTorch's the activation is."""

    activation: str
    difference: str | None = None
    widens: bool = False
    operations: int = 1


def activation_of(module: nn.Module, place: Place, function: FunctionType) -> Shown:
    """Which activation stands at a place of a module's forward."""
    pair = place.pair
    own, rewritten = (_runs(calls, function) for calls in (place.own, place.rewritten))

    def layer(training: bool) -> Layer:
        child = getattr(module, pair.attribute, None)
        twin = proof.twin(child, training) if isinstance(child, nn.Module) else child
        return Layer(module, {pair.linear: Negated(), pair.attribute: twin}, training)

    def trial(case: proof.Case, draw: proof.Draw) -> proof.Run:
        x, tried = draw(*case.rows, WIDTH, scale=case.x), layer(case.training)
        return proof.Run({f"what {pair.linear} gives": x}, lambda: own(tried, x))

    def claim(activation: str) -> tuple[proof.Trial, proof.Law]:
        return trial, partial(rewritten, layer(False), joined=partial(_joined, activation))

    if not is_activation(lambda x: own(layer(False), -x)):
        return Shown("")
    linear: Any = getattr(module, pair.linear)
    name, difference = nearest(claim, linear.weight.dtype, proof.device_of(linear))
    if difference is not None:
        return Shown(name, difference.what)
    return Shown(name, widens=lowered.widens(trial), operations=operations.count(trial))


def _runs(calls: ast.expr, function: FunctionType) -> Callable[..., Any]:
    """A function of self, of what the linear layer is given and of what is ``joined``, that makes the calls in a function."""
    code = compile(ast.fix_missing_locations(ast.Expression(deepcopy(calls))), "<linear and activation>", "eval")

    def run(layer: Layer, x: torch.Tensor, joined: Callable[..., Any] | None = None) -> Any:
        names = {name: joined for name in code.co_names if name.startswith(ACTIVATED)}
        return eval(code, function.__globals__ | names | {"self": layer, GIVEN: x})

    return run


def _joined(activation: str, linear: Any, own: Any, x: torch.Tensor, *beside: Any, **keywords: Any) -> torch.Tensor:
    """What ``linear_act`` computes, in float64."""
    return ACTIVATIONS[activation](linear(x))
