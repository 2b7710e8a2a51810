"""Packed attention: values and gradients against float64, rows outside all entries, what is refused, what PyTorch knows."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.library import opcheck
from torch.nn.functional import pad
from torch.utils.flop_counter import FlopCounterMode

import kpt
from kpt.ops import backends, explain, flash_attention, prefer, recording
from kpt.ops.flash_attention.backward import flash_attention_backward
from kpt.ops.registry import get
from kpt_dsl import targets
from tests.ops.calls import through_torch
from tests.tolerances import assert_close

BACKENDS = ("reference", "numpy", "triton")
HEADS, GROUPS, WIDTH, VALUES = 2, 1, 16, 24
QUERIES, KEYS = (1, 37, 0, 64, 7), (5, 20, 3, 99, 0)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def ends(lengths: tuple[int, ...], first: int = 0, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.tensor([first, *lengths]).cumsum(0).to(dtype)


def exact(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, options: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """(o, lse) in float64, an entry at a time, from the definition of scores."""
    o, lse = [], []
    slopes, sinks = options.get("alibi_slopes"), options.get("sinks")
    unseen = torch.full((q.shape[1],), -math.inf).double() if sinks is None else sinks.double()
    parts = zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist()), strict=True)
    for entry, ((a, b), (c, d)) in enumerate(parts):
        keys, values = (t[c:d].repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(0, 1) for t in (k, v))
        s = q[a:b].transpose(0, 1) @ keys.mT * options.get("scale", q.shape[2] ** -0.5)
        if (cap := options.get("softcap")) is not None:
            s = cap * torch.tanh(s / cap)
        behind = torch.arange(b - a)[:, None] + (d - c) - (b - a) - torch.arange(d - c)
        if slopes is not None:
            s = s - slopes.double().expand(len(cu_q) - 1, -1)[entry, :, None, None] * behind.abs()
        window = options.get("window")
        left, right = (window - 1, window - 1) if isinstance(window, int) else window or (-1, -1)
        hidden = torch.zeros_like(behind, dtype=torch.bool)
        hidden |= (behind < 0) & options.get("causal", False)
        hidden |= (left >= 0) & (behind > left) | (right >= 0) & (-behind > right)
        s = torch.cat((s.masked_fill(hidden, -math.inf), unseen[:, None, None].expand(-1, b - a, 1)), 2)
        total = s.logsumexp(2)
        p = (s - total.masked_fill(total == -math.inf, 0.0)[..., None]).exp()[..., :-1]
        o.append((p @ values).transpose(0, 1))
        lse.append(total)
    return torch.cat(o), torch.cat(lse, 1)


OPTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "causal": {"causal": True},
    "window": {"causal": True, "window": 30},
    "two sides": {"window": (40, 17), "scale": -0.2},
    "scores": {"causal": True, "softcap": 1.5, "sinks": randn(HEADS), "alibi_slopes": randn(HEADS).abs()},
    "slopes of entries": {"alibi_slopes": randn(len(QUERIES), HEADS).abs()},
}
SEEN = ("causal", "two sides", "scores")
"""By Triton's interpreter."""


@pytest.fixture(scope="module")
def expected() -> Callable[[str], Any]:
    """o, lse and gradients of each of the options, once."""
    found: dict[str, Any] = {}

    def of(name: str) -> Any:
        if name not in found:
            q, k, v, sinks, upstream = arguments(name)
            options = OPTIONS[name] | ({} if sinks is None else {"sinks": sinks.double()})
            leaves = [t.detach().double().requires_grad_() for t in (q, k, v, *([] if sinks is None else [sinks]))]
            options |= {} if sinks is None else {"sinks": leaves[3]}
            o, lse = exact(*leaves[:3], ends(QUERIES), ends(KEYS), options)
            total = (o * upstream[0].double()).sum() + (lse * upstream[1].double())[lse.isfinite()].sum()
            found[name] = o.detach(), lse.detach(), torch.autograd.grad(total, leaves)
        return found[name]

    return of


def arguments(name: str) -> Any:
    """q, k, v, sinks or None, and the gradients of what is given."""
    q, k, v = (t.requires_grad_() for t in (
        randn(sum(QUERIES), HEADS, WIDTH), randn(sum(KEYS), GROUPS, WIDTH), randn(sum(KEYS), GROUPS, VALUES),
    ))  # fmt: skip
    sinks = OPTIONS[name].get("sinks")
    upstream = randn(sum(QUERIES), HEADS, VALUES), randn(HEADS, sum(QUERIES))
    return q, k, v, None if sinks is None else sinks.clone().requires_grad_(), upstream


@pytest.mark.parametrize(("name", "backend"), [(n, b) for n in OPTIONS for b in BACKENDS if b != "triton" or n in SEEN])
def test_values_and_gradients(name: str, backend: Any, expected: Callable[[str], Any]) -> None:
    q, k, v, sinks, upstream = arguments(name)
    leaves = [t for t in (q, k, v, sinks) if t is not None]
    dtype = torch.int64 if name == "causal" else torch.int32
    options = OPTIONS[name] | {"cu_seqlens_q": ends(QUERIES, dtype=dtype), "cu_seqlens_k": ends(KEYS), "sinks": sinks}
    with prefer(backend):
        o, lse = flash_attention(q, k, v, return_lse=True, **options)
        found = torch.autograd.grad((o, lse), leaves, upstream)
    want_o, want_lse, wanted = expected(name)
    assert_close(o, want_o, "f32", 99)
    assert torch.equal(lse.isinf(), want_lse.isinf())
    assert_close(lse, want_lse, "f32", 99)
    for got, want in zip(found, wanted, strict=True):
        assert_close(got, want, "f32", 99)


@pytest.mark.parametrize("backend", ["numpy", "triton"])
def test_dq_that_is_added_up(monkeypatch: pytest.MonkeyPatch, backend: Any, expected: Callable[[str], Any]) -> None:
    """The other way to make gradients, as if it had been measured to be the quickest."""
    monkeypatch.setattr(backends, "_quickest", lambda ways, _: len(ways) - 1)
    q, k, v, _, upstream = arguments("causal")
    with prefer(backend):
        found = flash_attention(q, k, v, causal=True, return_lse=True, cu_seqlens_q=ends(QUERIES), cu_seqlens_k=ends(KEYS))
        gradients = torch.autograd.grad(found, (q, k, v), upstream)
    for got, want in zip(gradients, expected("causal")[2], strict=True):
        assert_close(got, want, "f32", 99)


@pytest.mark.parametrize("backend", ["reference", "numpy"])
@pytest.mark.parametrize("name", ["causal", "scores"])
def test_the_op_of_gradients(name: str, backend: Any, expected: Callable[[str], Any]) -> None:
    """With rows of no entry before and behind."""
    q, k, v, sinks, (do, dlse) = arguments(name)
    o, lse, wanted = expected(name)
    do, q, o = (pad(t.detach().float(), (0, 0, 0, 0, 3, 2)) for t in (do, q, o))
    k, v = (pad(t.detach(), (0, 0, 0, 0, 5, 1)) for t in (k, v))
    lse, dlse = pad(lse.float(), (3, 2), value=-math.inf), pad(dlse, (3, 2))
    with prefer(backend):
        found = flash_attention_backward(
            do, q, k, v, o, lse, dlse, needed=(True, True, True, sinks is not None), **OPTIONS[name],
            cu_seqlens_q=ends(QUERIES, 3), cu_seqlens_k=ends(KEYS, 5),
        )  # fmt: skip
    rows = [(3, 2), (5, 1), (5, 1)]
    wanted = [*(pad(t, (0, 0, 0, 0, *around)) for t, around in zip(wanted, rows, strict=False)), *wanted[3:]]
    for got, want in zip(found, wanted, strict=True):
        assert_close(got, want, "f32", 99)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_outside_all_entries(backend: Any) -> None:
    """They see no key, no other row sees them, and their gradients are zeros, whatever lies there."""
    q, k, v = randn(30, 2, 16), randn(40, 2, 16), randn(40, 2, 16)
    inside = {"cu_seqlens_q": ends((4, 0, 16)), "cu_seqlens_k": ends((9, 3, 12)), "causal": True}
    around = {"cu_seqlens_q": ends((4, 0, 16), 3), "cu_seqlens_k": ends((9, 3, 12), 5), "causal": True}
    for t, first, last in ((q, 3, 23), (k, 5, 29), (v, 5, 29)):
        t[:first], t[last:] = math.nan, math.nan
    leaves = [t.requires_grad_() for t in (q, k, v)]
    whole = [t[a:b].detach().requires_grad_() for t, a, b in zip(leaves, (3, 5, 5), (23, 29, 29), strict=True)]
    with prefer(backend):
        wanted, wanted_lse = flash_attention(*whole, return_lse=True, **inside)
        o, lse = flash_attention(*leaves, return_lse=True, **around)
        found = torch.autograd.grad(o[3:23].sum(), leaves)
        gradients = torch.autograd.grad(wanted.sum(), whole)
    assert_close(o[3:23], wanted.double(), "f32", 40)
    assert_close(lse[:, 3:23], wanted_lse.double(), "f32", 40)
    assert not o[:3].any()
    assert not o[23:].any()
    assert bool((lse[:, [0, 1, 2, *range(23, 30)]] == -math.inf).all())
    for got, want, first in zip(found, gradients, (3, 5, 5), strict=True):
        assert_close(got[first : first + len(want)], want.double(), "f32", 40)
        assert not got[:first].any()
        assert not got[first + len(want) :].any()


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0), (1,) * 3, (0, 1, 2) * 400], ids=len)
@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_none_empty_and_many(lengths: tuple[int, ...], backend: Any) -> None:
    """Of no queries too."""
    rows = sum(lengths)
    q, k = (randn(rows, 1, 16).requires_grad_() for _ in range(2))
    wide = [t.detach().double().requires_grad_() for t in (q, k)]
    wanted = exact(*wide, wide[1], ends(lengths), ends(lengths), {"causal": True})[0] if rows else wide[0] * wide[1]
    with prefer(backend if rows else "reference"):
        o = flash_attention(q, k, k, causal=True, cu_seqlens_q=ends(lengths))
        found = torch.autograd.grad(o.sum(), (q, k))
    assert o.shape == q.shape
    for got, want in zip((o, *found), (wanted, *torch.autograd.grad(wanted.sum(), wide)), strict=True):
        assert (got - want).abs().amax().item() < 1e-5 if rows else got.shape == want.shape


def test_no_keys() -> None:
    q, k = randn(5, 2, 16), randn(0, 2, 16)
    o, lse = flash_attention(q, k, k, return_lse=True, cu_seqlens_q=ends((2, 3)), cu_seqlens_k=ends((0, 0)))
    assert not o.any()
    assert bool((lse == -math.inf).all())


def test_rows_laid_out_otherwise() -> None:
    """Heads first, and of one tensor with what else is projected; o is laid out as q."""
    for q, k, v in (randn(70, 3, 2, 16).unbind(1), randn(3, 2, 70, 16).transpose(1, 2), randn(3, 70, 16, 2).mT):
        with prefer("numpy"):
            o = flash_attention(q, k, v, cu_seqlens_q=ends((37, 33)))
        wanted = flash_attention(*(t.contiguous() for t in (q, k, v)), cu_seqlens_q=ends((37, 33)))
        assert_close(o, wanted.double(), "f32", 37)
        assert o.stride() == (torch.empty_like(q) if q.stride(2) == 1 else wanted).stride()


def test_opcheck() -> None:
    for op in ("flash_attention", "flash_attention_backward"):
        dims = {"B": 3, "H": 4, "G": 2, "M": 5, "N": 7, "D": 16}
        given = tuple(
            list(a) if isinstance(a, tuple) else a
            for a in get(op).arguments(dims, "f32", "cpu", packed=True, causal=True, sinks=True, alibi=True)
        )
        opcheck(through_torch(op), given)
        if op == "flash_attention":
            for t in given[:3]:
                t.requires_grad_()
            opcheck(through_torch(op), given)


@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_compiled(backend: Any) -> None:
    """For all lengths, and all longest ones, at once."""

    def loss(q: torch.Tensor, k: torch.Tensor, cu: torch.Tensor, longest: int) -> torch.Tensor:
        found = flash_attention(q, k, k, causal=True, cu_seqlens_q=cu, max_seqlen_q=longest, max_seqlen_k=longest)
        assert isinstance(found, torch.Tensor)
        return found.square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in ((5, 9), (8, 0, 13)):
        given = [t.requires_grad_() for t in (randn(sum(lengths), 4, 16), randn(sum(lengths), 2, 16))]
        with prefer("reference"):
            wanted = torch.autograd.grad(loss(*given, ends(lengths), 13), given)
        with prefer(backend):
            got = torch.autograd.grad(compiled(*given, ends(lengths), max(lengths)), given)
        for g, w in zip(got, wanted, strict=True):
            assert_close(g, w.double(), "f32", 13)


def test_calls_are_noted(tmp_path: Path) -> None:
    """And known again for a GPU, without where entries end."""
    q = randn(30, 4, 16)
    with recording() as calls, prefer("numpy"):
        flash_attention(q, q, q, cu_seqlens_q=ends((10, 20)))
    calls.save(tmp_path / "calls.json")
    (call,) = type(calls).load(tmp_path / "calls.json")
    kernels = [i.kernel.name for i in call.instances(targets.get("nvidia-h200"))]
    assert kernels == ["flash_attention_ends", "flash_attention_fwd"]


def test_products_are_counted_by_entry() -> None:
    q = randn(30, 4, 16)
    with FlopCounterMode(display=False) as counter, prefer("numpy"):
        flash_attention(q, q[:24, :2], q[:24, :2], cu_seqlens_q=ends((10, 20)), cu_seqlens_k=ends((24, 0)))
    assert counter.get_total_flops() == 2 * 2 * 4 * 16 * 10 * 24
    op, meta = get("flash_attention"), [torch.empty(30, 4, 16, device="meta")] * 3
    assert op.flops is not None
    others = (False, None, None, None, False, None, None, None, None, None, torch.empty(4, dtype=torch.int32, device="meta"))
    assert op.flops(*meta, *others) == 2 * 2 * 4 * 16 * 3 * 10 * 10


def test_heads_are_dealt_out_and_entries_are_not() -> None:
    given = get("flash_attention").arguments(
        {"B": 3, "H": 4, "G": 2, "M": 5, "N": 7, "D": 16}, "f32", "meta", packed=True, sinks=True, alibi=True
    )
    (way,) = get("flash_attention").shardings(2, *given)
    assert list(way.outputs) == [1, 0]
    *tensors, slopes, sinks, cu_q, cu_k = [p for p in way.inputs if p is not None]
    assert (tensors, slopes, sinks, cu_q, cu_k) == ([1, 1, 1], 0, 0, "whole", "whole")
    given = get("flash_attention_backward").arguments(
        {"B": 3, "H": 4, "G": 2, "M": 5, "N": 7, "D": 16}, "f32", "meta", packed=True
    )
    (way,) = get("flash_attention_backward").shardings(2, *given)
    assert list(way.outputs) == [1, 1, 1]
    assert list(way.inputs)[:7] == [1, 1, 1, 1, 1, 0, 0]


Q, KV = torch.zeros(9, 4, 16), torch.zeros(7, 2, 16)
CU = ends((2, 0, 5))
BAD: list[tuple[str, dict[str, Any]]] = [
    ("key_lengths is given; accepted: None with cu_seqlens_q: the keys of an entry end where", {"key_lengths": CU}),
    ("key_starts is given; accepted: None with cu_seqlens_q: the keys of an entry begin where", {"key_starts": CU}),
    ("mask is given; accepted: None with cu_seqlens_q, which keeps entries apart", {"mask": torch.zeros(9, 7)}),
    ("q is of shape (1, 9, 4, 16), rank 4; accepted: rank 3, (queries of all entries, heads, head dim)", {"q": Q[None]}),
    ("k is of shape (7, 2, 8); accepted: the head dim of q, (keys, key-value heads, 16)", {"k": KV[..., :8]}),
    ("v is of shape (6, 2, 16); accepted: the keys and heads of k, (7, 2, 'any head dim')", {"v": KV[:6]}),
    ("q is of 3 heads; accepted: a multiple of the 2 key-value heads of k", {"q": Q[:, :3]}),
    ("cu_seqlens_q is of shape (2, 4), rank 2; accepted: (entries + 1,)", {"cu_seqlens_q": CU.expand(2, 4)}),
    ("cu_seqlens_q is of dtype torch.float32; accepted: torch.int32, torch.int64", {"cu_seqlens_q": CU.float()}),
    ("cu_seqlens_q is [0, 2] (list); accepted: a torch.Tensor: (entries + 1,)", {"cu_seqlens_q": [0, 2]}),
    ("cu_seqlens_q is empty; accepted: (entries + 1,), where each entry begins", {"cu_seqlens_q": CU[:0]}),
    ("cu_seqlens_k is of shape (3,); accepted: the shape of cu_seqlens_q, (4,)", {"cu_seqlens_k": CU[:3]}),
    ("cu_seqlens_k is on meta; accepted: the device of q, cpu", {"cu_seqlens_k": CU.to("meta")}),
    ("alibi_slopes is of shape (2, 4); accepted: (heads,) or (batch, heads), here (4,) or (3, 4)",
     {"alibi_slopes": torch.zeros(2, 4)}),
]  # fmt: skip


@pytest.mark.parametrize(("message", "options"), BAD, ids=[m[:30] for m, _ in BAD])
def test_what_does_not_fit_is_named(message: str, options: dict[str, Any]) -> None:
    given: dict[str, Any] = {"q": Q, "k": KV, "v": KV, "cu_seqlens_q": CU} | options
    with pytest.raises(kpt.InputError) as caught:
        flash_attention(**given)
    assert f"flash_attention: {message}" in str(caught.value)


def test_keys_that_are_packed_alone() -> None:
    with pytest.raises(kpt.InputError, match="cu_seqlens_k is given; accepted: None without cu_seqlens_q"):
        flash_attention(*(t.transpose(0, 1)[None] for t in (Q, KV, KV)), cu_seqlens_k=CU)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("cu_seqlens_q", [0, 5, 3, 9], "cu_seqlens_q[1] is 5 and cu_seqlens_q[2] is 3"),
        ("cu_seqlens_k", [0, 5, 3, 7], "cu_seqlens_k[1] is 5 and cu_seqlens_k[2] is 3"),
        ("cu_seqlens_q", [0, 5, 5, 10], "cu_seqlens_q[3] is 10; where groups begin must ascend from 0 or more to 9 or less"),
        ("cu_seqlens_k", [-1, 5, 5, 7], "cu_seqlens_k[0] is -1"),
    ],
)
def test_ends_that_descend_are_named(name: str, bad: list[int], message: str, backend: Any) -> None:
    cu = {"cu_seqlens_q": ends((2, 0, 5)), "cu_seqlens_k": ends((2, 0, 5))} | {name: torch.tensor(bad, dtype=torch.int32)}
    calls: dict[str, Callable[[], Any]] = {
        "flash_attention": lambda: flash_attention(Q, KV, KV, **cu),
        "flash_attention_backward": lambda: flash_attention_backward(Q, Q, KV, KV, Q, Q[..., 0].T, **cu),
    }
    for op, call in calls.items():
        with prefer(backend), pytest.raises(kpt.InputError) as caught:
            call()
        assert f"{op}: {message}" in str(caught.value)


def test_no_tpu_does_it() -> None:
    """Its blocks lie at multiples of their size."""
    with prefer("pallas"):
        (kernel,) = explain("flash_attention", Q, KV, KV, cu_seqlens_q=CU).kernels
    assert "blocks of a TPU" in kernel.config
