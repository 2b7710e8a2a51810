"""Showing that a sum and its norm stay the same where a text is rewritten.

What stands from the sum to the norm runs on drawn rows, as it is and as it was rewritten. Whatever else is called there is
stood for by another function.
"""

import ast
import builtins
import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import nn

from kpt.ops.replace import proof
from kpt.ops.replace.candidates import replacement_of
from kpt.ops.replace.forms import norm as norms
from kpt.ops.replace.forms.stand_ins import Layer
from kpt.ops.replace.proven import is_proven
from kpt.ops.replace.rewriting.pairs import ACTIVATED
from kpt.ops.replace.rewriting.sums import JOINED, NORMED, Sum

CASES = tuple([
    proof.Case(dtype, 1.0, 1.0, gradients=True, training=training)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for training in (False, True)
])  # fmt: skip
"""At one scale: the norm was proven before, and a text that is rewritten wrongly differs at any."""


def difference(module: nn.Module, norm: nn.Module, found: Sum, function: FunctionType) -> str | None:
    """How a sum of a module's forward differs where it was rewritten, or None."""
    trial = _Trial(module, norm, found, function)
    differs = proof.difference(trial, trial.law, CASES, proof.device_of(norm))
    return None if differs is None else differs.what


class _Trial:
    """The text of a sum and its norm, as it is (called) and as it was rewritten (``law``)."""

    def __init__(self, module: nn.Module, norm: nn.Module, found: Sum, function: FunctionType) -> None:
        self.module, self.norm, self.found = module, norm, found
        self.asked: dict[Any, Any] = dict(found.asked)
        names = {n.id for s in found.own for n in ast.walk(s) if isinstance(n, ast.Name)}
        read = {name for name in names if name in function.__code__.co_varnames or name.startswith(NORMED)}
        if (keywords := inspect.getfullargspec(function).varkw) in read:
            self.asked[keywords] = {}
        self.given = sorted(read - {"self", *self.asked})
        self.own, self.rewritten = (_runs(s, self.given, self.asked, function) for s in (found.own, found.rewritten))
        self.parameters = {name: p for name, p in norm._parameters.items() if p is not None}

    def __call__(self, case: proof.Case, draw: proof.Draw) -> proof.Run:
        parameters = {name: nn.Parameter(draw(*p.shape, scale=case.parameters)) for name, p in self.parameters.items()}
        width = next((tuple(p.shape) for p in parameters.values()), getattr(self.norm, "normalized_shape", (norms.WIDTHS[0],)))
        drawn = [draw(*case.rows, *width, scale=case.x) + 0.5 * case.x for _ in self.given]
        norm: Any = proof.twin(self.norm, case.training, parameters)
        norm.__class__ = self._original()
        layer = Layer(self.module, {self.found.norm: norm}, case.training)
        given = dict(zip(self.given, drawn, strict=True))
        return proof.Run(
            given | {f"{self.found.norm}.{name}": p for name, p in parameters.items()},
            lambda: _seen(self.own(layer, *drawn, **self.asked)),
        )

    def law(self, *exact: torch.Tensor) -> torch.Tensor:
        drawn, parameters = exact[: len(self.given)], exact[len(self.given) :]
        kind = type(self.norm)
        if is_proven(kind):
            assert isinstance(kind.served, (norms.LayerNorm, norms.RMSNorm))
            law = kind.served.law(kind.served.norm.eps_of(self.norm))
            norm: Callable[..., Any] = partial(_by_law, law, parameters)
        else:
            named = dict(zip(self.parameters, parameters, strict=True))
            norm = partial(self._original().forward, proof.twin(self.norm, False, named))
        layer = Layer(self.module, {self.found.norm: norm}, False)
        return _seen(self.rewritten(layer, *drawn, **self.asked))

    def _original(self) -> type[nn.Module]:
        replaced = replacement_of(self.norm)
        assert replaced is not None
        return replaced.original


def _by_law(law: proof.Law, parameters: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return law(x, *parameters)


def _runs(
    statements: Sequence[ast.stmt], given: Sequence[str], asked: Mapping[str, Any], function: FunctionType
) -> Callable[..., Any]:
    """A function of self and what statements read that runs them, and gives all names that they left."""
    body: list[Any] = [_run_through(deepcopy(s)) for s in statements]
    (code,) = ast.parse(f"def run(self, {', '.join([*given, *asked])}):\n    return locals()").body
    assert isinstance(code, ast.FunctionDef)
    code.body[:0] = body
    names = {node.id for statement in body for node in ast.walk(statement) if isinstance(node, ast.Name)}
    joined = {JOINED: _apart} | {name: _in_turn for name in names if name.startswith(ACTIVATED)}
    scope = vars(builtins) | function.__globals__ | joined
    exec(compile(ast.fix_missing_locations(ast.Module([code], [])), "<sum and norm>", "exec", dont_inherit=True), scope)
    run: Callable[..., Any] = scope["run"]
    return run


def _apart(norm: Callable[..., Any], x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, Any]:
    return x + residual, norm(x + residual)


def _in_turn(linear: Callable[..., Any], activation: Callable[..., Any], x: Any, *beside: Any, **keywords: Any) -> Any:
    return activation(linear(x), *beside, **keywords)


def _run_through(statement: ast.stmt) -> ast.stmt:
    """What does not leave: a result gets a name, and what is not to be entered is empty."""
    if isinstance(statement, ast.Return):
        result = ast.Assign([ast.Name("result", ast.Store())], statement.value or ast.Constant(None))
        return ast.copy_location(result, statement)
    if isinstance(statement, ast.If):
        statement.body = [ast.copy_location(ast.Pass(), statement)]
    return statement


def _seen(names: Mapping[str, Any]) -> torch.Tensor:
    """All tensors that a text left under names of its own, as one."""
    found = [value for name, value in names.items() if isinstance(value, torch.Tensor) and not name.startswith("_kpt")]
    return torch.cat([t.reshape(-1, t.shape[-1]) for t in found])
