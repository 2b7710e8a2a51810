"""Attention of few queries, as in decoding: when its own kernels serve, and over how many parts of the keys."""

import torch

from kpt.ops.backends import Launch
from kpt.ops.devices import multiprocessors
from kpt.ops.flash_attention.decoding_kernels import flash_attention_join, flash_attention_parts
from kpt.ops.flash_attention.scores import Scores

MOST_QUERIES = 16
"""Queries up to which keys are shared out: rows of all heads of a group then fit in a tile or a few."""

PROGRAMS = 2
"""Programs on a multiprocessor that wait for memory together, at most (not tuned on any device yet)."""

FEWEST_KEYS, FEWEST_KEYS_CPU = 256, 16
"""Keys of a part, or more: two tiles of the largest (not tuned on any device yet). On a CPU, for its interpreters: few."""

MOST_PARTS_CPU = 3


def part_count(q: torch.Tensor, k: torch.Tensor) -> int:
    """Over how many parts of the keys to attend; 0: not so, but as attention of many queries does."""
    (batch, heads, queries, _), (_, groups, keys, _) = q.shape, k.shape
    if q.device.type == "cpu":
        fewest, most = FEWEST_KEYS_CPU, MOST_PARTS_CPU
    else:
        fewest, most = FEWEST_KEYS, PROGRAMS * multiprocessors(q.device) // (batch * groups)
    if queries > MOST_QUERIES or keys < 2 * fewest:
        return 0
    parts = max(1, min(most, keys // fewest))
    return 0 if parts == 1 and heads == groups else parts


def takes(scores: Scores) -> bool:
    """Whether the kernels make such scores."""
    return scores.mask is None and scores.alibi_slopes is None and (scores.ahead is None or scores.causal)


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
    queries, groups = q.shape[2], k.shape[1]
    rows = q.unflatten(1, (groups, -1)).flatten(2, 3)
    causal, window, *_ = scores.sides(q, k)
    flags = (scale, window, None if queries == 1 else queries, causal and queries > 1, scores.softcap, scores.own_end)
    keys = (k, v, scores.lengths, scores.key_starts)
    if parts == 1 and scores.sinks is None and (queries == 1 or o.stride(1) == queries * o.stride(2)):
        outputs = (t.unflatten(1, (groups, 1, -1)).flatten(3, 4) for t in (o, lse))
        launch(flash_attention_parts, rows, *keys, *outputs, *flags)
        return
    found = q.new_empty((*rows.shape[:2], parts, rows.shape[2], v.shape[3]), dtype=torch.float32)
    found_lse = lse.new_empty(found.shape[:-1])
    launch(flash_attention_parts, rows, *keys, found, found_lse, *flags)
    sinks = None if scores.sinks is None else scores.sinks.unflatten(0, (groups, -1))
    apart = (t.unflatten(3, (-1, queries)) for t in (found, found_lse))
    launch(flash_attention_join, *apart, sinks, *(t.unflatten(1, (groups, -1)) for t in (o, lse)))
