"""Which configs are compiled for a chip that is not here: the best of the space by its roofline, as far as compiling them pays.

Where the size of a config's code is known (on TPUs, whose compiler unrolls a block), the list goes through sizes in turns: of
blocks alike the compiler says the same, and the largest, which a roofline likes best, take it minutes.
"""

import random
from collections.abc import Collection, Iterable

from autotune_db import model
from kpt_dsl.space import Config, Space

RANKED = 4096
"""Legal configs that are ranked by the roofline; larger spaces are sampled."""

NEAR = 2.0
"""Times the roofline's best: in turns of sizes, what is further from it is not compiled. Products are best in half of the
largest blocks, which a roofline puts at 1.5 times."""


def shortlist(
    options: Space, known: Iterable[Config], without: Collection[Config], most: int, seconds: float, seed: int
) -> list[Config]:
    """Known configs, then the best of the space, each once; never those ``without``, nor such as take a compiler longer than
    ``seconds``."""
    legal = [c for c in dict.fromkeys(known) if options.why_illegal(c) is None]
    sampled = _sample(options, seed)
    cost = {config: options.seconds(config) for config in sampled}
    ranked = sorted(sampled, key=cost.__getitem__)
    sizes = {config: size for config in ranked if (size := model.code_size(options, config)) is not None}
    if sizes:
        near = [c for c in ranked if cost[c] <= NEAR * cost[ranked[0]]]
        ranked = _in_turns([c for c in near if sizes[c] * model.SECONDS_A_BUNDLE <= seconds], sizes)
    return [config for config in dict.fromkeys([*legal, *ranked]) if config not in without][:most]


def _in_turns(ranked: Iterable[Config], sizes: dict[Config, int]) -> list[Config]:
    """The best of each size of code, doublings told apart, the smallest first; then the second best of each, and so on."""
    turns: dict[int, int] = {}
    found = []
    for config in ranked:
        doublings = sizes[config].bit_length()
        turns[doublings] = turns.get(doublings, 0) + 1
        found.append((turns[doublings], doublings, config))
    return [config for _, _, config in sorted(found, key=lambda each: each[:2])]


def _sample(options: Space, seed: int) -> list[Config]:
    """Every legal config of a small space, as many at random of a large one."""
    if options.size <= RANKED:
        return list(options)
    chance = random.Random(seed)
    knobs = options.knobs
    found: dict[Config, None] = {}
    for _ in range(8 * RANKED):
        config = options.canonical({name: chance.choice(values) for name, values in knobs.items()})
        if options.why_illegal(config) is None:
            found[config] = None
        if len(found) >= RANKED:
            break
    return list(found)
