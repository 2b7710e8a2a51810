"""Which activation of kpt's something is, by what it makes of drawn rows."""

from collections.abc import Callable
from dataclasses import replace

import torch

from kpt.ops.linear_act.reference import ACTIVATIONS
from kpt.ops.replace import proof

OF_FLOAT16 = (0.1, 30.0)
"""How small and large values are drawn in float16, whose numbers end at 6e-5 and 65504."""

WIDTH = 24
"""Of what is drawn for the output of a linear layer."""

Claim = Callable[[str], tuple[proof.Trial, proof.Law]]
"""Of an activation's name: what is tried, and what it should give then."""


def nearest(claim: Claim, own: torch.dtype, device: torch.device) -> tuple[str, proof.Difference | None]:
    """The activation for which a claim holds, with None, or the one that comes nearest, with how it differs. ``own``: the
    type of the module that is tried."""
    tests = tuple([_bounded(case) for case in proof.cases(own) if case.parameters == 1.0])
    best, least = "", proof.Difference(-1, "")
    for activation in ACTIVATIONS:
        if activation == "none":
            continue
        difference = proof.difference(*claim(activation), tests, device)
        if difference is None:
            return activation, None
        if difference.passed > least.passed:
            best, least = activation, difference
    return best, least


def is_activation(function: Callable[[torch.Tensor], object]) -> bool:
    """Whether what a function gives of each number hangs on that alone, and is not the number."""
    x = torch.linspace(-3.0, 3.0, 2 * WIDTH, device="cpu").view(2, WIDTH)
    try:
        with torch.random.fork_rng([]), torch.no_grad():
            y, part = function(x.clone()), function(x[:1, :WIDTH // 2].clone())
    except Exception:  # whatever a stranger's code raises
        return False
    if not isinstance(y, torch.Tensor) or not isinstance(part, torch.Tensor) or y.shape != x.shape or y.dtype != x.dtype:
        return False
    return torch.allclose(y[:1, :WIDTH // 2], part) and not torch.equal(y, x)


def _bounded(case: proof.Case) -> proof.Case:
    """The same, where squares of what is drawn are numbers of its type."""
    smallest, largest = OF_FLOAT16
    return replace(case, x=min(max(case.x, smallest), largest)) if case.dtype == torch.float16 else case
