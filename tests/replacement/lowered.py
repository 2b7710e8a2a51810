"""What a replaced model computes under torch.autocast, beside what it does there itself: types, outputs, gradients.

Both round to half precision on the way, at places of their own: they are told apart by how far they are from float32.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map
from transformers import Cache

import kpt
from tests.replacement.models import Subject
from tests.tolerances import tolerance

WORSE = 1.4
"""How many times further from float32 than the model's own result a replaced one's may be: roundings are chance."""

FLOOR = tolerance("bf16") / 8
"""What is nearer to float32 than this, as a part of the whole, is not compared."""

Result = tuple[list[torch.Tensor], dict[str, torch.Tensor]]
"""Outputs, and gradients by parameter."""

Types = list[torch.dtype]


def judge(subject: Subject, device: str = "cpu", compiled: bool = False) -> None:
    """Replace all of a model that can be. Raises AssertionError where, under autocast to bfloat16, a replaced module gives
    another type than it did, or the model other types, or a result that is further from float32. ``compiled``: under
    torch.compile as well."""
    subject.model.to(device)
    exact, own = _run(subject, device, nullcontext()), _run(subject, device, _lowering(device))
    calls = _noted(subject, device)
    kpt.optimize(subject.model, "aggressive")
    modules = dict(subject.model.named_modules())
    for path, (kind, args, kwargs, types) in calls.items():
        if type(module := modules[path]) is not kind:
            with torch.no_grad(), _lowering(device):
                found = _types(module(*args, **kwargs))
            assert found, path
            assert found == types[: len(found)], f"{path} ({kind.__name__}) gives {found}, not {types}"  # no attention weights
    assert_as_good(_run(subject, device, _lowering(device)), own, exact)
    if compiled:
        assert_as_good(_compiled(subject, device), own, exact)


def alone(subject: Subject, device: str = "cpu") -> None:
    """Raises what a model that nobody replaced does under autocast, compiled and not, or AssertionError where it is worse
    compiled."""
    exact, own = _run(subject, device, nullcontext()), _run(subject, device, _lowering(device))
    assert_as_good(_compiled(subject, device), own, exact)


def _compiled(subject: Subject, device: str) -> Result:
    torch._dynamo.reset()
    model = torch.compile(subject.model, backend="eager")
    return _run(Subject(model, subject.call), device, _lowering(device))


def assert_as_good(got: Result, own: Result, exact: Result) -> None:
    """The types of one's own result, and about as near to the exact one."""
    assert _types(got[0]) == _types(own[0])
    assert got[1].keys() == own[1].keys()
    assert {n: g.dtype for n, g in got[1].items()} == {n: g.dtype for n, g in own[1].items()}
    outputs, gradients = ([r[0] for r in (got, own, exact)], [list(r[1].values()) for r in (got, own, exact)])
    for what, (mine, models, right) in (("outputs", outputs), ("gradients", gradients)):
        ours, theirs = _off(mine, right), _off(models, right)
        assert ours <= max(WORSE * theirs, FLOOR), f"{what} are off by {ours:.2g}, the model's own by {theirs:.2g}"


def _off(found: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    """How far tensors are from others, as a part of these, all together."""
    apart, whole = (
        torch.cat([t.double().flatten() for t in tensors]).norm()
        for tensors in ([a.double() - b for a, b in zip(found, exact, strict=True)], exact)
    )
    return float(apart / whole) if whole else float(apart)


def _lowering(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, torch.bfloat16)


def _run(subject: Subject, device: str, around: AbstractContextManager[Any]) -> Result:
    model = subject.model
    model.zero_grad()
    torch.manual_seed(20)
    with around:
        outputs = _call(subject, device)
    torch.stack([t.float().square().mean() for t in outputs]).sum().backward()
    gradients = {n.removeprefix("_orig_mod."): p.grad for n, p in model.named_parameters() if p.grad is not None}
    return [t.detach() for t in outputs], gradients


def _call(subject: Subject, device: str) -> list[torch.Tensor]:
    def on_device(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(lambda v: v.to(device) if isinstance(v, torch.Tensor) else v, (args, kwargs))
        return subject.model(*args, **kwargs)

    on_device.config = getattr(subject.model, "config", None)  # type: ignore[attr-defined]
    return subject.call(on_device)


def _noted(subject: Subject, device: str) -> dict[str, tuple[type[nn.Module], Any, Any, Types]]:
    """Of each module, by path: its class, what it was given first under autocast, and the types of what it gave."""
    noted: dict[str, tuple[type[nn.Module], Any, Any, Types]] = {}

    def hooks(path: str, module: nn.Module) -> Iterator[Any]:
        given: list[Any] = []

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            if path not in noted:
                given[:] = tree_map(_as_given, (args, kwargs))

        def after(_: nn.Module, args: Any, kwargs: Any, gave: Any) -> None:
            if path not in noted:
                noted[path] = type(module), *given, _types(gave)

        yield module.register_forward_pre_hook(before, with_kwargs=True)
        yield module.register_forward_hook(after, with_kwargs=True)

    handles = [handle for path, module in subject.model.named_modules() for handle in hooks(path, module)]
    with torch.no_grad(), _lowering(device):
        _call(subject, device)
    for handle in handles:
        handle.remove()
    return noted


def _as_given(value: Any) -> Any:
    """What a module is given, as it is now: it may write to a tensor, and to a cache."""
    return value.clone() if isinstance(value, torch.Tensor) else deepcopy(value) if isinstance(value, Cache) else value


def _types(given: Any) -> Types:
    return [t.dtype for t in tree_leaves(given) if isinstance(t, torch.Tensor)]
