"""Attention's gradients: PyTorch's implementation and the generated ones against float64 autograd, and what is around them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.library import opcheck

import kpt
from kpt.ops import flash_attention, prefer
from kpt.ops.flash_attention.backward import flash_attention_backward
from kpt.ops.registry import get
from tests import soak
from tests.ops import naive
from tests.ops.calls import arguments, served, through_torch
from tests.tolerances import assert_close

BACKENDS = ("reference", "numpy", "triton", "pallas")
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
Tensors = tuple[torch.Tensor, ...]


def randn(*shape: int, dtype: str = "f32") -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DTYPES[dtype])


def heads_last(batch: int, length: int, heads: int, dim: int, dtype: str = "f32") -> torch.Tensor:
    return randn(batch, length, heads, dim, dtype=dtype).transpose(1, 2)


def expected(do: torch.Tensor | None, dlse: torch.Tensor | None, q: Any, k: Any, v: Any, **options: Any) -> Tensors:
    """In float64, through plain loops over queries."""
    given = [t.detach().double().requires_grad_() for t in (q, k, v)]
    if "key_lengths" in options:
        options["key_lengths"] = options["key_lengths"].tolist()
    o, lse = naive.attention(*given, **options)
    total = torch.zeros((), dtype=torch.float64) + 0 * sum(t.sum() for t in given)
    if do is not None:
        total = total + (o * do.double()).sum()
    if dlse is not None:
        total = total + (lse * dlse.double())[lse.isfinite()].sum()
    return torch.autograd.grad(total, given)


def lengths(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


SHAPES = {"two heads": (2, 2), "a group of two": (4, 2), "one key head": (4, 1)}
OPTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "causal": {"causal": True},
    "window": {"window": 3},
    "causal window": {"causal": True, "window": 5},
    "lengths": {"key_lengths": lengths(7, 0)},
    "everything": {"causal": True, "window": 6, "key_lengths": lengths(9, 4), "scale": 0.5},
}


SLOW = ("triton", "pallas")
"""Interpreters, which see each of the options once, with the heads in turn."""


@pytest.mark.parametrize(
    ("options", "heads", "backend"),
    [
        soak.unless(backend not in SLOW or i % len(SHAPES) == j, options, heads, backend)
        for i, options in enumerate(OPTIONS)
        for j, heads in enumerate(SHAPES)
        for backend in BACKENDS
    ],
)
def test_gradients(options: str, heads: str, backend: Any) -> None:
    """More queries than keys, so that some queries see no key, and fewer; of o, of its log-sum-exp, and of both."""
    H, G = SHAPES[heads]
    for M, N in ((13, 9), (9, 13))[: 1 if backend in SLOW else 2]:
        q, k, v = (t.requires_grad_() for t in (heads_last(2, M, H, 16), randn(2, G, N, 16), heads_last(2, N, G, 16)))
        do, dlse = heads_last(2, M, H, 16), randn(2, H, M)
        with prefer(backend):
            o, lse = flash_attention(q, k, v, **OPTIONS[options], return_lse=True)
            alone = flash_attention(q, k, v, **OPTIONS[options])
        for outputs, upstream, mine in (
            ((o, lse), (do, dlse), (do, dlse)), ((alone,), (do,), (do, None)), ((lse,), (dlse,), (None, dlse)),
        ):  # fmt: skip
            wanted = expected(*mine, q, k, v, **OPTIONS[options])
            found = torch.autograd.grad(outputs, (q, k, v), upstream, retain_graph=True, materialize_grads=True)
            for got, want, given in zip(found, wanted, (q, k, v), strict=True):
                assert got.dtype == given.dtype
                assert_close(got, want, "f32", 13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [8, 40])
def test_values_of_another_head_dim(width: int, backend: Any) -> None:
    q, k, v = (t.requires_grad_() for t in (heads_last(2, 5, 4, 16), randn(2, 2, 7, 16), heads_last(2, 7, 2, width)))
    do, dlse = randn(2, 4, 5, width), randn(2, 4, 5)
    with prefer(backend):
        o, lse = flash_attention(q, k, v, causal=True, return_lse=True)
        found = torch.autograd.grad((o, lse), (q, k, v), (do, dlse))
    assert o.stride() == heads_last(2, 5, 4, width).stride()
    for got, want in zip((o, lse), naive.attention(q, k, v, causal=True), strict=True):
        assert_close(got, want, "f32", 16)
    for got, want in zip(found, expected(do, dlse, q, k, v, causal=True), strict=True):
        assert_close(got, want, "f32", 16)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_half_precision(dtype: str, backend: Any) -> None:
    q, k, v = (randn(1, h, n, 40, dtype=dtype).requires_grad_() for h, n in ((4, 37), (2, 50), (2, 50)))
    do = randn(1, 4, 37, 40, dtype=dtype)
    with prefer(backend):
        found = torch.autograd.grad(flash_attention(q, k, v, causal=True), (q, k, v), do)
    for got, want in zip(found, expected(do, None, q, k, v, causal=True), strict=True):
        assert got.dtype == DTYPES[dtype]
        assert_close(got, want, dtype, 50)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [0.0, -0.5, -1, 1e-30])
def test_scales_that_are_not_positive(scale: float, backend: Any) -> None:
    """Masked keys stay masked, and the gradient of the queries has the scale's sign."""
    q, k, v = (randn(1, h, n, 16).requires_grad_() for h, n in ((4, 9), (2, 11), (2, 11)))
    do, dlse = randn(1, 4, 9, 16), randn(1, 4, 9)
    with prefer(backend):
        o, lse = flash_attention(q, k, v, causal=True, window=4, scale=scale, return_lse=True)
    exact = flash_attention(q.double(), k.double(), v.double(), causal=True, window=4, scale=scale, return_lse=True)
    for got, want in zip((o, lse), exact, strict=True):
        assert_close(got, want, "f32", 16)
    found = torch.autograd.grad((o, lse), (q, k, v), (do, dlse))
    for got, want in zip(found, expected(do, dlse, q, k, v, causal=True, window=4, scale=scale), strict=True):
        assert_close(got, want, "f32", 16)


LAYOUTS: dict[str, Callable[[], Tensors]] = {
    "contiguous": lambda: (randn(2, 2, 5, 16), randn(2, 2, 7, 16), randn(2, 2, 7, 16)),
    "tokens first": lambda: (heads_last(2, 5, 2, 16), heads_last(2, 7, 2, 16), heads_last(2, 7, 2, 16)),
    "dims before tokens": lambda: tuple(randn(2, 2, 16, n).mT for n in (5, 7, 7)),
    "parts of one projection": lambda: tuple(randn(2, 7, 3, 2, 16).permute(2, 0, 3, 1, 4)),
    "dims apart": lambda: tuple(randn(2, 2, n, 32)[..., ::2] for n in (5, 7, 7)),
    "keys for all heads": lambda: (randn(2, 2, 5, 16), *(randn(2, 1, 7, 16).expand(2, 2, 7, 16) for _ in range(2))),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, backend: Any) -> None:
    """Each gradient has the memory order of its input; upstream gradients may have any strides."""
    q, k, v = (t.detach().requires_grad_() for t in LAYOUTS[layout]())
    with prefer(backend):
        o, lse = flash_attention(q, k, v, return_lse=True)
    do = torch.tensor(0.7).expand(o.shape)
    dlse = randn(*reversed(lse.shape)).permute(2, 1, 0)
    given = torch.ops.kpt.flash_attention_backward(do, q, k, v, o, lse, dlse, False, None, None, None, [True] * 3)
    with prefer(backend):
        direct = flash_attention_backward(do, q.detach(), k.detach(), v.detach(), o.detach(), lse.detach(), dlse)
    wanted = expected(do, dlse, q, k, v)
    for got in (given, direct, torch.autograd.grad((o, lse), (q, k, v), (do, dlse))):
        for g, w in zip(got, wanted, strict=True):
            assert_close(g, w, "f32", 16)
    for g, t in zip(direct, (q, k, v), strict=True):
        dense = torch.empty_like(
            t, memory_format=torch.preserve_format if t.stride(3) == 1 else torch.contiguous_format
        )
        assert g.stride() == dense.stride()


@pytest.mark.parametrize("layout", ["tokens first", "parts of one projection", "keys for all heads"])
def test_a_dense_head_dim_is_not_copied(layout: str) -> None:
    q, k, v = LAYOUTS[layout]()
    do, o, lse = torch.ones_like(q), torch.ones_like(q), torch.zeros(q.shape[:3])
    instances = get("flash_attention_backward").record((do, q, k, v, o, lse, None, False, None, None, None, (True,) * 3))
    for instance in instances:
        strides = dict(instance.extents.strides)
        for name, tensor in (("q", q), ("k", k), ("v", v)):
            if name in strides:
                assert strides[name] == tensor.stride()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("needed", [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)], ids=str)
@pytest.mark.parametrize("H", [2, 4])
def test_any_of_the_gradients(H: int, needed: tuple[int, int, int], backend: Any) -> None:
    """The backward op gives what is needed, and launches what that takes."""
    q, k, v, do = randn(1, H, 5, 16), randn(1, 2, 7, 16), randn(1, 2, 7, 16), randn(1, H, 5, 16)
    o, lse = flash_attention(q, k, v, causal=True, return_lse=True)
    flags = tuple(map(bool, needed))
    with prefer(backend):
        got = flash_attention_backward(do, q, k, v, o, lse, causal=True, needed=flags)
    wanted = [g for g, n in zip(expected(do, None, q, k, v, causal=True), needed, strict=True) if n]
    assert len(got) == len(wanted)
    for g, w in zip(got, wanted, strict=True):
        assert_close(g, w, "f32", 16)
    instances = get("flash_attention_backward").record((do, q, k, v, o, lse, None, True, None, None, None, flags))
    names = [p.kernel.name.removeprefix("flash_attention_") for p in instances]
    columns = flags[1] or flags[2]
    together = ["rows", "dkdv", "scale"] * all(flags)  # the other way to make all three
    apart = ["rows"] * any(flags) + ["dq"] * flags[0] + ["dkdv"] * columns
    assert names == apart + together + ["group_sum"] * (columns and H == 4)
    for instance in instances:
        dtypes = dict(instance.specialisation.dtypes)
        for name, wanted_ in (("dk", flags[1]), ("dv", flags[2]), ("delta", flags[0] or flags[1])):
            if name in dtypes and instance.kernel.name != "flash_attention_dkdv":
                assert (dtypes[name] is not None) == wanted_


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("needed", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)], ids=str)
def test_autograd_asks_for_what_is_needed(needed: tuple[int, int, int], backend: Any) -> None:
    tensors = [randn(1, 2, n, 16).requires_grad_(bool(flag)) for n, flag in zip((5, 7, 7), needed, strict=True)]
    with prefer(backend):
        o = flash_attention(*tensors, causal=True)
    do = randn(1, 2, 5, 16)
    got = torch.autograd.grad(o, [t for t in tensors if t.requires_grad], do)
    wanted = [g for g, n in zip(expected(do, None, *tensors, causal=True), needed, strict=True) if n]
    for g, w in zip(got, wanted, strict=True):
        assert_close(g, w, "f32", 16)


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_that_see_no_key_have_no_gradients(backend: Any) -> None:
    """Whatever comes from above; their keys get none either."""
    q, k, v = (randn(2, 2, n, 16).requires_grad_() for n in (9, 4, 4))
    with prefer(backend):
        o, lse = flash_attention(q, k, v, causal=True, key_lengths=lengths(0, 2), return_lse=True)
    do, dlse = torch.full_like(o, 1e4), torch.full_like(lse, 1e4)
    dq, dk, dv = torch.autograd.grad((o, lse), (q, k, v), (do, dlse))
    assert torch.equal(dq[0], torch.zeros_like(dq[0]))
    assert torch.equal(dq[1, :, :5], torch.zeros_like(dq[1, :, :5]))
    for gradient in (dk, dv):
        assert torch.equal(gradient[0], torch.zeros_like(gradient[0]))
        assert torch.equal(gradient[1, :, 2:], torch.zeros_like(gradient[1, :, 2:]))
        assert gradient[1, :, :2].abs().min() > 0
    assert all(g.isfinite().all() for g in (dq, dk, dv))


@pytest.mark.parametrize("shape", [(0, 2, 2, 5, 5), (1, 2, 2, 0, 5), (1, 2, 2, 5, 0), (1, 0, 0, 5, 5)], ids=str)
def test_gradients_of_nothing(shape: tuple[int, ...]) -> None:
    batch, heads, kv_heads, queries, keys = shape
    q, k, v = (
        randn(batch, h, n, 8).requires_grad_() for h, n in ((heads, queries), (kv_heads, keys), (kv_heads, keys))
    )
    o, lse = flash_attention(q, k, v, return_lse=True)
    detached = [t.detach() for t in (torch.ones_like(o), q, k, v, o, lse)]
    for gradients in (torch.autograd.grad(o.sum(), (q, k, v)), flash_attention_backward(*detached)):
        for gradient, tensor in zip(gradients, (q, k, v), strict=True):
            assert torch.equal(gradient, torch.zeros_like(tensor))


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_two_runs_give_the_same_bits(backend: Any) -> None:
    q, k, v, do = randn(1, 4, 70, 16), randn(1, 1, 50, 16), randn(1, 1, 50, 16), randn(1, 4, 70, 16)
    o, lse = flash_attention(q, k, v, return_lse=True)
    with prefer(backend):
        first, again = (flash_attention_backward(do, q, k, v, o, lse) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("options", OPTIONS)
def test_the_reference_in_float64_against_finite_differences(options: str) -> None:
    given = OPTIONS[options] | {"return_lse": True}
    q, k, v = (randn(2, h, n, 4).double().requires_grad_() for h, n in ((4, 13), (2, 9), (2, 9)))
    names = ("causal", "scale", "window", "key_lengths")
    defaults: dict[str, Any] = {"causal": False, "scale": None, "window": None, "key_lengths": None}
    flags = [(defaults | given)[name] for name in names]

    class Followed(torch.autograd.Function):
        """The forward and the backward op, as autograd joins them for generated kernels."""

        @staticmethod
        def forward(ctx: Any, *tensors: torch.Tensor) -> Any:
            o, lse = flash_attention(*tensors, **given)
            ctx.save_for_backward(*tensors, o, lse)
            return o, lse.masked_fill(lse == -torch.inf, 0.0)

        @staticmethod
        def backward(ctx: Any, do: torch.Tensor, dlse: torch.Tensor) -> Any:
            o, lse = ctx.saved_tensors[3:]
            return tuple(
                torch.ops.kpt.flash_attention_backward(do, *ctx.saved_tensors[:3], o, lse, dlse, *flags, [True] * 3)
            )

    follow: Callable[..., Any] = Followed.apply
    torch.autograd.gradcheck(follow, (q, k, v), fast_mode=True)


def test_the_reference_can_be_differentiated_again() -> None:
    given = [
        t.double().requires_grad_()
        for t in (randn(1, 2, 3, 4), randn(1, 2, 3, 4), randn(1, 1, 5, 4), randn(1, 1, 5, 4))
    ]
    do, q, k, v = given
    o, lse = flash_attention(q.detach(), k.detach(), v.detach(), return_lse=True)
    torch.autograd.gradcheck(
        lambda *t: torch.ops.kpt.flash_attention_backward(*t, o, lse, None, False, None, None, None, [True] * 3),
        (do, q, k, v), fast_mode=True,
    )  # fmt: skip


@pytest.mark.parametrize("flags", [{}, {"causal": True, "window": 3}, {"key_lengths": True}], ids=str)
@pytest.mark.parametrize("needed", [(True, True, True), (False, True, False)], ids=str)
def test_opcheck(flags: dict[str, Any], needed: tuple[bool, ...]) -> None:
    given = [list(needed) if isinstance(a, tuple) else a for a in arguments("flash_attention_backward", **flags)]
    dlse = randn(*given[5].shape)
    for call in (given, (*given[:6], dlse, *given[7:])):
        opcheck(through_torch("flash_attention_backward"), call)


@pytest.mark.parametrize("backend", ["numpy", "triton"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_training_step_runs_the_generated_gradients(dynamic: bool, backend: Any) -> None:
    def loss(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        o, lse = flash_attention(q * 2, k, v, causal=True, return_lse=True)
        return (o.square() + lse[..., None]).sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for length in (5, 8):
        given = [randn(1, h, length, 16).requires_grad_() for h in (4, 2, 2)]
        wanted = torch.autograd.grad(loss(*given), given)
        before = served("flash_attention_backward").get(backend, 0)
        with prefer(backend):
            got = torch.autograd.grad(compiled(*given), given)
        assert served("flash_attention_backward")[backend] == before + 1
        for g, w in zip(got, wanted, strict=True):
            assert_close(g, w, "f32", 16)


def test_a_call_without_gradients_saves_nothing_and_asks_for_nothing() -> None:
    q = randn(1, 2, 5, 16)
    with prefer("numpy"):
        o = flash_attention(q, q, q)
        with torch.no_grad():
            silent = flash_attention(q.requires_grad_(), q, q)
    assert not o.requires_grad
    assert not silent.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_lowers_once(dtype: torch.dtype) -> None:
    q, k, v = (randn(1, 2, n, 16).requires_grad_() for n in (5, 7, 7))
    with prefer("numpy"), torch.autocast("cpu", dtype=dtype):
        o = flash_attention(q, k, v)
        found = torch.autograd.grad(o.float().sum(), (q, k, v))
    assert o.dtype == dtype
    for got, want in zip(found, expected(torch.ones_like(o), None, q, k, v), strict=True):
        assert got.dtype == torch.float32
        assert_close(got, want, "bf16" if dtype == torch.bfloat16 else "f16", 16)


DO, Q, KV = torch.zeros(2, 4, 5, 16), torch.zeros(2, 4, 5, 16), torch.zeros(2, 2, 7, 16)
LSE = torch.zeros(2, 4, 5)
BAD: list[tuple[str, Callable[[], Any]]] = [
    ("do is of shape (2, 4, 5, 8); accepted: (batch, heads, queries, head dim of v), here (2, 4, 5, 16)",
     lambda: flash_attention_backward(DO[..., :8], Q, KV, KV, Q, LSE)),
    ("do is None (NoneType); accepted: a torch.Tensor: (batch, heads, queries, head dim of v)",
     lambda: flash_attention_backward(None, Q, KV, KV, Q, LSE)),  # type: ignore[arg-type]
    ("do is of dtype torch.float16; accepted: the dtype of q, torch.float32",
     lambda: flash_attention_backward(DO.half(), Q, KV, KV, Q, LSE)),
    ("do is on meta; accepted: the device of q, cpu", lambda: flash_attention_backward(DO.to("meta"), Q, KV, KV, Q, LSE)),
    ("o is of shape (2, 4, 4, 16)", lambda: flash_attention_backward(DO, Q, KV, KV, Q[:, :, :4], LSE)),
    ("lse is of shape (2, 4, 4); accepted: (batch, heads, queries), here (2, 4, 5)",
     lambda: flash_attention_backward(DO, Q, KV, KV, Q, LSE[..., :4])),
    ("lse is of dtype torch.float64; accepted: torch.float32",
     lambda: flash_attention_backward(DO, Q, KV, KV, Q, LSE.double())),
    ("dlse is of shape (2, 4)", lambda: flash_attention_backward(DO, Q, KV, KV, Q, LSE, LSE[..., 0])),
    ("dlse is of dtype torch.bfloat16", lambda: flash_attention_backward(DO, Q, KV, KV, Q, LSE, LSE.bfloat16())),
    ("dlse is on meta", lambda: flash_attention_backward(DO, Q, KV, KV, Q, LSE, LSE.to("meta"))),
    ("k is of shape (2, 2, 7, 8)", lambda: flash_attention_backward(DO, Q, KV[..., :8], KV, Q, LSE)),
    ("window is 0", lambda: flash_attention_backward(DO, Q, KV, KV, Q, LSE, window=0)),
    ("needed is (True, True); accepted: three bools, for q, k and v",
     lambda: flash_attention_backward(DO, Q, KV, KV, Q, LSE, needed=(True, True))),
]  # fmt: skip


@pytest.mark.parametrize(("message", "call"), BAD, ids=[m[:40] for m, _ in BAD])
def test_what_does_not_fit_is_named(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(kpt.InputError) as caught:
        call()
    assert f"flash_attention_backward: {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: flash_attention_backward(*[torch.zeros(1, 1, 3, 264)] * 5, torch.zeros(1, 1, 3)), "the head dim is above 256"),
        (lambda: flash_attention_backward(DO, Q, KV, KV, Q, LSE, scale=float("nan")), "scale is NaN"),
        (lambda: flash_attention_backward(*[t.double() for t in (DO, Q, KV, KV, Q, LSE)]), "do not compute on torch.float64"),
    ],
)  # fmt: skip
def test_what_kernels_do_not_serve(call: Callable[[], Any], reason: str) -> None:
    call()
    with prefer("triton"), pytest.raises(kpt.InputError, match=reason):
        call()
