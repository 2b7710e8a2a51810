"""Kernels with gradients inside what PyTorch lays around ops: torch.compile, autocast, torch.func."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import kpt
from kpt.ops import linear_act, prefer
from kpt.ops.dispatch import DISPATCHERS
from kpt.ops.registry import get
from tests.ops.calls import served
from tests.ops.gradients import assert_all_close, gelu, gradients, in_float64, leaves, linear_leaves
from tests.tolerances import assert_close


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_into_one_graph(dynamic: bool) -> None:
    def block(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        h = linear_act(x, weight, bias, activation="silu") * 2
        return linear_act(h, weight.T, None, activation="gelu_tanh", recompute=True)

    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (3, 5, 8):
        given = leaves((rows, 9), (7, 9), (7,))
        before = served("linear_act_backward").get("numpy", 0)
        with prefer("numpy"):
            got = gradients(compiled, given)
        assert served("linear_act_backward")["numpy"] == before + 2
        assert_all_close(got, in_float64(block, given))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    given = linear_leaves()
    with prefer("numpy"), torch.autocast("cpu", dtype=dtype):
        y = gelu(*given)
    assert y.dtype == dtype
    got = torch.autograd.grad(y.float().square().sum(), given)
    assert {g.dtype for g in got} == {torch.float32}
    assert_all_close(got, in_float64(gelu, given), "bf16")


@pytest.mark.parametrize("implementation", ["numpy", "reference"])
def test_autocast_needs_no_dispatcher(implementation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager calls go straight to their implementation, cast as the dispatcher would, with autocast off inside and on behind."""
    given = linear_leaves()
    with prefer(implementation), torch.autocast("cpu", torch.bfloat16):
        through = torch.ops.kpt.linear_act(*given, "gelu", False)

    def stop(*_: Any) -> None:
        pytest.fail("the dispatcher was asked")

    monkeypatch.setattr(DISPATCHERS["linear_act"], "through_torch", stop)
    before = served("linear_act").get(implementation, 0)
    with prefer(implementation), torch.autocast("cpu", torch.bfloat16):
        direct = gelu(*given)
        assert torch.is_autocast_enabled("cpu")
        with pytest.raises(kpt.KptError):
            linear_act(given[0], given[1][:, :-1])
        assert torch.is_autocast_enabled("cpu")
    assert served("linear_act")[implementation] == before + 1
    assert direct.dtype == torch.bfloat16
    assert torch.equal(direct, through)
    assert all(map(torch.equal, *(torch.autograd.grad(y.float().sum(), given) for y in (direct, through))))


def test_a_subclass_sees_what_came_in_under_autocast() -> None:
    seen = []

    class Tagged(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append((str(func), args[0].dtype if args else None, torch.is_autocast_enabled("cpu")))
            return super().__torch_function__(func, types, args, kwargs)

    x, weight, bias = (t.detach() for t in linear_leaves())
    with torch.autocast("cpu", torch.bfloat16):
        y = gelu(x, weight.as_subclass(Tagged), bias)
        assert torch.equal(y.as_subclass(torch.Tensor), gelu(x, weight, bias))
    assert ("kpt.linear_act.default", torch.float32, True) in seen


def test_autocast_of_another_device_changes_nothing() -> None:
    given = linear_leaves()
    torch.set_autocast_enabled("cuda", True)  # the context manager would turn it off again where there is no such device
    try:
        assert torch._C._is_any_autocast_enabled()
        with prefer("numpy"):
            assert gelu(*given).dtype == torch.float32
        assert torch.is_autocast_enabled("cuda")
    finally:
        torch.set_autocast_enabled("cuda", False)


@pytest.mark.parametrize("implementation", ["numpy", "reference"])
def test_autocast_around_a_backward_changes_nothing(implementation: Any) -> None:
    call = get("linear_act_backward").arguments({"M": 5, "N": 7, "K": 9}, "f32", "cpu", recompute=True)
    with prefer(implementation):
        plain = torch.ops.kpt.linear_act_backward(*call)
        with torch.autocast("cpu"):
            lowered = torch.ops.kpt.linear_act_backward(*call)
    assert all(map(torch.equal, plain, lowered))


@pytest.mark.usefixtures("at_home")
def test_transforms_get_pytorchs_own_operations() -> None:
    x, weight, bias = (t.detach() for t in linear_leaves())
    before = served("linear_act").get("reference", 0)

    def native(t: torch.Tensor) -> torch.Tensor:
        return F.gelu(F.linear(t, weight, bias))

    def ours(t: torch.Tensor) -> torch.Tensor:
        return gelu(t, weight, bias)

    tangent = torch.ones_like(x)
    assert torch.equal(torch.func.grad(lambda t: ours(t).sum())(x), torch.func.grad(lambda t: native(t).sum())(x))
    assert torch.equal(
        torch.func.hessian(lambda t: ours(t).sum())(x[0]), torch.func.hessian(lambda t: native(t).sum())(x[0])
    )
    assert torch.equal(torch.func.jvp(ours, (x,), (tangent,))[1], torch.func.jvp(native, (x,), (tangent,))[1])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        got, wanted = (torch.autograd.forward_ad.unpack_dual(f(dual)).tangent for f in (ours, native))
    assert got is not None
    assert torch.equal(got, wanted)
    assert served("linear_act")["reference"] > before
    assert_close(torch.vmap(ours)(x), native(x), "f32", 9)  # sample by sample
    assert_close(
        *(torch.autograd.grad(f(x.requires_grad_()).sum(), x)[0] for f in (torch.vmap(ours), native)), "f32", 9
    )


def test_a_preferred_kernel_says_that_it_cannot_be_transformed() -> None:
    x, weight, bias = (t.detach() for t in linear_leaves())
    with (
        prefer("numpy"),
        pytest.raises(kpt.InputError, match=r"numpy is preferred but cannot serve.*torch\.func transforms"),
    ):
        torch.func.grad(lambda t: gelu(t, weight, bias).sum())(x)
    with prefer("numpy"), pytest.raises(kpt.InputError, match="forward-mode differentiation"):
        torch.func.jvp(lambda t: gelu(t, weight, bias), (x,), (x,))
