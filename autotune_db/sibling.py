"""How near an entry of another key is to the one that is wanted: near enough, its config beats a rule.

A sibling has the same kernel, backend, dtypes, flags and exact dims, and a device of the same target. It may differ in bucketed
dims, layouts, compiler version and source. The distance counts doublings; the other differences are worth a few of them.
"""

import math
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

from autotune_db.key import Key
from kpt_dsl.values import told_apart

MOST_DOUBLINGS = 3
"""In one dim. Farther, a config tells nothing: tiles that fit 8192 rows are wasted on 16."""

_LAYOUT, _COMPILER, _SOURCE, _DEVICE, _PREDICTED = 1.0, 1.0, 2.0, 1.0, 4.0


class Likeness(NamedTuple):
    """What of a key decides how near it is to others of its ``family``; ``sizes``: log2 of the extents of its bucketed dims."""

    family: Hashable
    sizes: tuple[float, ...]
    layouts: Mapping[str, str]
    compiler: str
    source: str


def likeness(key: Mapping[str, Any], exact: frozenset[str]) -> Likeness:
    """Of a key as plain data, before anyone has looked whether it is one: thousands are indexed at a time.

    ``exact``: the dims whose extents siblings share. Raises LookupError, AttributeError, TypeError or ValueError for no key.
    """
    shape = sorted(key["shape"].items())
    shared = tuple((dim, str(span) if dim in exact else None) for dim, span in shape)
    flags = tuple((name, told_apart(value)) for name, value in key["flags"].items())
    family = key["backend"], tuple(key["dtypes"].items()), flags, shared
    hash(family)
    sizes = tuple(math.log2(max(int(str(span).rpartition(".")[2]), 1)) for dim, span in shape if dim not in exact)
    return Likeness(family, sizes, key["layouts"], key["compiler"], key["source"])


def distance(wanted: Likeness, other: Likeness, predicted: bool, same_device: bool) -> float | None:
    """Between two of one family; None where it is too far."""
    doublings = [abs(mine - theirs) for mine, theirs in zip(wanted.sizes, other.sizes, strict=True)]
    if max(doublings, default=0.0) > MOST_DOUBLINGS:
        return None
    return (
        sum(doublings)
        + _LAYOUT * (wanted.layouts != other.layouts)
        + _COMPILER * (wanted.compiler != other.compiler)
        + _SOURCE * (wanted.source != other.source)
        + _DEVICE * (not same_device)
        + _PREDICTED * predicted
    )


def difference(wanted: Key, key: Key, predicted: bool, same_device: bool) -> str:
    """In what a sibling's key differs from the wanted one, in words."""
    theirs = dict(key.shape)
    words = [f"{dim}={theirs[dim]}" for dim, span in wanted.shape if span != theirs[dim]]
    for differs, word in (
        (wanted.layouts != key.layouts, "other layout"),
        (wanted.compiler != key.compiler, key.compiler),
        (wanted.source != key.source, "other kernel source"),
        (not same_device, key.device),
        (predicted, "predicted"),
    ):
        if differs:
            words.append(word)
    return ", ".join(words)
