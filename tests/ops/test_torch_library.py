"""The ops as PyTorch sees them: opcheck, torch.compile, gradients, autocast, transforms, subclasses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

import kpt.ops
from tests.ops import naive
from tests.ops.calls import OPS, arguments, through_torch
from tests.tolerances import assert_close

FP8_OPS = ("fp8_matmul", "quantize_fp8")
FLAGS: list[tuple[str, dict[str, Any]]] = [
    *((op, {}) for op in OPS),
    ("flash_attention", {"causal": True, "window": 3}),
    ("flash_attention", {"key_lengths": True}),
    ("linear_act", {"bias": False, "activation": "silu"}),
    ("linear_act_backward", {"bias": False, "activation": "relu"}),
    ("linear_act_backward", {"activation": "none"}),
    ("linear_act_backward", {"recompute": True}),
    ("linear_act_saving", {"transposed": True}),
    ("linear_act_backward", {"transposed": True}),
    ("layer_norm", {"weight": False}),
    ("linear_cross_entropy", {"softcap": 3.0}),
    ("cross_entropy_backward", {"softcap": 3.0}),
    ("fp8_matmul", {"granularity": "row", "bias": True, "out_dtype": "f16"}),
    ("quantize_fp8", {"granularity": "row", "to": "f8e5m2"}),
]


def seeded(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_(grad)


def gradcheck(function: Callable[..., torch.Tensor], given: tuple[torch.Tensor, ...]) -> None:
    """Gradients against finite differences in float64, along random directions."""
    torch.autograd.gradcheck(function, given, fast_mode=True)


@pytest.mark.parametrize(("op", "flags"), FLAGS, ids=str)
def test_opcheck(op: str, flags: dict[str, Any]) -> None:
    # opcheck's own comparison of inputs before and after does not know FP8.
    utilities = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    opcheck(
        through_torch(op),
        arguments(op, **flags),
        test_utils=utilities if op in FP8_OPS else ("test_schema", *utilities),
    )


@pytest.mark.parametrize("op", [op for op in OPS if op not in FP8_OPS])
def test_opcheck_with_gradients(op: str) -> None:
    given = [a.requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments(op)]
    opcheck(through_torch(op), tuple(given))


@pytest.mark.parametrize("op", [op for op in OPS if kpt.ops.registry.get(op).gradient])
def test_opcheck_with_gradients_of_kernels(op: str) -> None:
    given = list(arguments(op))
    for position in kpt.ops.registry.get(op).differentiable:
        if given[position] is not None:
            given[position].requires_grad_()
    with kpt.ops.prefer("numpy"):
        opcheck(through_torch(op), tuple(given))


def test_opcheck_of_a_transposed_layout_with_log_sum_exp() -> None:
    q = seeded(2, 5, 4, 16).transpose(1, 2)
    opcheck(through_torch("flash_attention"), (q, q, q, True, None, None, None, True))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(dynamic: bool) -> None:
    def block(x: torch.Tensor, w: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        h = kpt.ops.rms_norm(kpt.ops.layer_norm(x, (16,), g, g), (16,), g)
        h = kpt.ops.linear_act(h, w, activation="gelu")
        heads = h.view(2, -1, 4, 4).transpose(1, 2)
        o, lse = kpt.ops.flash_attention(heads, heads, heads, causal=True, return_lse=True)
        y, scale = kpt.ops.quantize_fp8((o + lse[..., None]).transpose(1, 2).reshape(-1, 16), "row")
        return kpt.ops.fp8_matmul(y, y.T, scale, scale.T, out_dtype=torch.float32)

    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for length in (5, 6, 9):
        given = seeded(2, length, 16), seeded(16, 16), seeded(16)
        assert_close(compiled(*given), block(*given), "f32", 16)


def test_compiled_training_step_is_the_eager_one() -> None:
    def loss(x: torch.Tensor, w: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return kpt.ops.layer_norm(kpt.ops.linear_act(x, w, g, activation="silu"), (8,), g).square().sum()

    torch._dynamo.reset()
    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        given = seeded(5, 6, grad=True), seeded(8, 6, grad=True), seeded(8, grad=True)
        gradients.append(torch.autograd.grad(function(*given), given))
    for eager, compiled in zip(*gradients, strict=True):
        assert_close(compiled, eager, "f32", 16)


def test_gradients_of_attention() -> None:
    """Against finite differences in float64, with a query that sees no key."""
    q, k, v = (seeded(1, 2, n, 4, dtype=torch.float64, grad=True) for n in (4, 2, 2))
    lengths = torch.tensor([1], dtype=torch.int32)
    for options in ({"causal": True}, {"window": 1}, {"key_lengths": lengths}, {"scale": -0.5}):
        gradcheck(lambda *t, o=options: kpt.ops.flash_attention(*t, **o), (q, k, v))
        gradcheck(lambda *t, o=options: kpt.ops.flash_attention(*t, **o, return_lse=True)[0], (q, k, v))
    gradcheck(lambda *t: kpt.ops.flash_attention(*t, return_lse=True)[1], (q, k, v))


def test_gradients_of_the_others() -> None:
    x, w, b, g = (seeded(*s, dtype=torch.float64, grad=True) for s in ((3, 5), (4, 5), (4,), (5,)))
    gradcheck(lambda *t: kpt.ops.linear_act(*t, activation="gelu_tanh"), (x, w, b))
    gradcheck(lambda x, g: kpt.ops.layer_norm(x, (5,), g, g), (x, g))
    gradcheck(lambda x, g: kpt.ops.rms_norm(x, (5,), g, 1e-3), (x, g))
    gradcheck(lambda x, r, g: kpt.ops.add_rms_norm(x, r, (5,), g, 1e-3, 1.0), (x, x.detach().cos().requires_grad_(), g))
    gradcheck(lambda x, g: kpt.ops.add_layer_norm(x, x, (5,), g, g), (x, g))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients(mode: Any) -> None:
    x = seeded(3, 8, grad=True)
    with mode():
        y = kpt.ops.layer_norm(x, (8,))
    assert not y.requires_grad
    assert kpt.ops.layer_norm(x, (8,)).requires_grad
    assert_close(y, naive.layer_norm(x.detach(), 1, None, None, 1e-5), "f32", 8)


def test_the_op_itself_is_differentiable() -> None:
    x = seeded(3, 8, grad=True)
    (through,) = torch.autograd.grad(through_torch("layer_norm")(x, [8], None, None, 1e-5).square().sum(), x)
    (native,) = torch.autograd.grad(F.layer_norm(x, (8,)).square().sum(), x)
    assert torch.equal(through, native)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_what_it_does_to_pytorchs(dtype: torch.dtype) -> None:
    x, w, g, q = seeded(3, 8), seeded(4, 8), seeded(8), seeded(1, 2, 3, 8)
    with torch.autocast("cpu", dtype=dtype):
        pairs = [
            (kpt.ops.linear_act(x, w, activation="relu"), F.linear(x, w).relu()),
            (kpt.ops.flash_attention(q, q, q), F.scaled_dot_product_attention(q, q, q)),
            (kpt.ops.layer_norm(x, (8,), g), F.layer_norm(x, (8,), g)),
            (kpt.ops.rms_norm(x.to(dtype), (8,), g.to(dtype)), F.rms_norm(x.to(dtype), (8,), g.to(dtype))),
            (kpt.ops.linear_act(x.double(), w.double()), F.linear(x.double(), w.double())),
        ]
        y, scale = kpt.ops.quantize_fp8(x)
        product = kpt.ops.fp8_matmul(y, y.T, scale, scale, out_dtype=torch.float32)
    for got, wanted in pairs:
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)
    assert torch.equal(product, kpt.ops.fp8_matmul(y, y.T, scale, scale, out_dtype=torch.float32))


@pytest.mark.parametrize(
    "op", ["layer_norm", "rms_norm", "linear_act", "flash_attention", "fp8_matmul", "quantize_fp8"]
)
def test_autocast_on_cuda_is_decided_as_pytorchs(op: str) -> None:
    """No GPU is needed to ask which of PyTorch's ops autocast has a kernel for."""
    native = {
        "linear_act": "linear",
        "flash_attention": "scaled_dot_product_attention",
        "fp8_matmul": "_scaled_mm",
    }.get(op, op)
    policies = kpt.ops.registry.get(op).autocast
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        if op == "quantize_fp8":  # PyTorch has no such op
            casts = False
        else:
            table = torch._C._dispatch_dump_table(f"aten::{native}").splitlines()
            casts = "fallthrough" not in next(line for line in table if line.startswith(f"{key}:"))
        assert (policies.get(device, "keep") != "keep") == casts


def test_function_transforms() -> None:
    x = seeded(3, 8)
    (gradient,) = torch.autograd.grad(F.layer_norm(x.requires_grad_(), (8,)).square().sum(), x)
    x = x.detach()
    assert torch.allclose(torch.func.grad(lambda t: kpt.ops.layer_norm(t, (8,)).square().sum())(x), gradient)
    assert torch.equal(torch.vmap(lambda t: kpt.ops.layer_norm(t, (8,)))(x), F.layer_norm(x, (8,)))


def test_subclasses_and_modes_see_the_op() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    class Tagged(torch.Tensor):
        pass

    x = seeded(3, 8)
    with Watch():
        kpt.ops.layer_norm(x, (8,))
    assert "kpt.layer_norm.default" in seen
    assert type(kpt.ops.layer_norm(x.as_subclass(Tagged), (8,))) is Tagged


def test_fake_tensors_pass_through() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        o, lse = kpt.ops.flash_attention(*[torch.empty(2, 4, 5, 16)] * 3, return_lse=True)
    assert (o.shape, lse.shape) == ((2, 4, 5, 16), (2, 4, 5))
