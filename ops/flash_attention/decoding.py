"""Attention of few queries, as in decoding: when its own kernels serve, and over how many parts of the keys."""

import torch

from kpt.ops.backends import Launch
from kpt.ops.devices import multiprocessors
from kpt.ops.flash_attention.decoding_kernels import flash_attention_join, flash_attention_parts
from kpt.ops.flash_attention.pages import keys_of
from kpt.ops.flash_attention.scores import Scores

MOST_QUERIES = 16
"""Queries up to which keys are shared out: rows of all heads of a group then fit in a tile or a few."""

PROGRAMS, PROGRAMS_OF_LENGTHS = 1, 8
"""Programs a multiprocessor, at most: one of each, deep in flight, reads as fast as several, and spares what joins them; where
entries of a batch have lengths of their own, several share the work more evenly."""

FEWEST_KEYS, FEWEST_KEYS_CPU = 256, 16
"""Keys of a part, or more: two tiles of the largest (a guess). On a CPU, for its interpreters: few."""

MOST_PARTS_CPU = 3


def part_count(q: torch.Tensor, k: torch.Tensor, scores: Scores) -> int:
    """Over how many parts of the keys to attend; 0: not so, but as attention of many queries does."""
    if q.shape[2] > MOST_QUERIES or not _takes(scores):
        return 0
    (batch, heads, _, _), (_, groups, keys, _) = q.shape, k.shape
    if q.device.type == "cpu":
        fewest, most = FEWEST_KEYS_CPU, MOST_PARTS_CPU
    else:
        uneven = batch > 1 and (scores.lengths is not None or scores.key_starts is not None)
        programs = PROGRAMS_OF_LENGTHS if uneven else PROGRAMS
        fewest, most = FEWEST_KEYS, programs * multiprocessors(q) // (batch * groups)
    if keys < 2 * fewest:
        return 0
    parts = max(1, min(most, keys // fewest))
    return 0 if parts == 1 and heads == groups else parts


def _takes(scores: Scores) -> bool:
    """Whether the kernels make such scores."""
    given = (scores.mask, scores.alibi_slopes, scores.cu_seqlens_q)
    return all(x is None for x in given) and (scores.ahead is None or scores.causal)


def attend(
    launch: Launch,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    o: torch.Tensor,
    lse: torch.Tensor,
    scores: Scores,
    scale: float,
    parts: int,
) -> None:
    """Fill ``o`` and ``lse``, as ``flash_attention_fwd`` does, from ``parts`` parts of the keys."""
    keys = keys_of(k, v, scores.block_table)
    queries, groups = q.shape[2], keys.like.shape[1]
    rows = q.unflatten(1, (groups, -1)).flatten(2, 3)
    causal, window, *_ = scores.sides(q, keys.like)
    seen = (window, None if queries == 1 else queries, causal and queries > 1)
    flags = (scale, *seen, scores.softcap, scores.own_end, scores.scaled(q))
    given = (*keys.whole, scores.lengths, scores.key_starts)
    if parts == 1 and scores.sinks is None and (queries == 1 or o.stride(1) == queries * o.stride(2)):
        outputs = (t.unflatten(1, (groups, 1, -1)).flatten(3, 4) for t in (o, lse))
        launch(flash_attention_parts, rows, *given, *outputs, *flags, *keys.pages)
        return
    found = q.new_empty((*rows.shape[:2], parts, rows.shape[2], v.shape[3]), dtype=torch.float32)
    found_lse = lse.new_empty(found.shape[:-1])
    launch(flash_attention_parts, rows, *given, found, found_lse, *flags, *keys.pages)
    sinks = None if scores.sinks is None else scores.sinks.unflatten(0, (groups, -1))
    apart = (t.unflatten(3, (-1, queries)) for t in (found, found_lse))
    launch(flash_attention_join, *apart, sinks, *(t.unflatten(1, (groups, -1)) for t in (o, lse)))
