"""Calls that are known without their fingerprint: never taken for those of another kind, whatever they differ in."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from kpt.ops import dispatch, prefer, rms_norm
from kpt.ops.compiling import NotMadeError
from kpt.ops.dispatch import DISPATCHERS
from kpt.ops.fingerprint import fingerprint
from kpt.ops.recent import AGAIN, KEPT, Same, same
from kpt_dsl import configs
from kpt_dsl.errors import CompileError
from kpt_dsl.runtime.precision import float32_products
from tests.ops.calls import Asked

X, W = torch.randn(4, 8), torch.randn(8)
CALL = (X, (8,), W, None, 1e-5, "gelu", 1, True)
Call = tuple[Any, ...]


def told(call: Call = CALL) -> Same:
    found = same(call, float32_products)
    assert found is not None
    return found


def with_(place: int, value: Any) -> Call:
    return (*CALL[:place], value, *CALL[place + 1 :])


class Subclass(torch.Tensor):
    """A tensor whose operations somebody intercepts."""


def without_memory() -> torch.Tensor:
    found = torch.randn(4, 8)
    found.untyped_storage().resize_(0)
    return found


def made_in_inference() -> torch.Tensor:
    with torch.inference_mode():
        return torch.randn(4, 8)


def test_the_same_again() -> None:
    is_same = told()
    assert is_same(*CALL)
    assert is_same(torch.randn(4, 8), (8,), torch.randn(8), None, 1e-5, "gelu", 1, True)
    assert is_same(X, tuple(map(int, "8")), W, None, float("1e-5"), b"gelu".decode(), 1, True)  # other objects


OTHERS: dict[str, Call] = {
    "rows": with_(0, torch.randn(5, 8)), "rank": with_(0, torch.randn(4, 8, 1)), "strides": with_(0, torch.randn(8, 4).t()),
    "no strides": with_(0, torch.randn(1, 8).expand(4, 8)), "float64": with_(0, X.double()), "float16": with_(0, X.half()),
    "needs grad": with_(0, torch.randn(4, 8).requires_grad_()), "device": with_(0, X.to("meta")),
    "nested": with_(0, torch.nested.nested_tensor([X, X])), "sparse": with_(0, X.to_sparse()),
    "subclass": with_(0, X.as_subclass(Subclass)),
    "parameter": with_(0, torch.nn.Parameter(X, requires_grad=False)),
    "misaligned": with_(0, torch.randn(33)[1:].view(4, 8)), "misaligned weight": with_(2, torch.randn(9)[1:]),
    "no memory": with_(0, without_memory()), "of inference": with_(0, made_in_inference()),
    "lazily negated": with_(0, torch._neg_view(X)), "zeros without memory": with_(0, torch._efficientzerotensor((4, 8))),
    "none for a tensor": with_(2, None), "none for the first": with_(0, None), "a number for a tensor": with_(0, 1),
    "a tensor for none": with_(3, W), "0 for none": with_(3, 0), "False for none": with_(3, False),
    "a float in a shape": with_(1, (8.0,)), "a bool in a shape": with_(1, (True,)), "a list": with_(1, [8]),
    "a torch.Size": with_(1, torch.Size([8])), "a longer shape": with_(1, (8, 8)), "a number for a shape": with_(1, 8),
    "a tensor for a shape": with_(1, X), "eps": with_(4, 1e-6), "none for eps": with_(4, None), "a tensor for eps": with_(4, W),
    "another string": with_(5, "silu"), "none for a string": with_(5, None),
    "1.0": with_(6, 1.0), "True": with_(6, True), "2": with_(6, 2),
    "1 for True": with_(7, 1), "False": with_(7, False), "1.0 for True": with_(7, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_another_argument(name: str) -> None:
    assert not told()(*OTHERS[name])


def test_what_is_not_told_so_is_not_asked() -> None:
    """Tensors at other addresses than multiples of 16, sequences that may change, calls without tensors."""
    for call in (with_(0, torch.randn(33)[1:].view(4, 8)), with_(1, [8]), with_(0, without_memory()), (1, 2)):
        assert same(call, None) is None


class Sees(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class SeesUnnoticed(Sees):
    """Its dispatch keys are none for torch.compile."""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True


class SeesFunctions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def high() -> Iterator[None]:
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


STATES: dict[str, Callable[[], Any]] = {
    "no grad": torch.no_grad, "inference": torch.inference_mode, "preference": lambda: prefer("numpy"),
    "configs": configs.scope, "precision": high,
}  # fmt: skip
SEEN: dict[str, Callable[[], Any]] = {
    "mode": Sees, "unnoticed mode": SeesUnnoticed, "mode of functions": SeesFunctions,
    "default device": lambda: torch.device("meta"), "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "forward mode": forward_ad.dual_level,
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_another_state(name: str) -> None:
    """Both ways: what was told outside of it does not hold inside, nor the other way round."""
    torch.set_float32_matmul_precision("highest")
    outside = told()
    with STATES[name]():
        assert not outside(*CALL)
        inside = told()
        assert inside(*CALL)
    assert outside(*CALL) and not inside(*CALL)


@pytest.mark.parametrize("name", SEEN)
def test_what_would_intercept_it(name: str) -> None:
    is_same = told()
    with SEEN[name]():
        assert not is_same(*CALL)
    assert is_same(*CALL)


def test_inside_transforms_and_tracing() -> None:
    """Also where no argument is of the transform's."""
    outside, seen = told(), []

    def inside(t: torch.Tensor) -> torch.Tensor:
        seen.append(outside(*CALL))
        return t * 2

    torch.vmap(inside)(torch.randn(3))
    torch.func.grad(lambda t: inside(t).sum())(torch.randn(3))
    torch.func.functionalize(inside)(torch.randn(3))
    torch.jit.trace(inside, torch.randn(3), check_trace=False)
    assert seen and not any(seen)


def test_what_stands_for_a_tensor() -> None:
    is_same, seen = told(), []
    torch.fx.symbolic_trace(lambda x: seen.append(is_same(x, *CALL[1:])) or x)
    assert seen == [False]


# ------------------------------------------------------------------ in dispatch
@pytest.fixture
def norm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The dispatcher of an op that PyTorch serves; ``norm.fingerprints``: how many it took."""
    found = DISPATCHERS["rms_norm"]
    taken: list[int] = []
    monkeypatch.setattr(dispatch, "fingerprint", lambda arguments: taken.append(1) or fingerprint(arguments))
    monkeypatch.setattr(found, "fingerprints", taken, raising=False)
    found._forget()
    yield found
    found._forget()


def called(times: int, x: torch.Tensor = X) -> None:
    for _ in range(times):
        rms_norm(x, (8,), W)


def test_calls_are_counted_as_before(norm: Any) -> None:
    before = norm.counters()["served"].get("reference", 0)
    called(2 * AGAIN)
    assert norm.counters()["served"]["reference"] == before + 2 * AGAIN
    assert len(norm.fingerprints) == AGAIN + 1
    norm._forget()
    assert norm.counters()["served"]["reference"] == before + 2 * AGAIN


def test_calls_of_pytorchs_dispatcher_are_known_too(norm: Any) -> None:
    """As a compiled graph makes them, which gives lists for tuples: those of the public function are of the same kind."""
    x, before = X.clone().requires_grad_(), norm.counters()["served"].get("reference", 0)
    for given in (X, x):
        norm.fingerprints.clear()
        for _ in range(2 * AGAIN):
            norm.through_torch(given, [8], W, 1e-5)
        assert len(norm.fingerprints) == AGAIN + 1
        norm.fingerprints.clear()
        y = rms_norm(given, (8,), W, 1e-5)
        assert not norm.fingerprints and y.requires_grad is given.requires_grad
        assert torch.equal(y, torch.nn.functional.rms_norm(given, (8,), W, 1e-5))
    assert norm.counters()["served"]["reference"] == before + 2 * (2 * AGAIN + 1)


def test_what_would_see_a_call_of_the_dispatcher_sees_it(norm: Any) -> None:
    """Known or not: modes, transforms that functionalize, subclasses, gradients forward."""
    through = partial(norm.through_torch, eps=1e-5)
    wanted = torch.nn.functional.rms_norm(X, (8,), W, 1e-5)
    for times in (0, AGAIN + 1):
        for _ in range(times):
            through(X, [8], W)
        with Asked() as asked:
            assert torch.equal(through(X, [8], W), wanted)
        assert "kpt::rms_norm" in asked.names
        assert torch.allclose(torch.func.functionalize(lambda x: through(x.clone().mul_(1.0), [8], W))(X), wanted)
        assert type(through(X.as_subclass(Subclass), [8], W)) is Subclass
        tangent = torch.func.jvp(lambda x: through(x, [8], W), (X,), (X,))[1]
        assert tangent.abs().max() < 1e-4  # a row keeps its direction
        with torch.inference_mode():
            assert torch.equal(through(X, [8], W), wanted)


def test_what_stands_for_a_tensor_of_pytorchs_own_has_no_memory_to_read(norm: Any) -> None:
    """Though its type is PyTorch's, and no mode says so."""
    x, w = torch._to_functional_tensor(X), torch._to_functional_tensor(W)
    torch._enable_functionalization(reapply_views=True)
    try:
        with prefer("numpy"):
            y = norm.through_torch(x, [8], w, 1e-5)
    finally:
        torch._disable_functionalization()
    torch._sync(y)
    found = torch._from_functional_tensor(y)
    assert torch.allclose(found, torch.nn.functional.rms_norm(X, (8,), W, 1e-5))


def test_a_few_kinds_are_kept(norm: Any) -> None:
    for rows in range(1, KEPT + 3):
        called(AGAIN + 1, torch.randn(rows, 8))
        norm.fingerprints.clear()
        called(3, torch.randn(rows, 8))
        assert not norm.fingerprints and len(norm._recent.kinds) <= KEPT
    called(1, torch.randn(1, 8))
    assert norm.fingerprints  # the first has left


def test_what_dispatch_forgets_is_forgotten(norm: Any) -> None:
    called(AGAIN + 1)
    ((key, decision),) = norm.decisions()
    norm.put(key, None)
    norm.fingerprints.clear()
    called(1)
    assert norm.fingerprints and decision.calls == AGAIN + 1


def test_a_failure_is_met_as_before(norm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decision that failed is asked for no more."""
    *_, numpy, reference = norm.op.implementations
    monkeypatch.setitem(norm.op.__dict__, "implementations", (replace(numpy, devices=None), reference))

    def refuses(*_: Any) -> Any:
        raise CompileError("out of resources")

    called(AGAIN + 1)
    ((_, decision),) = norm.decisions()
    decision.ready = refuses
    called(2)
    ((_, after),) = norm.decisions()
    assert after is not decision and after.calls == 2


def test_a_launch_that_is_not_made_is_met_as_before(norm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch serves what another process compiles for, and the decision that waits for it is asked for no more."""

    def waits(*_: Any) -> Any:
        raise NotMadeError("not compiled yet")

    *_, numpy, reference = norm.op.implementations
    monkeypatch.setitem(norm.op.__dict__, "implementations", (replace(numpy, devices=None), reference))
    monkeypatch.setattr("kpt.ops.behind.ask", lambda *_: SimpleNamespace(reason="numpy: compiling", failure=None))
    called(AGAIN + 1)
    ((_, decision),) = norm.decisions()
    decision.ready = waits
    called(1)
    ((_, after),) = norm.decisions()
    assert after is not decision and after.choice.implementation.name == "reference"
    assert not norm._recent.kinds


def test_a_preference_is_asked_each_time(norm: Any) -> None:
    called(AGAIN + 1)
    before = norm.counters()["served"].get("numpy", 0)
    with prefer("numpy"):
        called(2)
    assert norm.counters()["served"]["numpy"] == before + 2


def test_a_kind_that_left_while_it_was_made_is_not_kept(norm: Any) -> None:
    called(2)
    ((key, decision),) = norm.decisions()
    norm.put(key, None)
    norm._expect(key, decision, (X, (8,), W, None))
    assert not norm._recent.kinds


def test_a_kind_is_kept_once(norm: Any) -> None:
    """Though two threads make what tells it."""
    called(2)
    ((key, decision),) = norm.decisions()
    for _ in range(2):
        norm._expect(key, decision, (X, (8,), W, None))
    assert len(norm._recent.kinds) == 1


BACK: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "strides": lambda t: t.t().contiguous().t() if t.ndim == 2 else t,
    "misaligned": lambda t: torch.cat([t.new_zeros(1), t.detach().flatten()])[1:].view(t.shape),
    "lazily negated": lambda t: torch._neg_view(-t.detach()),
}


@pytest.mark.parametrize("name", [*BACK, "gradient"])
def test_a_backward_is_known_by_what_arrives(name: str) -> None:
    """Hooks may hand back saved tensors that lie otherwise, and a gradient has any strides."""
    x, w = torch.randn(4, 8).requires_grad_(), torch.randn(8).requires_grad_()
    backward = DISPATCHERS["rms_norm_backward"]

    def step(gradient: torch.Tensor, back: Callable[[torch.Tensor], torch.Tensor] = lambda t: t) -> tuple[torch.Tensor, ...]:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, back):
            y = rms_norm(x, (8,), w)
            return torch.autograd.grad(y, (x, w), gradient)

    with prefer("numpy"):
        backward._forget()
        for _ in range(AGAIN + 2):
            wanted = step(torch.ones(4, 8))
        (known,) = backward._recent.kinds
        assert known[2].calls == AGAIN + 2
        got = step(torch.ones(1).expand(4, 8)) if name == "gradient" else step(torch.ones(4, 8), BACK[name])
        assert len(backward.decisions()) > 1 and known[2].calls == AGAIN + 2
    for g, e in zip(got, wanted, strict=True):
        assert torch.allclose(g, e, atol=1e-5)
