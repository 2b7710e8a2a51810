"""Attention of few queries: its kernels on every backend against plain loops, which calls they serve, and in how many parts."""

from typing import Any

import pytest
import torch

from kpt.ops import explain, flash_attention, prefer
from kpt.ops.flash_attention import decoding
from kpt.ops.flash_attention.scores import Scores
from kpt.ops.registry import get
from tests import soak
from tests.ops import naive
from tests.tolerances import assert_close

HEADS, GROUPS, KEYS, WIDTH, VALUES = 6, 2, 70, 24, 9


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


K, V = randn(2, GROUPS, KEYS, WIDTH), randn(2, GROUPS, KEYS, VALUES)
LENGTHS, STARTS = torch.tensor([0, 37], dtype=torch.int32), torch.tensor([1, 36])

OPTIONS: dict[str, dict[str, Any]] = {
    "all keys": {},
    "causal": {"causal": True},
    "window": {"window": 19},
    "causal window": {"causal": True, "window": 30},
    "lengths": {"key_lengths": LENGTHS},
    "lengths in a window": {"key_lengths": LENGTHS, "window": 40},
    "left padding": {"key_starts": STARTS, "causal": True},
    "cap and sinks": {"softcap": 1.5, "sinks": randn(HEADS), "key_lengths": LENGTHS},
    "scale below zero": {"scale": -0.3, "causal": True},
}


SLOW = ("triton", "pallas")
"""Interpreters, which see one query and several in turn."""


@pytest.mark.parametrize(
    ("options", "queries", "backend"),
    [
        soak.unless(backend not in SLOW or (i % 2 == 0) == (queries == 1), options, queries, backend)
        for i, options in enumerate(OPTIONS)
        for queries in (1, 5)
        for backend in ("numpy", *SLOW)
    ],
)
def test_kernels_of_few_queries(options: str, queries: int, backend: str) -> None:
    given = OPTIONS[options]
    q = randn(2, queries, HEADS, WIDTH).transpose(1, 2)  # the memory order of a model
    o, lse = naive.attention(q, K, V, **given)
    with prefer(backend):  # type: ignore[arg-type]
        kernels = [kernel.kernel for kernel in explain("flash_attention", q, K, V, **given).kernels]
        got, got_lse = flash_attention(q, K, V, return_lse=True, **given)
    assert kernels == ["flash_attention_parts", "flash_attention_join"]
    assert got.stride() == torch.empty_like(q[..., :VALUES]).stride()
    assert_close(got, o, "f32", KEYS)
    assert torch.equal(got_lse.isinf(), lse.isinf())
    seen = ~lse.isinf()
    assert_close(got_lse[seen], lse[seen], "f32", KEYS)


@pytest.mark.parametrize("queries", [1, 3])
def test_one_part_is_stored_where_it_belongs(queries: int) -> None:
    """Where o is not laid out for that, the second kernel stores it."""
    k, v = K[:, :, :40], V[:, :, :40]
    for q in (randn(2, HEADS, queries, WIDTH), randn(2, queries, HEADS, WIDTH).transpose(1, 2)):
        o, lse = torch.empty(q.shape).as_strided(q.shape, q.stride())[..., :VALUES], torch.empty(q.shape[:3])
        launched = []

        def launch(kernel: Any, *arguments: Any, launched: list[str] = launched) -> None:
            launched.append(kernel.name)
            kernel(*arguments, backend="numpy")

        decoding.attend(launch, q, k, v, o, lse, Scores(causal=True), 0.2, 1)  # type: ignore[arg-type]
        assert_close(o, naive.attention(q, k, v, causal=True, scale=0.2)[0], "f32", 40)
        plain = queries == 1 or q.is_contiguous()
        assert launched == ["flash_attention_parts"] + ["flash_attention_join"] * (not plain)


@pytest.mark.parametrize(
    ("batch", "heads", "groups", "queries", "keys", "parts"),
    [
        (1, 32, 8, 1, 32768, 16),  # a program a multiprocessor, of which an H200 has 132
        (16, 32, 8, 1, 8192, 1),
        (16, 32, 8, 4, 8192, 1),
        (64, 32, 8, 1, 2048, 1),  # heads that share keys share a tile
        (64, 32, 32, 1, 2048, 0),
        (1, 32, 8, 1, 600, 2),  # no fewer than 256 keys a part
        (1, 32, 8, 1, 511, 0),
        (1, 32, 8, 17, 32768, 0),
    ],
)
def test_how_many_parts(batch: int, heads: int, groups: int, queries: int, keys: int, parts: int) -> None:
    q = torch.empty(batch, heads, queries, 128, device="meta", dtype=torch.bfloat16)
    k = torch.empty(batch, groups, keys, 128, device="meta", dtype=torch.bfloat16)
    assert decoding.part_count(q, k, Scores()) == parts


@pytest.mark.parametrize(("batch", "keys", "parts"), [(1, 32768, 16), (16, 8192, 8), (64, 2048, 2), (64, 300, 0)])
def test_entries_of_different_lengths_are_in_more_parts(batch: int, keys: int, parts: int) -> None:
    q = torch.empty(batch, 32, 1, 128, device="meta", dtype=torch.bfloat16)
    k = torch.empty(batch, 8, keys, 128, device="meta", dtype=torch.bfloat16)
    lengths = torch.empty(batch, device="meta", dtype=torch.int32)
    assert decoding.part_count(q, k, Scores(key_lengths=lengths)) == parts
    assert decoding.part_count(q, k, Scores(key_starts=lengths)) == parts


@pytest.mark.parametrize("flags", [{"mask": "seen"}, {"alibi": True}], ids=str)
def test_scores_that_only_the_other_kernel_makes(flags: dict[str, Any]) -> None:
    dims = {"B": 1, "H": 32, "G": 8, "M": 1, "N": 8192, "D": 128}
    assert {i.kernel.name for i in get("flash_attention").instances(dims, "bf16", **flags)} == {"flash_attention_fwd"}


def test_every_way_is_tuned() -> None:
    dims = {"B": 1, "H": 32, "G": 8, "M": 1, "N": 8192, "D": 128}
    found = [i.kernel.name for i in get("flash_attention").instances(dims, "bf16")]
    assert found == [f"flash_attention_{name}" for name in ("parts", "join", "parts", "join", "fwd")]
