"""The form of a norm: no children, at most a weight and a bias of one dim and one width, and an eps among its attributes or
in its code.

Three ops have it: RMS norm, RMS norm whose weight is counted from -1 (Gemma's ``1 + weight``), and layer norm.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import Any

import torch
from torch import nn

from kpt.ops.add_layer_norm.op import add_layer_norm
from kpt.ops.add_rms_norm.op import add_rms_norm
from kpt.ops.eager import is_autocasting
from kpt.ops.layer_norm import reference as layer_norms
from kpt.ops.layer_norm.op import layer_norm
from kpt.ops.replace import proof
from kpt.ops.replace.forms.classes import inputs, is_pytorchs, taking, why_not
from kpt.ops.replace.proven import Refused, Served, is_changed, runs_its_own
from kpt.ops.rms_norm import reference as rms_norms
from kpt.ops.rms_norm.op import rms_norm

DEFAULT_EPS, LARGEST_EPS = 1e-5, 1e-2

WIDTHS = 64, 48
"""At which a norm without parameters is tried."""


@dataclass(frozen=True, slots=True)
class Norm:
    """What a module calls its input, its parameters (those that it has), and its eps, or the number that it is."""

    input: str
    parameters: tuple[str, ...]
    eps: str | float

    @property
    def live(self) -> tuple[str, ...]:
        """Attributes that are read at each call."""
        return self.parameters if isinstance(self.eps, float) else (*self.parameters, self.eps)

    def eps_of(self, module: Any) -> float:
        found: float = self.eps if isinstance(self.eps, float) else getattr(module, self.eps)
        return found


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """RMS norm by kpt's op. ``offset``: what is added to the weight."""

    norm: Norm
    offset: float = 0.0
    kind = "rms_norm"

    @property
    def live(self) -> tuple[str, ...]:
        return self.norm.live

    def law(self, eps: float) -> proof.Law:
        def law(x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
            return rms_norms.rms_norm(x, x.shape[-1:], None if weight is None else self.offset + weight, eps)

        return law

    def forward(self, original: type[nn.Module]) -> Callable[..., torch.Tensor]:
        (name, *_), eps_of, offset = (*self.norm.parameters, ""), self.norm.eps_of, self.offset

        def bare(self: Any, x: torch.Tensor) -> torch.Tensor:
            if runs_its_own(self) or _widens(x):
                return original.forward(self, x)  # type: ignore[no-any-return]
            return rms_norm(x, tuple(x.shape[-1:]), None, eps_of(self))

        def weighted(self: Any, x: torch.Tensor) -> torch.Tensor:
            weight = getattr(self, name)
            if runs_its_own(self) or _widens(x) or not _fits(weight, x):
                return original.forward(self, x)  # type: ignore[no-any-return]
            return rms_norm(x, tuple(weight.shape), weight, eps_of(self))

        def offset_from(self: Any, x: torch.Tensor) -> torch.Tensor:
            weight = getattr(self, name)
            if runs_its_own(self) or _widens(x) or not _fits(weight, x):
                return original.forward(self, x)  # type: ignore[no-any-return]
            return rms_norm(x, tuple(weight.shape), weight, eps_of(self), offset)

        return taking(self.norm.input, (offset_from if offset else weighted) if name else bare)

    def after_sum(self, module: Any, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """That of a sum, and the sum."""
        weight = getattr(module, self.norm.parameters[0]) if self.norm.parameters else None
        if is_changed(module) or (self.norm.parameters and not _fits(weight, x)):
            total = x + residual
            return module(total), total
        return add_rms_norm(x, residual, tuple(x.shape[-1:]), weight, self.norm.eps_of(module), self.offset)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Layer norm by kpt's op."""

    norm: Norm
    kind = "layer_norm"

    @property
    def live(self) -> tuple[str, ...]:
        return self.norm.live

    def law(self, eps: float) -> proof.Law:
        def law(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            return layer_norms.layer_norm(x, x.shape[-1:], weight, bias, eps)

        return law

    def forward(self, original: type[nn.Module]) -> Callable[..., torch.Tensor]:
        (weight_name, bias_name, *_), eps_of = (*self.norm.parameters, "", ""), self.norm.eps_of

        def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
            weight = getattr(self, weight_name)
            if runs_its_own(self) or _widens(x) or not _fits(weight, x):
                return original.forward(self, x)  # type: ignore[no-any-return]
            bias = getattr(self, bias_name) if bias_name else None
            return layer_norm(x, tuple(weight.shape), weight, bias, eps_of(self))

        return taking(self.norm.input, forward)

    def after_sum(self, module: Any, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """That of a sum, and the sum."""
        weight, *bias = [getattr(module, name) for name in self.norm.parameters]
        if is_changed(module) or not _fits(weight, x):
            total = x + residual
            return module(total), total
        eps = self.norm.eps_of(module)
        return add_layer_norm(x, residual, tuple(weight.shape), weight, bias[0] if bias else None, eps)


CLAIMS = {0: (RMSNorm,), 1: (RMSNorm, partial(RMSNorm, offset=1.0), LayerNorm), 2: (LayerNorm,)}
"""What a norm may be, by how many parameters it has."""


def match(module: nn.Module) -> Norm | None:
    """What the parts of a module of this form are called; None for one of another."""
    parameters = {name: p for name, p in module._parameters.items() if p is not None}
    if (
        is_pytorchs(module)  # lazy ones have no shapes yet
        or any(True for _ in module.children())
        or any(True for _ in module.buffers())
        or len(parameters) > 2
        or any(p.ndim != 1 or p.shape[0] < 2 or not p.is_floating_point() for p in parameters.values())
        or len({p.shape for p in parameters.values()}) > 1
    ):
        return None
    known = proof.attributes(module).items()
    named = [name for name, value in known if "eps" in name and type(value) is float and value > 0]
    eps = named or _written(module, parameters)
    return Norm(next(iter(inputs(module)), ""), tuple(parameters), eps[0]) if len(eps) == 1 else None


def _written(module: nn.Module, parameters: Collection[str]) -> list[float]:
    """What may be the eps in the code of a module that has none: small numbers, else that which PyTorch's norm has."""
    code = getattr(type(module).forward, "__code__", None)
    if code is None or not parameters:
        return []
    return [n for n in code.co_consts if type(n) is float and 0 < n <= LARGEST_EPS] or [DEFAULT_EPS]


def prove(module: nn.Module, norm: Norm, kinds: Collection[str]) -> Served | Refused | None:
    """What serves a module of this form, or how it differs from the op that comes nearest; None where no kind is meant."""
    claims = [served for claim in CLAIMS[len(norm.parameters)] if (served := claim(norm)).kind in kinds]
    if not claims:
        return None
    if (reason := why_not(module)) is not None:
        return Refused(claims[0].kind, reason)
    first = next((p for p in module._parameters.values() if p is not None), None)
    widths, dtype = (WIDTHS, torch.float32) if first is None else (first.shape, first.dtype)
    eps = norm.eps_of(module)
    tests = tuple(proof.cases(dtype, sqrt(eps)))

    def trial(case: proof.Case, draw: proof.Draw) -> proof.Run:
        width = widths[len(case.rows) % len(widths)]
        parameters = {name: nn.Parameter(draw(width, scale=case.parameters)) for name in norm.parameters}
        x = draw(*case.rows, width, scale=case.x) + 0.5 * case.x  # so that means are not near zero
        if len(case.rows) == 1:
            x[0] = 0
        subject = proof.twin(module, case.training, parameters)
        return proof.Run({"input": x, **parameters}, lambda: proof.called(subject, x))

    nearest, passed = None, -1
    for served in claims:
        difference = proof.difference(trial, served.law(eps), tests, proof.device_of(module))
        if difference is None:
            return served
        if difference.passed > passed:
            reason = f"{type(module).__name__} is not {served.kind}: {difference.what}"
            nearest, passed = Refused(served.kind, reason), difference.passed
    return nearest if norm.parameters and isinstance(norm.eps, str) else None  # anything may have an eps, or a parameter


def _fits(weight: torch.Tensor | None, x: torch.Tensor) -> bool:
    """Whether there still is a weight, and both are of one type and width, as they were when the module was tried."""
    return weight is not None and weight.dtype is x.dtype and weight.shape == x.shape[-1:]


def _widens(x: torch.Tensor) -> bool:
    """Whether a module's own code decides on the type of what it gives: half ones are what autocast may widen."""
    return x.dtype is not torch.float32 and is_autocasting()
