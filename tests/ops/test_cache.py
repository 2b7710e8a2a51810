"""Attention over a cache, on every backend against plain loops in float64: queries that stand at each batch entry's own end,
keys in one piece and in pages."""

from functools import cache
from typing import Any

import pytest
import torch
from torch.library import opcheck

import kpt
import kpt_dsl as kd
from kpt.ops import explain, flash_attention, prefer
from kpt.ops.flash_attention.backward import flash_attention_backward
from kpt.ops.flash_attention.scores import Scores
from kpt.ops.registry import get
from kpt_dsl import targets
from kpt_dsl.emit import emit
from kpt_dsl.space import space
from tests.ops import naive
from tests.ops.calls import arguments, through_torch
from tests.tolerances import assert_close

BACKENDS = ("reference", "numpy", "triton", "pallas")
CAPACITY = 256
LENGTHS = torch.tensor([1, 37, 199, CAPACITY + 3], dtype=torch.int32)
"""Fewer keys than queries, none that is level with a tile, and more than there is room for, which counts as all."""


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


OPTIONS: dict[str, dict[str, Any]] = {
    "causal": {"causal": True},
    "not causal": {},
    "window": {"window": 19, "causal": True},
    "sides": {"window": (30, 2)},
    "left padding": {"causal": True, "key_starts": torch.tensor([0, 5, 40, 199])},
    "cap and sinks": {"causal": True, "softcap": 1.5, "sinks": randn(2)},
    "alibi": {"causal": True, "alibi_slopes": randn(2).abs()},
}


def call(queries: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return randn(4, 2, queries, 24), randn(4, 1, CAPACITY, 24), randn(4, 1, CAPACITY, 16)


@cache
def exact(options: str, queries: int) -> tuple[torch.Tensor, torch.Tensor]:
    """In plain loops; of many queries, which take long in these, the reference, which is held against them for few."""
    if queries <= 5:
        return naive.attention(*call(queries), cache_lengths=LENGTHS.tolist(), **OPTIONS[options])
    given = {n: t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for n, t in OPTIONS[options].items()}
    q, k, v = (t.double() for t in call(queries))
    o, lse = flash_attention(q, k, v, cache_lengths=LENGTHS, return_lse=True, **given)
    return o, lse


SEEN = {1: ("window", "left padding"), 5: tuple(OPTIONS), 40: ("causal", "sides", "alibi")}
"""The options of some numbers of queries."""

SLOW = {"triton": {1: "window", 5: "sides", 40: "alibi"}, "pallas": {1: "window", 5: "causal", 40: "sides"}}
"""Of the interpreters, which see a few."""


@pytest.mark.parametrize(
    ("backend", "options", "queries"),
    [
        (backend, options, queries)
        for queries, seen in SEEN.items()
        for options in seen
        for backend in BACKENDS
        if (backend not in SLOW or SLOW[backend][queries] == options) and (backend, queries) != ("reference", 40)
    ],
)
def test_queries_stand_at_each_entrys_own_end(backend: Any, options: str, queries: int) -> None:
    given = OPTIONS[options] | {"cache_lengths": LENGTHS}
    (q, k, v), (wanted, wanted_lse) = call(queries), exact(options, queries)
    for b, length in enumerate(LENGTHS):
        k[b, :, length:], v[b, :, length:] = float("nan"), float("inf")  # memory that nobody has written
    with prefer(backend):
        o, lse = flash_attention(q, k, v, return_lse=True, **given)
    assert_close(o, wanted, "f32", CAPACITY)
    assert torch.equal(lse.isinf(), wanted_lse.isinf())
    assert_close(lse[lse.isfinite()], wanted_lse[lse.isfinite()], "f32", CAPACITY)


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        *(("numpy", options) for options in ("causal", "sides", "alibi")),
        ("reference", "alibi"),
        ("triton", "sides"),
        ("pallas", "causal"),
    ],
)
def test_gradients_at_each_entrys_own_end(backend: Any, options: str) -> None:
    given = OPTIONS[options] | {"cache_lengths": torch.tensor([7, 37, 70])}
    q, k, v = (t.requires_grad_() for t in (randn(3, 2, 9, 16), randn(3, 1, 70, 16), randn(3, 1, 70, 16)))
    do, dlse = randn(3, 2, 9, 16), randn(3, 2, 9)
    with prefer(backend):
        o, lse = flash_attention(q, k, v, return_lse=True, **given)
        found = torch.autograd.grad((o, lse), (q, k, v), (do, dlse))
    exact = [t.detach().double().requires_grad_() for t in (q, k, v)]
    o, lse = naive.attention(*exact, **given)
    for got, want in zip(found, torch.autograd.grad((o * do).sum() + (lse * dlse)[lse.isfinite()].sum(), exact), strict=True):
        assert_close(got, want, "f32", 70)


def test_lengths_that_exclude_each_other_are_named() -> None:
    q, lengths = torch.zeros(2, 2, 5, 16), torch.ones(2, dtype=torch.int32)
    calls = (
        lambda: flash_attention(q, q, q, key_lengths=lengths, cache_lengths=lengths),
        lambda: flash_attention_backward(q, q, q, q, q, q[..., 0], key_lengths=lengths, cache_lengths=lengths),
    )
    for call in calls:
        with pytest.raises(kpt.InputError, match="cache_lengths is given; accepted: one of key_lengths and cache_lengths"):
            call()
    with pytest.raises(kpt.InputError, match=r"cache_lengths is of shape \(1,\)"):
        flash_attention(q, q, q, cache_lengths=lengths[:1])
    with pytest.raises(kpt.InputError, match=r"cache_lengths is of dtype torch\.int16"):
        flash_attention(q, q, q, cache_lengths=lengths.short())


def test_packed_calls_have_no_cache() -> None:
    q, cu = torch.zeros(5, 2, 16), torch.tensor([0, 5])
    for name, value in (("cache_lengths", cu[1:]), ("block_table", torch.zeros(1, 1, dtype=torch.int32))):
        with pytest.raises(kpt.InputError, match=f"{name} is given; accepted: None with cu_seqlens_q"):
            flash_attention(q, q, q, cu_seqlens_q=cu, **{name: value})


def test_lengths_are_read_on_the_device() -> None:
    """Other lengths make no other kernel, so that a CUDA graph follows them."""
    q, k = randn(2, 2, 5, 16), randn(2, 2, 50, 16)
    with prefer("numpy"):
        texts = {
            explain("flash_attention", q, k, k, causal=True, cache_lengths=torch.tensor(lengths)).kernels[0].binary
            for lengths in ([1, 50], [33, 2])
        }
    assert len(texts) == 1


# ------------------------------------------------------------------ pages
def in_pages(t: torch.Tensor, page: int, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys or values in shuffled pages of a pool of which some are nobody's, and the table, which behind the lengths holds
    what is no page. What nobody has written is NaN."""
    batch, groups, keys, width = t.shape
    most = keys // page
    pool = torch.full((batch * most + 3, page, groups, width), float("nan"), dtype=t.dtype)
    table = torch.randperm(len(pool), generator=torch.Generator().manual_seed(page), dtype=torch.int32)[: batch * most]
    written = torch.arange(keys) < lengths[:, None]
    pool[table.long()] = (
        t.masked_fill(~written[:, None, :, None], float("nan")).transpose(1, 2).reshape(batch * most, page, groups, width)
    )
    return pool, table.view(batch, most).masked_fill(~written[:, ::page], 2**30)


@pytest.mark.parametrize(
    ("backend", "options", "queries", "page"),
    [
        (backend, options, queries, page)
        for page in (16, 64)
        for queries, seen in ((1, ("causal", "left padding")), (5, ("window", "cap and sinks")), (40, ("causal", "sides")))
        for options in (*seen, *(("alibi",) if queries == 5 and page == 16 else ()))
        for backend in ("numpy", *(("reference",) if queries < 40 else ()), *(("triton",) if options in seen[:1] else ()))
    ],
)
def test_pages(backend: Any, options: str, queries: int, page: int) -> None:
    (q, k, v), (wanted, wanted_lse) = call(queries), exact(options, queries)
    pool, table = in_pages(torch.cat((k, v), 3), page, LENGTHS)
    given = OPTIONS[options] | {"cache_lengths": LENGTHS, "block_table": table}
    with prefer(backend):
        o, lse = flash_attention(q, pool[..., :24], pool[..., 24:], return_lse=True, **given)  # strides of a larger tensor
    assert_close(o, wanted, "f32", CAPACITY)
    assert torch.equal(lse.isinf(), wanted_lse.isinf())
    assert_close(lse[lse.isfinite()], wanted_lse[lse.isfinite()], "f32", CAPACITY)


def test_pages_of_any_size_with_a_mask() -> None:
    q, k, v = randn(2, 2, 3, 16), randn(2, 2, 60, 16), randn(2, 2, 60, 16)
    mask, lengths = randn(2, 1, 3, 60) > 0, torch.tensor([60, 31])
    (keys, table), (values, _) = (in_pages(t, 20, lengths) for t in (k, v))
    with prefer("numpy"):
        o = flash_attention(q, keys, values, mask=mask, cache_lengths=lengths, block_table=table)
    assert_close(o, naive.attention(q, k, v, mask=mask, cache_lengths=lengths.tolist())[0], "f32", 60)


def test_gradients_of_pages_are_pytorchs() -> None:
    """Of pages that two entries have in common, too; it is said that no kernel makes them."""
    lengths, table = torch.tensor([40, 19]), torch.tensor([[3, 0, 2], [3, 1, 99]], dtype=torch.int32)
    q, k, v = (t.requires_grad_() for t in (randn(2, 4, 5, 16), randn(4, 16, 2, 16), randn(4, 16, 2, 9)))
    given: dict[str, Any] = {"causal": True, "cache_lengths": lengths, "block_table": table}
    do = randn(2, 4, 5, 9)
    with prefer("numpy"), torch.no_grad():
        o, lse = flash_attention(q, k, v, return_lse=True, **given)
    of_op = flash_attention_backward(do, q, k, v, o, lse, **given)
    of_autograd = torch.autograd.grad(flash_attention(q, k, v, **given), (q, k, v), do)
    exact = [t.detach().double().requires_grad_() for t in (q, k, v)]
    of_entries = [t[table.clamp(max=3).long()].flatten(1, 2).transpose(1, 2) for t in exact[1:]]
    whole = naive.attention(exact[0], *of_entries, causal=True, cache_lengths=lengths.tolist())[0]
    wanted = torch.autograd.grad(whole, exact, do.double())
    for found in (of_op, of_autograd):
        for got, want in zip(found, wanted, strict=True):
            assert_close(got, want, "f32", 48)
    said = "no kernel makes gradients of keys and values in pages"
    with prefer("numpy"), torch.no_grad(), pytest.raises(kpt.InputError, match=said):
        flash_attention_backward(do, q, k, v, o, lse, **given)


@pytest.mark.parametrize("backend", ["numpy", "triton"])
@pytest.mark.parametrize("bad", [9, -1])
def test_pages_that_the_pool_does_not_have_are_named(backend: Any, bad: int) -> None:
    """Among those that count: within ``kd.checking()`` on a GPU too."""
    q, k, table = randn(1, 2, 1, 16), randn(9, 16, 2, 16), torch.tensor([[4, bad]], dtype=torch.int32)
    with prefer(backend):
        flash_attention(q, k, k, cache_lengths=torch.tensor([16]), block_table=table)
        with pytest.raises(kd.IndexRangeError, match=rf"along R with {bad}, but its extent is 9"):
            flash_attention(q, k, k, cache_lengths=torch.tensor([17]), block_table=table)


@pytest.mark.parametrize("bad", [9, -1, -10])
def test_pytorch_takes_no_other_page_for_one_that_the_pool_does_not_have(bad: int) -> None:
    """It would count -1 from the end. Where no key counts, behind the lengths and before the starts, anything may stand."""
    q, k = randn(1, 2, 1, 16), randn(9, 16, 2, 16)
    table = torch.tensor([[bad, 4, bad]], dtype=torch.int32)
    given = {"cache_lengths": torch.tensor([32]), "key_starts": torch.tensor([16])}
    with prefer("reference"):
        o = flash_attention(q, k, k, block_table=table, **given)
        assert_close(o, flash_attention(q, k, k, block_table=table.clamp(0, 8), **given), "f32", 8)
        for name, more, place in (("cache_lengths", 33, 2), ("key_starts", 15, 0)):
            said = rf"flash_attention: block_table\[0, {place}\] is {bad}; accepted: a page of the pool, from 0 to 8"
            with pytest.raises(kd.IndexRangeError, match=said):
                flash_attention(q, k, k, block_table=table, **given | {name: torch.tensor([more])})


@pytest.mark.parametrize("op", ["flash_attention", "flash_attention_backward"])
def test_opcheck(op: str) -> None:
    given = tuple(list(a) if isinstance(a, tuple) else a for a in arguments(op, page=4, causal=True))
    opcheck(through_torch(op), given)


def test_pages_are_dealt_out_to_processes() -> None:
    """By entries, pages whole to each, or by heads."""
    q, k, v, *others = arguments("flash_attention", page=2)
    scores, _ = Scores.split("flash_attention", others)
    wanted = naive.attention(q, *(t[scores.block_table.long()].flatten(1, 2).transpose(1, 2) for t in (k, v)),  # type: ignore[union-attr]
                             cache_lengths=scores.cache_lengths)[0]  # fmt: skip
    found = list(get("flash_attention").shardings(2, q, k, v, *others))
    assert [s.inputs[:3] for s in found] == [[0, "whole", "whole"], [1, 2, 2]]
    for sharding in found:
        placed = list(zip((q, k, v, *others), sharding.inputs, strict=False))
        parts = [[t.chunk(2, dim)[rank] if isinstance(dim, int) else t for t, dim in placed] for rank in range(2)]
        o = torch.cat([torch.ops.kpt.flash_attention(*part)[0] for part in parts], sharding.outputs[0])  # type: ignore[arg-type]
        assert_close(o, wanted, "f32", 8)
    given = get("flash_attention_backward").shardings(2, *arguments("flash_attention_backward", page=2))
    assert [s.outputs for s in given] == [[0, "sum", "sum"], [1, 2, 2]]


def test_pages_count_as_many_operations_and_read_no_other_tensors() -> None:
    dims = {"B": 2, "H": 4, "G": 2, "M": 64, "N": 64, "D": 64}
    paged, whole = (get("flash_attention").arguments(dims, "bf16", "meta", **flags) for flags in ({"page": 16}, {}))
    flops = get("flash_attention").flops
    assert flops is not None
    assert flops(*paged) == flops(*whole)
    (instance,) = get("flash_attention").instances(dims, "bf16", page=16)
    source = emit(instance, (chip := targets.get("nvidia-h200")), space(instance, chip).first)
    assert {a.name for a in source.abi.arguments} >= {"table", "k_pages", "v_pages"}
    assert not {"k", "v", "span"} & {a.name for a in source.abi.arguments}


def test_stages_are_those_of_keys() -> None:
    """Not of the table's loads, on which Triton spends every other one."""
    dims, chip = {"B": 2, "H": 4, "G": 2, "M": 64, "N": 64, "D": 64}, targets.get("nvidia-h200")
    for flags, stages in (({}, 3), ({"page": 16}, 5)):
        (instance,) = get("flash_attention").instances(dims, "bf16", window=30, softcap=5.0, **flags)
        config = {"block_M": 64, "block_N": 64, "num_warps": 4, "num_stages": 3}
        assert dict(emit(instance, chip, space(instance, chip).canonical(config)).abi.options)["num_stages"] == stages


Q, PAGES = torch.zeros(2, 4, 5, 16), torch.zeros(6, 32, 2, 16)
TABLE, ALL = torch.zeros(2, 3, dtype=torch.int32), torch.tensor([96, 96])
BAD: list[tuple[str, dict[str, Any]]] = [
    ("block_table is given; accepted: one with cache_lengths", {"cache_lengths": None}),
    ("block_table is given; accepted: one with cache_lengths", {"cache_lengths": None, "key_lengths": ALL}),
    ("block_table is of dtype torch.int64; accepted: torch.int32", {"block_table": TABLE.long()}),
    ("block_table is of shape (2,), rank 1; accepted: rank 2, (batch, most pages of an entry)", {"block_table": TABLE[:, 0]}),
    ("block_table is of shape (1, 3); accepted: the batch of q, (2, most pages of an entry)", {"block_table": TABLE[:1]}),
    ("block_table is [[0]] (list); accepted", {"block_table": [[0]]}),
    ("block_table is on meta; accepted: the device of q, cpu", {"block_table": TABLE.to("meta")}),
    ("k is of shape (6, 32, 2, 8); accepted: (pages, page size, key-value heads, 16), one page or more", {"k": PAGES[..., :8]}),
    ("k is of shape (0, 32, 2, 16); accepted", {"k": PAGES[:0]}),
    ("k is of shape (6, 32, 2), rank 3; accepted: rank 4, (pages, page size, key-value heads, head dim)", {"k": PAGES[..., 0]}),
    ("v is of shape (6, 16, 2, 16); accepted: the pages and heads of k, (6, 32, 2, any head dim)", {"v": PAGES[:, :16]}),
    ("q is of 4 heads; accepted: a multiple of the 3 key-value heads of k", dict.fromkeys("kv", torch.zeros(6, 32, 3, 16))),
    ("mask is of shape (5, 7); accepted: what broadcasts to (batch, heads, queries, keys), here (2, 4, 5, 96)",
     {"mask": torch.zeros(5, 7)}),
]  # fmt: skip


@pytest.mark.parametrize(("message", "options"), BAD, ids=[m[:40] for m, _ in BAD])
def test_pages_that_do_not_fit_are_named(message: str, options: dict[str, Any]) -> None:
    given = {"q": Q, "k": PAGES, "v": PAGES, "cache_lengths": ALL, "block_table": TABLE} | options
    calls = (lambda: flash_attention(**given), lambda: flash_attention_backward(do=Q, o=Q, lse=Q[..., 0], **given))
    for call in calls:
        with pytest.raises(kpt.InputError) as caught:
            call()
        assert message in str(caught.value)
