"""A kind of call that keeps coming, with gradients: what serves it then does the same with fewer questions."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import FunctionType
from typing import Any

import pytest
import torch

from kpt.ops import backends, flash_attention, layer_norm, linear_act, prefer, rms_norm
from kpt.ops.autograd import _Followed, followed
from kpt.ops.dispatch import DISPATCHERS
from kpt.ops.recent import AGAIN
from kpt.ops.registry import OPS, Gradient, get, settled
from kpt.ops.written import written
from kpt_dsl.errors import CompileError
from tests.no_gpu import pretended, started_by
from tests.ops.gradients import leaves
from tests.ops.pretended_gpu import forget_calls
from tests.tolerances import assert_close

Seen = list[tuple[str, int]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """Kernels of an H200 serve calls on tensors of the CPU: which were started, with how many programs."""
    found: Seen = []
    for op in OPS.values():
        here = tuple(replace(i, devices=None) if i.name == "triton" else i for i in op.implementations)
        monkeypatch.setitem(op.__dict__, "implementations", here)
    monkeypatch.setattr(backends, "_gpu", lambda _: 0)
    forget_calls()
    with pretended(monkeypatch, lambda name: started_by(lambda programs, *_: found.append((name, programs)))):
        yield found
    forget_calls()


def norm(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return layer_norm(x, (64,), w, b)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return flash_attention(q, k, v, causal=True)


STEPS: dict[str, tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...], str]] = {
    "layer norm": (norm, leaves((200, 64), (64,), (64,)), "layer_norm"),
    "layer norm of three dims": (norm, leaves((2, 100, 64), (64,), (64,)), "layer_norm"),
    "RMS norm": (lambda x, w: rms_norm(x, (64,), w), leaves((200, 64), (64,)), "rms_norm"),
    "attention": (attention, leaves((1, 2, 40, 64), (1, 2, 40, 64), (1, 2, 40, 64)), "flash_attention"),
}


@pytest.mark.parametrize("name", STEPS)
def test_it_starts_the_same_kernels(name: str, seen: Seen) -> None:
    function, given, op = STEPS[name]
    first: Seen = []
    for _ in range(AGAIN + 3):
        seen.clear()
        output = function(*given)
        assert not output._is_view()
        gradients = torch.autograd.grad(output, given, torch.ones(given[0].shape))
        first = first or list(seen)
        assert seen == first
        assert [(g.shape, g.dtype) for g in gradients] == [(t.shape, t.dtype) for t in given]
    for served in (op, f"{op}_backward"):
        assert DISPATCHERS[served].counters()["served"] == {"triton": AGAIN + 3}
    assert {name.partition("_fwd")[0] for name, _ in first[:1]} == {op}


def test_a_call_and_its_backward_are_straight(seen: Seen) -> None:
    """Between autograd and the launches there is nothing but what was written for such calls."""
    x, w, b = leaves((200, 64), (64,), (64,))
    for _ in range(AGAIN + 2):
        torch.autograd.grad(norm(x, w, b), (x, w, b), torch.ones(200, 64))
    ((_, _, forward),) = DISPATCHERS["layer_norm"]._recent.kinds
    ((_, _, backward),) = DISPATCHERS["layer_norm_backward"]._recent.kinds
    assert isinstance(forward.ready, partial)
    for ready in (forward.ready.args[0].dispatch, backward.ready):
        assert isinstance(ready, FunctionType) and ready.__code__.co_filename == "<kpt call>"


def test_a_gradient_that_lies_otherwise_is_copied_first(seen: Seen) -> None:
    """What was written for dense gradients does not get those of an expanded tensor, or of another type of memory."""
    x, w, b = leaves((200, 64), (64,), (64,))
    for _ in range(AGAIN + 2):
        torch.autograd.grad(norm(x, w, b), (x, w, b), torch.ones(200, 64))
    ((_, _, known),) = DISPATCHERS["layer_norm_backward"]._recent.kinds
    before = known.calls
    for other in (torch.ones(64).expand(200, 64), torch.ones(64, 200).t(), torch.ones(200 * 64 + 1)[1:].view(200, 64)):
        torch.autograd.grad(norm(x, w, b), (x, w, b), other)
    assert known.calls == before


def test_what_a_text_does_not_read_is_kept() -> None:
    """A launch keeps its binary loaded, of which a text has a mere handle."""
    value = object()
    found = written(["def call(a):", "    return a + one"], {"one": 1, "kept": value})
    assert found(2) == 3 and vars(found)["kept"] is value
    assert written(["def call(a):", "    return a + one"], {"one": 5, "kept": value})(2) == 7


def test_launches_are_kept(seen: Seen) -> None:
    x, w, b = leaves((200, 64), (64,), (64,))
    for _ in range(AGAIN + 2):
        norm(x, w, b)
    ((_, _, forward),) = DISPATCHERS["layer_norm"]._recent.kinds
    (launch,) = vars(forward.ready.args[0].dispatch)["kept"]
    assert launch._kernel.name.startswith("layer_norm_fwd")


# ------------------------------------------------------------------ outputs that are no views
BARE: dict[str, tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]] = {
    "norm": (lambda x, w: rms_norm(x, (8,), w), leaves((2, 3, 8), (8,))),
    "linear": (lambda x, w: linear_act(x, w, None), leaves((2, 5, 9), (7, 9))),
    "linear that saves": (lambda x, w: linear_act(x, w, None, activation="gelu"), leaves((2, 5, 9), (7, 9))),
}


@pytest.mark.parametrize("name", BARE)
def test_outputs_may_be_modified_in_place_at_any_call(name: str) -> None:
    """A kernel writes rows; what autograd gets has the dims of the input, and is no view of them to it."""
    function, given = BARE[name]
    wanted = torch.autograd.grad(function(*given).mul(2).square().sum(), given)
    with prefer("numpy"):
        for _ in range(AGAIN + 3):
            y = function(*given)
            assert not y._is_view()
        got = torch.autograd.grad(y.mul_(2).add_(given[0].sum() * 0).square().sum(), given)
    for g, w in zip(got, wanted, strict=True):
        assert_close(g, w, "f32", 100)


def test_views_that_a_gradient_makes_itself_are_none_to_autograd() -> None:
    """Neither what its forward makes of what the op gave, nor gradients that a graph is made of."""

    def forward(run: Callable[..., Any], needed: tuple[bool, ...], *given: Any) -> Any:
        return run(*given).view(2, 3), ()

    def backward(saved: tuple[Any, ...], needed: tuple[bool, ...], dy: torch.Tensor) -> list[torch.Tensor]:
        return [dy.view(6)]

    op = replace(get("layer_norm"), gradient=Gradient(("input",), forward, backward))
    ready = followed(op, lambda x, *_: x.clone())
    (x,) = leaves((6,))
    for _ in range(3):
        y = ready(x, (6,), None, None, 1e-5)
        assert not y._is_view()
        assert y.mul_(2).requires_grad
        (gradient,) = torch.autograd.grad(y, x, torch.ones(2, 3, requires_grad=True), create_graph=True)
        assert gradient.mul_(2).requires_grad


def test_what_is_saved_alone_remembers_what_it_was_made_from() -> None:
    """Neither an argument nor given: a gradient that is made of nothing else is known to hang on the argument, at any call."""

    def forward(run: Callable[..., Any], needed: tuple[bool, ...], *given: Any) -> Any:
        made, kept = run(*given)
        return made, (kept,)

    def backward(saved: tuple[Any, ...], needed: tuple[bool, ...], dy: torch.Tensor) -> list[torch.Tensor]:
        return [dy * saved[0]]

    op = replace(get("layer_norm"), gradient=Gradient(("input",), forward, backward))
    ready = followed(op, lambda x, *_: [x.clone(), x.square()])
    (x,) = leaves((6,))
    for _ in range(3):
        (gradient,) = torch.autograd.grad(ready(x, (6,), None, None, 1e-5), x, torch.ones(6), create_graph=True)
        assert gradient.requires_grad and torch.equal(gradient, x.square())


# ------------------------------------------------------------------ what is not learnt
def test_what_does_not_learn_is_what_it_was() -> None:
    assert settled(len) is len


def test_a_kind_that_fails_once_it_has_settled_goes_to_pytorch(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, b = leaves((200, 64), (64,), (64,))
    for _ in range(AGAIN + 2):
        norm(x, w, b)
    ((_, _, forward),) = DISPATCHERS["layer_norm"]._recent.kinds

    def refuses(*_: Any) -> Any:
        raise CompileError("out of resources")

    forward.ready.args[0].dispatch = refuses
    wanted = torch.nn.functional.layer_norm(x, (64,), w, b)
    assert torch.equal(norm(x, w, b), wanted)
    assert DISPATCHERS["layer_norm"].counters()["served"]["reference"] == 1


def test_the_engine_asks_no_class() -> None:
    """Hooks of a node, retained graphs and gradients that are not needed come out as with PyTorch's own way."""
    assert _Followed._backward_cls.apply is _Followed.backward  # type: ignore[attr-defined]
    x, w = leaves((2, 3, 8), (8,))
    with prefer("numpy"):
        y = rms_norm(x, (8,), w)
    told: list[int] = []
    y.grad_fn.register_hook(lambda given, _: told.append(len(given)))  # type: ignore[union-attr]
    first = torch.autograd.grad(y.sum(), (x, w), retain_graph=True)
    second = torch.autograd.grad(y.sum(), (x, w))
    assert all(map(torch.equal, first, second)) and len(told) == 2
