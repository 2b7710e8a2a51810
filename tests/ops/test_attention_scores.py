"""What scores of attention may have (caps, masks, slopes, sinks, left padding, windows of two sides): every backend against
float64 autograd through plain loops, what is refused, and what kernels leave to PyTorch."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.library import opcheck

import kpt
from kpt.ops import explain, flash_attention, prefer
from kpt.ops.flash_attention.backward import flash_attention_backward
from kpt.ops.registry import get
from kpt_dsl import targets
from kpt_dsl.emit import emit
from kpt_dsl.space import space
from tests.ops import naive
from tests.ops.calls import arguments, through_torch
from tests.tolerances import assert_close

BACKENDS = ("reference", "numpy", "triton", "pallas")
LEARNED = ("sinks", "mask")


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def hiding(*shape: int) -> torch.Tensor:
    """A mask that is added, -inf in a third of the places and everywhere in the first row."""
    mask = randn(*shape)
    mask[mask < -0.4] = -math.inf
    mask[..., 0, :] = -math.inf
    return mask


M, N = 37, 70
OPTIONS: dict[str, dict[str, Any]] = {
    "softcap": {"softcap": 1.5, "causal": True},
    "mask of bools": {"mask": hiding(2, 1, M, N) > -1.0, "causal": True},
    "mask of keys": {"mask": randn(N) > -0.4},
    "alibi": {"alibi_slopes": randn(2).abs(), "causal": True},
    "alibi of batch entries": {"alibi_slopes": randn(2, 2).abs()},
    "sinks": {"sinks": randn(2), "causal": True},
    "left padding": {"key_starts": torch.tensor([3, N]), "causal": True},
    "both paddings": {"key_starts": torch.tensor([0, 40]), "key_lengths": torch.tensor([N - 2, 60])},
    "window": {"window": (3, 6)},
    "window ahead": {"window": (-1, 2)},
    "window behind": {"window": (4, -1)},
    "added mask": {"mask": hiding(2, M, N), "causal": True},
    "added to all alike": {"mask": hiding(2, 1, M, 1), "window": 9},
    "everything": {
        "softcap": 2.0, "mask": hiding(2, 1, M, N), "alibi_slopes": randn(2).abs(), "sinks": randn(2), "scale": -0.3,
        "key_starts": torch.tensor([1, 2]), "key_lengths": torch.tensor([N, 60]), "window": (25, 13),
    },
}  # fmt: skip


def exact(do: torch.Tensor, dlse: torch.Tensor, q: Any, k: Any, v: Any, learned: Any, options: Any) -> Any:
    """o, lse and gradients in float64, through plain loops."""
    given = [t.detach().double().requires_grad_() for t in (q, k, v, *learned.values())]
    o, lse = naive.attention(*given[:3], **(options | dict(zip(learned, given[3:], strict=True))))
    total = (o * do.double()).sum() + (lse * dlse.double())[lse.isfinite()].sum()
    return o, lse, torch.autograd.grad(total, given)


SLOW = ("triton", "pallas")
"""Interpreters, which see a few of them."""

SEEN = ("softcap", "mask of bools", "alibi", "both paddings", "window", "everything")


@pytest.mark.parametrize(("name", "backend"), [(n, b) for n in OPTIONS for b in BACKENDS if b not in SLOW or n in SEEN])
def test_values_and_gradients(name: str, backend: Any) -> None:
    options = OPTIONS[name]
    q, k, v = (t.requires_grad_() for t in (randn(2, 2, M, 16), randn(2, 1, N, 16), randn(2, 1, N, 24)))
    learned = {
        n: t.clone().requires_grad_()
        for n in LEARNED
        if (t := options.get(n)) is not None and t.is_floating_point() and not (n == "mask" and backend == "pallas")
    }
    do, dlse = randn(2, 2, M, 24), randn(2, 2, M)
    with prefer(backend):
        o, lse = flash_attention(q, k, v, **(options | learned), return_lse=True)
        found = torch.autograd.grad((o, lse), (q, k, v, *learned.values()), (do, dlse))
    want_o, want_lse, wanted = exact(do, dlse, q, k, v, learned, options)
    assert_close(o, want_o, "f32", N)
    assert torch.equal(lse == -math.inf, want_lse == -math.inf)
    assert_close(lse, want_lse, "f32", N)
    for got, want, given in zip(found, wanted, (q, k, v, *learned.values()), strict=True):
        assert got.dtype == given.dtype
        assert_close(got, want, "f32", M)


@pytest.mark.parametrize("keys", [5, 32])
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
def test_a_cap_leaves_small_scores_their_digits(backend: Any, keys: int) -> None:
    """Far below the cap they stay what they are: what a tangent is off by near zero is multiplied with the cap."""
    options: dict[str, Any] = {"softcap": 300.0, "scale": 1.0}
    q, k, v = (t.requires_grad_() for t in (0.03 * randn(1, 2, 9, 8), randn(1, 1, keys, 8), randn(1, 1, keys, 8)))
    do, dlse = randn(1, 2, 9, 8), randn(1, 2, 9)
    with prefer(backend):
        first = explain("flash_attention", q, k, v, **options).kernels[0].kernel
        o, lse = flash_attention(q, k, v, **options, return_lse=True)
        found = torch.autograd.grad((o, lse), (q, k, v), (do, dlse))
    assert first == ("flash_attention_fwd" if keys == 5 else "flash_attention_parts")
    want_o, want_lse, wanted = exact(do, dlse, q, k, v, {}, options)
    for got, want in zip((o, lse, *found), (want_o, want_lse, *wanted), strict=True):
        assert_close(got, want, "f32", keys)


@pytest.mark.parametrize(("dtype", "way"), [("f32", "tanh"), ("bf16", "sigmoid"), ("f16", "sigmoid")])
@pytest.mark.parametrize(("op", "queries"), [("flash_attention", 64), ("flash_attention", 4), ("flash_attention_backward", 64)])
def test_half_precision_is_capped_the_quicker_way(op: str, queries: int, dtype: str, way: str) -> None:
    dims, chip = {"B": 1, "H": 2, "G": 1, "M": queries, "N": 1024, "D": 64}, targets.get("nvidia-h200")
    instances = get(op).instances(dims, dtype, softcap=30.0)
    texts = [emit(one, chip, space(one, chip).first).text for one in instances]
    assert {word for text in texts for word in ("tanh", "sigmoid") if f"{word}(" in text} == {way}


def test_what_is_hidden_may_hold_anything() -> None:
    """Memory before the first key and behind the last one that nobody has written."""
    q, k, v = randn(1, 2, M, 16), randn(1, 2, N, 16), randn(1, 2, N, 16)
    starts, lengths = torch.tensor([20]), torch.tensor([61])
    wanted = naive.attention(q, k, v, causal=True, key_starts=starts, key_lengths=lengths)[0]
    k[:, :, :20], v[:, :, 61:], k[:, :, 61:], v[:, :, :20] = (math.nan,) * 4
    for backend in BACKENDS:
        given = [t.clone().requires_grad_() for t in (q, k, v)]
        with prefer(backend):
            o = flash_attention(*given, causal=True, key_starts=starts, key_lengths=lengths)
            found = torch.autograd.grad(o.sum(), given)
        assert_close(o, wanted, "f32", N)
        assert all(g.isfinite().all() for g in found), backend


@pytest.mark.parametrize("flags", [
    {"softcap": 2.0, "mask": "added", "sinks": True}, {"mask": "seen", "alibi": True, "key_starts": True, "window": (3, 1)},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("op", ["flash_attention", "flash_attention_backward"])
def test_opcheck(op: str, flags: dict[str, Any]) -> None:
    given = tuple(list(a) if isinstance(a, tuple) else a for a in arguments(op, **flags))
    opcheck(through_torch(op), given)
    if op == "flash_attention":
        for t in (*given[:3], *given[9:12]):
            if t is not None and t.is_floating_point() and t is not given[10]:
                t.requires_grad_()
        opcheck(through_torch(op), given)


def test_what_is_left_out_of_a_call_of_torchs_op_is_absent() -> None:
    q = randn(1, 2, 5, 16).requires_grad_()
    with prefer("numpy"):
        (o,) = torch.ops.kpt.flash_attention(q, q, q, True, None, 3, None, False)
        wanted = flash_attention(q, q, q, causal=True, window=3)
    assert torch.equal(o, wanted)
    assert torch.equal(*(torch.autograd.grad(t.sum(), q)[0] for t in (o, wanted)))


@pytest.mark.parametrize("backend", ["numpy", "triton"])
def test_compiled(backend: Any) -> None:
    def loss(q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
        return flash_attention(q, k, k, mask=bias, sinks=sinks, softcap=5.0, window=(k.shape[2], 2)).square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for m, n in ((5, 9), (8, 13)):
        given = [t.requires_grad_() for t in (randn(1, 4, m, 16), randn(1, 2, n, 16), randn(m, n), randn(4))]
        with prefer("reference"):
            wanted = torch.autograd.grad(loss(*given), given)
        with prefer(backend):
            got = torch.autograd.grad(compiled(*given), given)
        for g, w in zip(got, wanted, strict=True):
            assert_close(g, w, "f32", n)


def test_autocast_leaves_slopes_and_sinks_as_they_are() -> None:
    q, slopes, sinks = randn(1, 2, 300, 16), torch.tensor([1.001, 0.5]), torch.tensor([0.1, 0.2])
    wanted = flash_attention(q.bfloat16(), q.bfloat16(), q.bfloat16(), alibi_slopes=slopes, sinks=sinks)
    with torch.autocast("cpu"):
        got = flash_attention(q, q, q, alibi_slopes=slopes, sinks=sinks)
        through = torch.ops.kpt.flash_attention(
            q, q, q, False, None, None, None, False, None, None, slopes, sinks
        )[0]
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, wanted)
    assert torch.equal(through, wanted)


def test_windows_that_mean_the_same_are_one_kernel() -> None:
    q = randn(1, 2, 9, 16)
    flags = [
        dict(window=(3, 3)), dict(window=4), dict(window=(3, 0)), dict(window=(3, 5), causal=True), dict(window=4, causal=True),
    ]  # fmt: skip
    with prefer("numpy"):
        texts = [{k.binary for k in explain("flash_attention", q, q, q, **given).kernels} for given in flags]
    assert texts[0] == texts[1]
    assert texts[2] == texts[3] == texts[4]


Q, KV = torch.zeros(2, 4, 5, 16), torch.zeros(2, 2, 7, 16)
BAD: list[tuple[str, dict[str, Any]]] = [
    ("softcap is 0; accepted: None, or a finite number above zero", {"softcap": 0}),
    ("softcap is -1.0;", {"softcap": -1.0}),
    ("softcap is nan;", {"softcap": math.nan}),
    ("softcap is 'x' (str); accepted: a number", {"softcap": "x"}),
    ("mask is of shape (2, 4, 5, 6); accepted: what broadcasts to (batch, heads, queries, keys), here (2, 4, 5, 7)",
     {"mask": torch.zeros(2, 4, 5, 6)}),
    ("mask is of shape (1, 2, 4, 5, 7)", {"mask": torch.zeros(1, 2, 4, 5, 7)}),
    ("mask is of dtype torch.int64; accepted: torch.bool, ", {"mask": torch.zeros(5, 7, dtype=torch.int64)}),
    ("mask is on meta; accepted: the device of q, cpu", {"mask": torch.zeros(5, 7, device="meta")}),
    ("mask is True (bool); accepted: a torch.Tensor", {"mask": True}),
    ("alibi_slopes is of shape (3,); accepted: (heads,) or (batch, heads), here (4,) or (2, 4)",
     {"alibi_slopes": torch.zeros(3)}),
    ("alibi_slopes is of dtype torch.float16", {"alibi_slopes": torch.zeros(4).half()}),
    ("sinks is of shape (2, 4); accepted: (heads,), here (4,)", {"sinks": torch.zeros(2, 4)}),
    ("sinks is of dtype torch.int32", {"sinks": torch.zeros(4, dtype=torch.int32)}),
    ("key_starts is of shape (3,); accepted: (batch,), here (2,)", {"key_starts": torch.zeros(3, dtype=torch.int32)}),
    ("key_starts is of dtype torch.float32; accepted: torch.int32, torch.int64", {"key_starts": torch.zeros(2)}),
    ("window is (3,); accepted: None, a whole number of keys, 1 or more, or a pair (behind, ahead)", {"window": (3,)}),
    ("window is (3, -2); accepted", {"window": (3, -2)}),
    ("window is (3, 1.5); accepted", {"window": (3, 1.5)}),
]  # fmt: skip


@pytest.mark.parametrize(("message", "options"), BAD, ids=[m[:30] for m, _ in BAD])
def test_what_does_not_fit_is_named(message: str, options: dict[str, Any]) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "flash_attention": lambda: flash_attention(Q, KV, KV, **options),
        "flash_attention_backward": lambda: flash_attention_backward(Q, Q, KV, KV, Q, Q[..., 0], **options),
    }
    for op, call in calls.items():
        with pytest.raises(kpt.InputError) as caught:
            call()
        assert f"{op}: {message}" in str(caught.value)


def test_gradients_that_there_are_none_of() -> None:
    lse = Q[..., 0]
    with pytest.raises(kpt.InputError, match=r"needed is .*; accepted: False for sinks, which has no gradient"):
        flash_attention_backward(Q, Q, KV, KV, Q, lse, needed=(True, True, True, True))
    with pytest.raises(kpt.InputError, match="accepted: False for mask, which has no gradient"):
        flash_attention_backward(Q, Q, KV, KV, Q, lse, needed=(True,) * 3 + (False, True), mask=torch.ones(5, 7).bool())


def test_what_kernels_leave_to_pytorch() -> None:
    slopes = torch.ones(4, requires_grad=True)
    o = flash_attention(randn(2, 4, 5, 16), KV, randn(2, 2, 7, 16), alibi_slopes=slopes)
    (gradient,) = torch.autograd.grad(o.sum(), slopes)
    assert gradient.abs().max() > 0
    with prefer("triton"), pytest.raises(kpt.InputError, match="no kernel makes the gradient of alibi_slopes"):
        flash_attention(Q, KV, KV, alibi_slopes=slopes)
    with prefer("triton"), pytest.raises(kpt.InputError, match="softcap is below"):
        flash_attention(Q, KV, KV, softcap=1e-40)
    with prefer("triton"), pytest.raises(kpt.InputError, match=r"do not compute on torch\.float64"):
        flash_attention(Q, KV, KV, sinks=torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize(
    "flags", [{"softcap": 3.0, "sinks": True}, {"mask": "seen"}, {"alibi": True, "key_starts": True}], ids=str
)
def test_what_is_absent_leaves_no_trace(flags: dict[str, Any]) -> None:
    """No tensor of another feature is an argument of what is generated."""
    (instance,) = get("flash_attention").instances({"B": 2, "H": 4, "G": 2, "M": 64, "N": 64, "D": 64}, "bf16", **flags)
    present = {tensor.name for tensor in instance.lower({}).tensors}
    extra = {"sinks": "sinks", "mask": "seen", "alibi": "slopes", "key_starts": "key_starts"}
    assert present == {"q", "k", "v", "o", "lse", *(extra[name] for name in flags if name in extra)}
