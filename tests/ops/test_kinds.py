"""Calls that are not of plain tensors, or not made plainly: the right answer or PyTorch's, and never one of another call."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import kpt
from kpt.ops import flash_attention, fp8_matmul, layer_norm, linear_act, prefer, quantize_fp8, rms_norm
from kpt.ops.dispatch import DISPATCHERS, Dispatcher
from kpt.ops.registry import get
from kpt_dsl.runtime.precision import float32_products
from tests.ops.calls import served
from tests.ops.gradients import gelu, leaves
from tests.tolerances import assert_close

EVERY = ("numpy", "triton", "pallas", "reference", None)
X, W, B, G = (torch.randn(*s, generator=torch.Generator().manual_seed(sum(s))) for s in ((4, 8), (6, 8), (6,), (8,)))
Q = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(1))


def preferring(backend: Any) -> Any:
    return nullcontext() if backend is None else prefer(backend)


# ------------------------------------------------------------------ memory that does not hold the values
def negated(values: torch.Tensor) -> torch.Tensor:
    """The same numbers as a view of their negatives."""
    found = torch.complex(torch.zeros_like(values), -values).conj().imag
    assert found.is_neg()
    return found


@pytest.mark.parametrize("backend", EVERY)
def test_lazily_negated_tensors(backend: Any) -> None:
    plain = (
        layer_norm(X, (8,), G, G),
        rms_norm(X, (8,), G),
        linear_act(X, W, B, activation="gelu"),
        flash_attention(Q, Q, Q),
    )
    x, w, b, g, q = map(negated, (X, W, B, G, Q))
    like_x, like_w, like_b, like_g, like_q = (torch.complex(torch.zeros_like(t), t).imag for t in (X, W, B, G, Q))
    with preferring(backend):
        # Calls like those below but for that.
        layer_norm(like_x, (8,), like_g, like_g), rms_norm(X, (8,), like_g)
        linear_act(like_x, like_w, like_b, activation="gelu"), flash_attention(like_q, Q, like_q)
        lazy = (
            layer_norm(x, (8,), g, g),
            rms_norm(X, (8,), g),
            linear_act(x, w, b, activation="gelu"),
            flash_attention(q, Q, q),
        )
        raw = torch.ops.kpt.rms_norm(X, (8,), g, None)
        y, scale = quantize_fp8(x, "row")
        product = fp8_matmul(y, y.T, negated(scale), scale.T, out_dtype=torch.float32)
    for got, wanted in zip((*lazy, raw), (*plain, plain[1]), strict=True):
        assert_close(got, wanted, "f32", 8)
    assert_close(product, (y.float() * scale) @ (y.float() * scale).T, "f32", 8)


@pytest.mark.parametrize("backend", ["numpy", "reference"])
def test_gradients_of_lazily_negated_tensors(backend: Any) -> None:
    x, w, b = leaves((4, 8), (6, 8), (6,))
    wanted = torch.autograd.grad(F.gelu(F.linear(-x, w, b)).square().sum(), (x, w, b))
    with preferring(backend):
        y = gelu(torch.complex(torch.zeros_like(x), x).conj().imag, w, b)
        got = torch.autograd.grad(y, (x, w, b), negated((2 * y).detach()))
    for g, e in zip(got, wanted, strict=True):
        assert_close(g, e, "f32", 100)


@pytest.mark.parametrize("backend", ["numpy", "triton"])
def test_zeros_without_memory(backend: Any) -> None:
    with preferring(backend):
        layer_norm(torch.empty(4, 8), (8,), G, G)
        assert torch.equal(layer_norm(torch._efficientzerotensor((4, 8)), (8,), G, G), G.expand(4, 8))


# ------------------------------------------------------------------ tensors of other kinds
aten = torch.ops.aten


class Quantised(torch.Tensor):
    """A weight as torchao has them: it knows linear layers, and refuses what it does not know."""

    @staticmethod
    def __new__(cls, values: torch.Tensor, scale: float) -> "Quantised":
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=torch.float32)  # type: ignore[attr-defined, no-any-return]

    def __init__(self, values: torch.Tensor, scale: float) -> None:
        self.values, self.scale = values, scale

    def plain(self) -> torch.Tensor:
        return self.values.float() * self.scale

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            return F.linear(*[a.plain() if isinstance(a, Quantised) else a for a in args], **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (aten.detach.default, aten.alias.default):
            return Quantised(args[0].values, args[0].scale)
        raise NotImplementedError(f"a quantised weight does not know {func}")


@pytest.mark.parametrize("backend", [None, "numpy"])
def test_a_quantised_weight_stays_pytorchs(backend: Any) -> None:
    weight = Quantised((W * 50).to(torch.int8), 0.02)
    x = X.clone().requires_grad_()
    wanted = F.gelu(F.linear(x, weight, B))
    model = nn.Sequential(nn.Linear(8, 6), nn.GELU())
    model[0].weight, model[0].bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(B)  # type: ignore[assignment]
    kpt.replace_modules(model)
    with preferring(backend):
        got = linear_act(x, weight, B, activation="gelu")
        assert torch.equal(got, wanted)
        assert torch.equal(model(x), wanted)
        assert torch.equal(*(torch.autograd.grad(y.sum(), x)[0] for y in (got, wanted)))
        with torch.inference_mode():
            assert torch.equal(linear_act(X, weight, B, activation="gelu"), wanted)


def jagged(grad: bool = False) -> torch.Tensor:
    return torch.nested.nested_tensor([X, X[:2]], layout=torch.jagged, requires_grad=grad)


def heads_of_lengths(layout: torch.layout) -> torch.Tensor:
    parts = [Q[0].transpose(0, 1), Q[1, :, :3].transpose(0, 1)]  # (length, heads, head dim)
    if layout == torch.jagged:
        return torch.nested.nested_tensor(parts, layout=layout).transpose(1, 2)
    return torch.nested.nested_tensor([p.transpose(0, 1).contiguous() for p in parts])


KINDS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "CSR weight": (lambda: linear_act(X, W.to_sparse_csr(), activation="silu"), lambda: F.silu(F.linear(X, W))),
    "COO weight": (lambda: linear_act(X, W.to_sparse(), activation="silu"), lambda: F.silu(F.linear(X, W))),
    "CSR input": (lambda: linear_act(X.to_sparse_csr(), W, B), lambda: F.linear(X, W, B)),
    "mkldnn": (
        lambda: linear_act(X.to_mkldnn(), W, B, activation="gelu").to_dense(),
        lambda: F.gelu(F.linear(X, W, B)),
    ),
    "nested": (
        lambda: torch.cat(linear_act(torch.nested.nested_tensor([X, X[:2]]), W, B).unbind()),  # type: ignore[arg-type]
        lambda: F.linear(torch.cat([X, X[:2]]), W, B),
    ),
    "nested norm": (
        lambda: torch.cat(layer_norm(torch.nested.nested_tensor([X, X[:2]]), (8,), G, G).unbind()),  # type: ignore[arg-type]
        lambda: F.layer_norm(torch.cat([X, X[:2]]), (8,), G, G),
    ),
    "jagged": (lambda: gelu(jagged(), W, B).values(), lambda: F.gelu(F.linear(torch.cat([X, X[:2]]), W, B))),
    "jagged norm": (
        lambda: layer_norm(jagged(), (8,), G).values(),
        lambda: F.layer_norm(torch.cat([X, X[:2]]), (8,), G),
    ),
    "jagged, needing grad": (
        lambda: rms_norm(jagged(True), (8,), G).values(),
        lambda: F.rms_norm(torch.cat([X, X[:2]]), (8,), G),
    ),
    "jagged, through torch.ops": (
        lambda: torch.ops.kpt.rms_norm(jagged(), (8,), G, None).values(),
        lambda: F.rms_norm(torch.cat([X, X[:2]]), (8,), G),
    ),
    "jagged attention": (
        lambda: flash_attention(*[heads_of_lengths(torch.jagged)] * 3).transpose(1, 2).values(),  # type: ignore[union-attr]
        lambda: torch.cat([F.scaled_dot_product_attention(q, q, q).transpose(0, 1) for q in (Q[0], Q[1, :, :3])]),
    ),
    "nested attention": (
        lambda: torch.cat([t.flatten() for t in flash_attention(*[heads_of_lengths(torch.strided)] * 3).unbind()]),  # type: ignore[union-attr]
        lambda: torch.cat([F.scaled_dot_product_attention(q, q, q).flatten() for q in (Q[0], Q[1, :, :3])]),
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch's, that these kinds are young
@pytest.mark.parametrize("backend", [None, "numpy"])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_that_only_pytorch_takes(kind: str, backend: Any) -> None:
    ours, native = KINDS[kind]
    with preferring(backend):
        assert_close(ours(), native(), "f32", 8)


# ------------------------------------------------------------------ what tells calls apart
@pytest.mark.parametrize(
    ("name", "served_before", "refused"),
    [
        ("causal", lambda: flash_attention(Q, Q, Q, causal=True), lambda: flash_attention(Q, Q, Q, causal=1)),
        ("causal", lambda: flash_attention(Q, Q, Q, causal=False), lambda: flash_attention(Q, Q, Q, causal=0)),
        ("window", lambda: flash_attention(Q, Q, Q, window=1), lambda: flash_attention(Q, Q, Q, window=True)),
        ("window", lambda: flash_attention(Q, Q, Q, window=2), lambda: flash_attention(Q, Q, Q, window=2.0)),
        ("return_lse", lambda: flash_attention(Q, Q, Q, return_lse=True), lambda: flash_attention(Q, Q, Q, return_lse=1)),
        ("scale", lambda: flash_attention(Q, Q, Q, scale=1), lambda: flash_attention(Q, Q, Q, scale=True)),
        ("recompute", lambda: linear_act(X, W, recompute=True), lambda: linear_act(X, W, recompute=1)),
        ("eps", lambda: layer_norm(X, (8,), eps=1), lambda: layer_norm(X, (8,), eps=True)),
        ("eps", lambda: rms_norm(X, (8,), eps=1), lambda: rms_norm(X, (8,), eps=True)),
        ("normalized_shape", lambda: layer_norm(X, (8,)), lambda: layer_norm(X, (8.0,))),
        ("normalized_shape", lambda: rms_norm(X[:, :1], (1,)), lambda: rms_norm(X[:, :1], (True,))),
    ],
)  # fmt: skip
def test_an_equal_argument_of_another_type_is_another_call(
    name: str, served_before: Callable[[], Any], refused: Callable[[], Any]
) -> None:
    served_before()
    with pytest.raises(kpt.InputError, match=name):
        refused()


@pytest.fixture
def settings() -> Any:
    """How precise float32 products are, put back afterwards."""
    yield torch.backends
    torch.backends.cuda.matmul.fp32_precision = "none"
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")


SETTINGS = """
import os, sys, torch, kpt
x, q = torch.ones(4, 8), torch.ones(1, 1, 4, 8)
for setting in sys.argv[1:]:
    if child := os.fork():  # no setting of PyTorch's can be taken back in full
        print(setting, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    exec(setting)
    for prefers in ("reference", "numpy"):
        with kpt.ops.prefer(prefers):
            kpt.ops.layer_norm(x, (8,)), kpt.ops.rms_norm(x, (8,)), kpt.ops.linear_act(x, x), kpt.ops.flash_attention(q, q, q)
            y, scale = kpt.ops.quantize_fp8(x)
            kpt.ops.fp8_matmul(y, y.T, scale, scale)
    sys.exit()
"""


def test_no_precision_setting_stops_an_op() -> None:
    settings = [
        "torch.backends.cuda.matmul.fp32_precision='tf32'",
        "torch.backends.fp32_precision='tf32'",
        "torch.backends.fp32_precision='ieee'",
        "torch.backends.mkldnn.matmul.fp32_precision='bf16'",
        "torch.set_float32_matmul_precision('high'); torch.backends.cuda.matmul.allow_tf32=False",
    ]
    done = subprocess.run([sys.executable, "-c", SETTINGS, *settings], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [f"{setting} 0" for setting in settings], done.stderr


def test_precision_is_what_pytorch_itself_asks(settings: Any) -> None:
    torch.set_float32_matmul_precision("high")
    assert float32_products() == "tf32"
    settings.cuda.matmul.fp32_precision = "ieee"
    assert float32_products() == "ieee"
    settings.cuda.matmul.fp32_precision = "none"
    settings.fp32_precision = "tf32"
    assert float32_products() == "tf32"
    settings.cuda.matmul.allow_tf32 = False
    assert float32_products() != "tf32"


def test_a_prepared_product_is_of_the_precision_that_was_asked_for(settings: Any) -> None:
    """A launch is prepared for one precision: products are decided upon again when it changes, and nothing else is."""
    for op, arguments, multiplies in (
        ("linear_act", (X, W, B, "gelu", False), True),
        ("flash_attention", (Q, Q, Q, False, None, None, None, False), True),
        ("layer_norm", (X, (8,), G, G, 1e-5), False),
        ("quantize_fp8", (X, "row", torch.float8_e4m3fn), False),
    ):
        dispatcher = Dispatcher(get(op))
        torch.set_float32_matmul_precision("highest")
        dispatcher(*arguments)
        torch.set_float32_matmul_precision("high")
        dispatcher(*arguments)
        settings.cuda.matmul.fp32_precision = "ieee"
        dispatcher(*arguments)
        assert len(dispatcher._decisions) == (2 if multiplies else 1), op


# ------------------------------------------------------------------ transforms, traces, counters
def test_vmap_runs_what_pytorch_can_follow() -> None:
    keys, rows = torch.stack([Q, 2 * Q, -Q]), torch.stack([X, 2 * X])
    vmap, grad, sdpa = torch.func.vmap, torch.func.grad, F.scaled_dot_product_attention
    before = served("flash_attention").get("reference", 0)
    pairs: list[tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]] = [
        (vmap(lambda k: flash_attention(Q, k, k, causal=True)), vmap(lambda k: sdpa(Q, k, k, is_causal=True)), (keys,)),
        (vmap(lambda k: flash_attention(Q, k, k, return_lse=True)[0]), vmap(lambda k: sdpa(Q, k, k)), (keys,)),
        (
            vmap(grad(lambda k: flash_attention(Q, k, k).square().sum())),
            vmap(grad(lambda k: sdpa(Q, k, k).square().sum())), (keys,),
        ),
        (vmap(gelu, in_dims=(0, None, None)), lambda x, w, b: F.gelu(F.linear(x, w, b)), (rows, W, B)),
        (
            vmap(grad(lambda w, x: gelu(x, w, B).square().sum()), in_dims=(None, 0)),
            vmap(grad(lambda w, x: F.gelu(F.linear(x, w, B)).square().sum()), in_dims=(None, 0)), (W, rows),
        ),
        (
            grad(lambda g: vmap(lambda x: layer_norm(x, (8,), g))(rows).square().sum()),
            grad(lambda g: F.layer_norm(rows, (8,), g).square().sum()), (G,),
        ),
        (vmap(vmap(lambda x: rms_norm(x, (8,), G))), lambda x: F.rms_norm(x, (8,), G), (rows,)),
        (vmap(lambda x: torch.ops.kpt.layer_norm(x, [8], G, None, 1e-5)), lambda x: F.layer_norm(x, (8,), G), (rows,)),
        (vmap(lambda x: quantize_fp8(x, "row")[1]), lambda x: x.abs().amax(-1, keepdim=True) / 448, (rows,)),
    ]  # fmt: skip
    for ours, native, given in pairs:
        assert_close(ours(*given), native(*given), "f32", 100)
        with torch.no_grad():
            assert_close(ours(*given), native(*given), "f32", 100)
    assert served("flash_attention")["reference"] > before
    with prefer("numpy"), pytest.raises(kpt.InputError, match=r"torch\.func transforms"):
        vmap(lambda x: rms_norm(x, (8,)))(rows)


def test_numbers_of_numpy_are_numbers() -> None:
    """To PyTorch they are, and a config may hold some."""
    with prefer("numpy"):
        q = Q.clone().requires_grad_()
        given, plain = (flash_attention(q, q, q, scale=s, window=w) for s, w in ((np.float32(0.5), np.int64(2)), (0.5, 2)))
        assert torch.equal(given, plain)  # type: ignore[arg-type]
        assert given.requires_grad  # type: ignore[union-attr]
        assert torch.equal(rms_norm(X, (8,), G, np.float32(0.5)), rms_norm(X, (8,), G, 0.5))
        assert kpt.ops.explain("rms_norm", X, (8,), G, np.float32(0.5)).implementation == "numpy"
        with pytest.raises(kpt.InputError, match=r"window is 2\.5"):
            flash_attention(Q, Q, Q, window=np.float32(2.5))


def test_gradients_that_are_batched_are_those_of_each_sample() -> None:
    """By a vmap of autograd's own, older than torch.func's."""
    calls: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "attention": lambda q: flash_attention(q, q[:, :1], q[:, :1], causal=True),  # type: ignore[dict-item,return-value]
        "linear": lambda q: gelu(q, W, B),
        "norm": lambda q: rms_norm(q, (8,)),
        "angles": lambda q: kpt.ops.rotary(q, q, Q[0, 0], Q[0, 0])[0],
    }
    for name, call in calls.items():
        with prefer("numpy"):
            q = torch.stack([Q[0], 2 * Q[0]]).requires_grad_()
            o = call(q)
            slopes = torch.randn(3, *o.shape)
            (found,) = torch.autograd.grad(o, q, slopes, is_grads_batched=True, retain_graph=True)
            each = [torch.autograd.grad(o, q, slope, retain_graph=True)[0] for slope in slopes]
        assert torch.equal(found, torch.stack(each)), name


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> Any:
        h = layer_norm(gelu(x, self.linear.weight, self.linear.bias), (8,)).view(1, 1, -1, 8)
        o, lse = flash_attention(h, h, h, causal=True, return_lse=True)
        y, scale = quantize_fp8(o.reshape(-1, 8), "row")
        return rms_norm(o + flash_attention(h, h, h), (8,)), lse, fp8_matmul(y, y.T, scale, scale.T)  # type: ignore[arg-type]


def test_symbolic_trace() -> None:
    model = Model()
    traced = torch.fx.symbolic_trace(model)
    assert "torch.ops.kpt.linear_act.default" in traced.code
    for got, wanted in zip(traced(X), model(X), strict=True):
        assert torch.equal(got, wanted)
    pair = nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.LayerNorm(6), nn.RMSNorm(6))
    kpt.replace_modules(pair)
    assert torch.equal(torch.fx.symbolic_trace(pair)(X), pair(X))


@pytest.mark.parametrize("backend", ["numpy", "reference"])
def test_flops_are_counted_as_pytorchs(backend: Any) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    def counted(run: Callable[[], Any]) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    x, w, b = leaves((4, 8), (6, 8), (6,))
    q = Q.clone().requires_grad_()
    native = counted(lambda: F.gelu(F.linear(x, w, b)).sum().backward())
    with prefer(backend):
        for recompute in (False, True):
            ours = counted(lambda r=recompute: linear_act(x, w, b, activation="gelu", recompute=r).sum().backward())
            assert ours == native + (2 * 4 * 8 * 6 if recompute and backend == "numpy" else 0)
        with torch.no_grad():
            assert counted(lambda: flash_attention(Q, Q, Q)) == 2 * 2 * (2 * 2 * 5 * 5 * 8)
            assert counted(lambda: linear_act(X, W, B)) == 2 * 4 * 8 * 6
        with torch.inference_mode():
            assert counted(lambda: linear_act(X, W, B)) == 2 * 4 * 8 * 6
            y, scale = quantize_fp8(X)
            assert counted(lambda: fp8_matmul(y, y.T, scale, scale)) == 2 * 4 * 4 * 8
    if backend == "numpy":
        with prefer(backend):
            assert counted(lambda: flash_attention(q, q, q).sum().backward()) == 7 * 2 * (2 * 2 * 5 * 5 * 8)


@pytest.mark.parametrize(
    "function",
    [
        gelu,
        lambda x, w, b: F.relu(gelu(F.relu(x), w, b)),  # PyTorch's own op asks for what it saved first
        lambda x, w, b: gelu(x, w, b) * x[:, :6],
        lambda x, w, b: checkpoint(gelu, x * 2, w, b, use_reentrant=False),
    ],
)
def test_a_preference_holds_for_what_a_checkpoint_computes_again(function: Callable[..., Any]) -> None:
    given = leaves((4, 8), (6, 8), (6,))
    with prefer("reference"):
        wanted = torch.autograd.grad(function(*given).square().sum(), given)
    before = served("linear_act_saving").get("numpy", 0)
    with prefer("numpy"):
        y = checkpoint(function, *given, use_reentrant=False)
    for g, e in zip(torch.autograd.grad(y.square().sum(), given), wanted, strict=True):
        assert_close(g, e, "f32", 100)
    assert served("linear_act_saving")["numpy"] >= before + 2


def test_a_preference_inside_a_checkpoint_ends_there() -> None:
    given = leaves((4, 8), (8, 8), (8,))

    def inside(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        with prefer("numpy"):
            x = gelu(x, w, b)
        return gelu(x, w, b)

    for outside in (None, "triton"):
        with preferring(outside):
            y = checkpoint(inside, *given, use_reentrant=False)
        y.sum().backward()


def test_falling_back_for_a_kind_is_counted_where_a_kernel_was_expected() -> None:
    dispatcher = DISPATCHERS["linear_act"]
    before = dispatcher.counters()
    linear_act(X, W.to_sparse_csr())
    after = dispatcher.counters()
    assert after["fallbacks"] == before["fallbacks"]  # nobody expects kernels on a CPU
    assert after["served"]["reference"] == before["served"].get("reference", 0) + 1
    with prefer("numpy"), pytest.raises(kpt.InputError, match="a tensor is sparse"):
        kpt.ops.explain("linear_act", X, W.to_sparse_csr())
