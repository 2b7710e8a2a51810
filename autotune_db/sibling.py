"""How near an entry of another key is to the one that is wanted: near enough, its config beats a rule.

A sibling has the same kernel, backend, dtypes, flags and exact dims, and a device of the same target. It may differ in bucketed
dims, layouts, compiler version and source. The distance counts doublings; the other differences are worth a few of them.
"""

import math
from dataclasses import dataclass

from autotune_db.entry import Entry
from autotune_db.key import Key

MOST_DOUBLINGS = 3
"""In one dim. Farther, a config tells nothing: tiles that fit 8192 rows are wasted on 16."""

_LAYOUT, _COMPILER, _SOURCE, _DEVICE, _PREDICTED = 1.0, 1.0, 2.0, 1.0, 4.0


@dataclass(frozen=True)
class Sibling:
    """An entry, its distance from the wanted key, and in what it differs, in words."""

    entry: Entry
    distance: float
    difference: str


def sibling(wanted: Key, exact: frozenset[str], entry: Entry, same_device: bool) -> Sibling | None:
    """An entry as a sibling of a key whose dims ``exact`` must agree; None where it is too far."""
    key = entry.key
    same = ("kernel", "backend", "dtypes", "exact_flags")
    mine, theirs = dict(wanted.shape), dict(key.shape)
    if any(getattr(wanted, name) != getattr(key, name) for name in same) or mine.keys() != theirs.keys():
        return None
    distance, words = 0.0, []
    for dim, span in mine.items():
        if span == theirs[dim]:
            continue
        doublings = abs(math.log2(max(span.high, 1)) - math.log2(max(theirs[dim].high, 1)))
        if dim in exact or doublings > MOST_DOUBLINGS:
            return None
        distance += doublings
        words.append(f"{dim}={theirs[dim]}")
    for differs, cost, word in (
        (wanted.layouts != key.layouts, _LAYOUT, "other layout"),
        (wanted.compiler != key.compiler, _COMPILER, key.compiler),
        (wanted.source != key.source, _SOURCE, "other kernel source"),
        (not same_device, _DEVICE, key.device),
        (entry.origin == "predicted", _PREDICTED, "predicted"),
    ):
        if differs:
            distance += cost
            words.append(word)
    return Sibling(entry, distance, ", ".join(words))
