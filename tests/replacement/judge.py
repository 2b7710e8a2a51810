"""What replacing makes of a model, and whether it still computes what it did; and that restoring undoes it."""

import copy
from collections import Counter
from typing import Any

import torch
from torch import nn

import kpt
from kpt.ops import counters
from tests.replacement.models import Subject
from tests.tolerances import assert_close

Row = dict[str, dict[str, int]]
"""How many modules were "replaced" and "left alone", by kind, and how often ops were "served" in a forward pass, by name."""

SMALLEST = 1e-2
"""Of the largest gradient of a model: what is smaller may be what rounding left of nothing, as that of keys' biases."""


def judge(subject: Subject, compiled: bool = False) -> Row:
    """Replace a model's modules and restore them. Raises AssertionError where outputs, gradients, tokens, the state or what is
    restored differ. ``compiled``: outputs under torch.compile as well."""
    model = subject.model
    state = copy.deepcopy(model.state_dict())
    before, slopes = _run(subject)
    kinds = [type(module) for module in model.modules()]  # now: BigBird exchanges its attention at a first short text
    tokens = subject.generate(model) if subject.generate else None

    report = kpt.optimize(model, "aggressive")
    calls = _served()
    outputs, gradients = _run(subject)
    served = _served() - calls
    _assert_alike(outputs, before)
    assert gradients.keys() == slopes.keys()
    sizes = {path: float(g.abs().max()) if g.numel() else 0.0 for path, g in slopes.items()}
    largest = max(sizes.values(), default=0.0)
    for path, gradient in gradients.items():
        scale = max(sizes[path], SMALLEST * largest)
        assert_close(gradient, slopes[path], "f32", 4096, scale=scale)
    if subject.generate:
        assert torch.equal(subject.generate(model), tokens), "its tokens differ"
    if compiled:
        _assert_alike(_compiled(subject), before)
    _assert_same_state(model, state)

    kpt.restore_modules(model)
    assert [type(module) for module in model.modules()] == kinds
    _assert_same_state(model, state)
    assert all(torch.equal(a, b) for a, b in zip(_run(subject)[0], before, strict=True)), "restored, its outputs differ"
    row = {
        "replaced": Counter(change.kind for change in report.changes),
        "left alone": Counter(skipped.kind for skipped in report.skipped),
        "served": served,
    }
    return {what: dict(sorted(counted.items())) for what, counted in row.items()}


def alone(subject: Subject) -> None:
    """Raises what a model that nobody replaced does, or AssertionError where it gives nothing to compare, or other outputs
    compiled."""
    _assert_alike(_compiled(subject), _run(subject)[0])
    if subject.generate:
        subject.generate(subject.model)


def _compiled(subject: Subject) -> list[torch.Tensor]:
    torch._dynamo.reset()
    torch.manual_seed(20)
    with torch.no_grad():
        return subject.call(torch.compile(subject.model, backend="eager"))


def _run(subject: Subject) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Outputs, and gradients of the parameters that have one."""
    model = subject.model
    model.zero_grad()
    torch.manual_seed(20)  # ViT-MAE draws what it hides, in eval mode too
    outputs = subject.call(model)
    assert outputs
    assert all(t.isfinite().all() for t in outputs)
    torch.stack([t.float().square().mean() for t in outputs]).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return [t.detach() for t in outputs], gradients


def _assert_alike(got: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, "f32", 4096)


def _assert_same_state(model: nn.Module, state: dict[str, Any]) -> None:
    now = model.state_dict()
    assert list(now) == list(state)
    assert all(torch.equal(now[name], state[name]) for name in state)


def _served() -> Counter[str]:
    """Calls of each op so far, but of those that are gradients'."""
    forward = {op: counted for op, counted in counters().items() if not op.endswith("_backward")}
    return Counter({op: sum(counted["served"].values()) for op, counted in forward.items()})
