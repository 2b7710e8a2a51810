"""Producer and consumers agree: nobody waits forever, and each consumer multiplies the tiles that it should, in order."""

from typing import Any

import pytest

from kpt_dsl import targets
from kpt_dsl.emit import emit
from tests.emit_gluon.machine import Machine
from tests.emit_gluon.test_compile import attention, config

H200 = targets.get("nvidia-h200")
ROWS, KEYS, CONSUMERS = 64, 64, 2
PROGRAMS = 3


def keys(row: int, consumer: int, extents: dict[str, int], causal: bool, window: int | None) -> range:
    """First keys of the tiles that a consumer loops over whose rows begin at ``row``: from where its program begins, up to the
    last one that its own rows see."""
    ahead = extents["N"] - extents["M"]
    first = 0 if window is None else max(0, row - consumer * ROWS + ahead - window + 1)
    last = min(extents["N"], min(row + ROWS, extents["M"]) + ahead) if causal else extents["N"]
    return range(first // KEYS * KEYS, last, KEYS)


def clear(row: int, key: int, extents: dict[str, int], causal: bool, window: int | None) -> bool:
    """Whether every row of a consumer sees every key of a tile."""
    ahead = extents["N"] - extents["M"]
    last = min(row + ROWS, extents["M"]) - 1 + ahead
    seen = key + KEYS <= (min(extents["N"], row + ahead + 1) if causal else extents["N"])
    return seen and (window is None or key > last - window)


@pytest.mark.parametrize("slots", [2, 3])
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize(
    ("m", "n", "flags"),
    [
        pytest.param(400, 760, {"causal": True}, id="causal"),
        pytest.param(700, 260, {"causal": True}, id="rows-that-see-nothing"),
        pytest.param(300, 500, {}, id="all"),
        pytest.param(700, 500, {"causal": True, "window": 100}, id="window"),
    ],
)
def test_each_consumer_multiplies_its_tiles(
    m: int, n: int, flags: dict[str, Any], persistent: bool, overlap: bool, slots: int
) -> None:
    instance = attention(64, m, n, heads=4, **flags)
    knobs = {"block_N": KEYS, "consumers": CONSUMERS, "registers": 216, "num_stages": slots, "overlap": overlap}
    source, extents = emit(instance, H200, config(instance, persistent=persistent, **knobs)), dict(instance.extents.dims)
    tiles, stored = source.abi.tiles(extents), []
    programs = PROGRAMS if persistent else tiles
    for program in range(programs):
        machine = Machine(program, programs)
        machine.on_zeros(source, instance, window=flags.get("window", 0))
        for consumer in range(CONSUMERS):
            multiplied, worked = iter(machine.products[consumer]), iter(machine.worked[consumer])
            for _, b, h, row, _ in machine.stored[consumer]:
                g = h // (extents["H"] // extents["G"])
                mask = {"causal": "causal" in flags, "window": flags.get("window")}
                seen = keys(row, consumer, extents, **mask)
                # With overlap there is one step at least; without, one more link is issued behind the last, and not read.
                steps = list(seen) or [seen.start] * overlap
                pairs = [next(multiplied) for _ in range(2 * len(steps) + (not overlap))]
                links = [p for p in pairs if p[0] is not None][: len(steps)]
                assert links == [(("q", b, h, row, 0), ("k", b, g, key, 0)) for key in steps]
                assert [p for p in pairs if p[0] is None] == [(None, ("v", b, g, key, 0)) for key in steps]
                kinds = [next(worked) for _ in steps]
                assert kinds == ["clear" if clear(row, key, extents, **mask) else "masked" for key in steps]
            assert next(multiplied, None) is None
            stored += machine.stored[consumer]
    assert len(stored) == len(set(stored)) == tiles * CONSUMERS
