"""Layers that add and then take the norm of the sum, by the text of their forward: both become one op where the norm is kpt's.

A layer is proven by running, on drawn rows, what stands from each sum to its norm, as it is and as it was rewritten. Whatever
else is called there is stood for by another function.
"""

import ast
import builtins
import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import nn

from kpt.ops.replace import proof
from kpt.ops.replace.after_sum import after_sum, sum_and_norm
from kpt.ops.replace.candidates import key_of, replacement_of
from kpt.ops.replace.forms import norm as norms
from kpt.ops.replace.proven import Refused, is_proven, proven_class
from kpt.ops.replace.rewriting import JOINED, NORMED, Site, rewritten
from kpt.ops.replace.rules import SUMS, Rule

CASES = tuple([
    proof.Case(dtype, 1.0, 1.0, gradients=True, training=training)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for training in (False, True)
])  # fmt: skip
"""At one scale: the norm was proven before, and a text that is rewritten wrongly differs at any."""


@dataclass(frozen=True, slots=True)
class SumsAndNorms:
    """A forward in which sums are joined with the norms of them that have these names."""

    norms: tuple[str, ...]
    kind = SUMS

    def forward(self, original: type[nn.Module]) -> Callable[..., Any]:
        found = rewritten(original.forward, self.norms)
        return original.forward if found is None else found.make(sum_and_norm)


class Layers:
    """The answers for one model: layers of one class with norms that are alike are looked at once."""

    def __init__(self) -> None:
        self._answers: dict[Any, Rule | Refused | None] = {}

    def of(self, module: nn.Module) -> Rule | Refused | None:
        """What a layer is replaced by, why it is not, or None where it is replaced already or takes no norm of a sum."""
        if replacement_of(module) is not None:
            return None
        children = {name: child for name, child in module.named_children() if _is_norm(child)}
        if not children:
            return None
        key = type(module), tuple([(name, key_of(child)) for name, child in children.items()])
        if key not in self._answers:
            self._answers[key] = _answer(module, children)
        return self._answers[key]


def _is_norm(child: nn.Module) -> bool:
    return after_sum(child) is not None or isinstance(child, nn.LayerNorm | nn.RMSNorm) or norms.match(child) is not None


def _answer(module: nn.Module, children: Mapping[str, nn.Module]) -> Rule | Refused | None:
    kind = type(module)
    every = rewritten(kind.forward, children)
    if every is None:
        return None
    served = tuple([name for name, child in children.items() if after_sum(child) is not None])
    found = rewritten(kind.forward, served)
    if found is None:
        names = dict.fromkeys(site.norm for site in every.sites)
        return Refused(SUMS, f"it adds before {', '.join(names)}, of which kpt serves none")
    for site in found.sites:
        child = children[site.norm]
        trial = _Trial(module, child, site, found.function)
        if (difference := proof.difference(trial, trial.law, CASES, proof.device_of(child))) is not None:
            return Refused(SUMS, f"the sum before {site.norm} could not be shown to stay the same: {difference.what}")
    return Rule(SUMS, kind, proven_class(kind, SumsAndNorms(tuple(dict.fromkeys(site.norm for site in found.sites)))))


class _Trial:
    """The text of a site, as it is (called) and as it was rewritten (``law``)."""

    def __init__(self, module: nn.Module, norm: nn.Module, site: Site, function: FunctionType) -> None:
        self.module, self.norm, self.site = module, norm, site
        self.asked: dict[Any, Any] = dict(site.asked)
        names = {n.id for s in site.own for n in ast.walk(s) if isinstance(n, ast.Name)}
        read = {name for name in names if name in function.__code__.co_varnames or name.startswith(NORMED)}
        if (keywords := inspect.getfullargspec(function).varkw) in read:
            self.asked[keywords] = {}
        self.given = sorted(read - {"self", *self.asked})
        self.own, self.rewritten = (_runs(s, self.given, self.asked, function) for s in (site.own, site.rewritten))
        self.parameters = {name: p for name, p in norm._parameters.items() if p is not None}

    def __call__(self, case: proof.Case, draw: proof.Draw) -> proof.Run:
        parameters = {name: nn.Parameter(draw(*p.shape, scale=case.parameters)) for name, p in self.parameters.items()}
        width = next((tuple(p.shape) for p in parameters.values()), getattr(self.norm, "normalized_shape", (norms.ANY_WIDTH,)))
        drawn = [draw(*case.rows, *width, scale=case.x) + 0.5 * case.x for _ in self.given]
        norm: Any = proof.twin(self.norm, case.training, parameters)
        norm.__class__ = self._original()
        layer = _Layer(self.module, self.site.norm, norm, case.training)
        given = dict(zip(self.given, drawn, strict=True))
        return proof.Run(
            given | {f"{self.site.norm}.{name}": p for name, p in parameters.items()},
            lambda: _seen(self.own(layer, *drawn, **self.asked)),
        )

    def law(self, *exact: torch.Tensor) -> torch.Tensor:
        drawn, parameters = exact[: len(self.given)], exact[len(self.given) :]
        kind = type(self.norm)
        if is_proven(kind):
            assert isinstance(kind.served, norms.LayerNorm | norms.RMSNorm)
            law = kind.served.law(getattr(self.norm, kind.served.norm.eps))
            norm: Callable[..., Any] = partial(_by_law, law, parameters)
        else:
            named = dict(zip(self.parameters, parameters, strict=True))
            norm = partial(self._original().forward, proof.twin(self.norm, False, named))
        layer = _Layer(self.module, self.site.norm, norm, False)
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
    scope = vars(builtins) | function.__globals__ | {JOINED: lambda norm, x, residual: (x + residual, norm(x + residual))}
    exec(compile(ast.fix_missing_locations(ast.Module([code], [])), "<sum and norm>", "exec", dont_inherit=True), scope)
    run: Callable[..., Any] = scope["run"]
    return run


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


class _Layer:
    """In the place of a layer: has the norm, what cannot be called, and for all else a function."""

    def __init__(self, module: nn.Module, name: str, norm: Callable[..., Any], training: bool) -> None:
        self._module, self._name, self._norm, self.training = module, name, norm, training

    def __getattr__(self, name: str) -> Any:
        if name == self._name:
            return self._norm
        value = getattr(self._module, name)
        return _stand_in if callable(value) else value


def _stand_in(*arguments: Any, **keywords: Any) -> torch.Tensor:
    """Another function of the first tensor than any norm."""
    first = next(a for a in (*arguments, *keywords.values()) if isinstance(a, torch.Tensor))
    return 0.5 * first + 1
