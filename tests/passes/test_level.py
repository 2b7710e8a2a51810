"""Loops that visit whole tiles only: claimed where it is so at every place of the grid, and worth the masks that fall away."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest

from kpt.ops import registry
from kpt_dsl import ir, targets
from kpt_dsl.emit import emit
from kpt_dsl.instance import Instance
from kpt_dsl.passes.bounds import settle
from kpt_dsl.passes.level import level_loops
from kpt_dsl.space import Config
from tests.language.snippets import lower

BODY = """
for m in kd.parallel(kd.tile("M")):
    ahead = kd.size("N") - kd.size("M")
    first, last = 0, kd.size("N")
    first, last = {start}, kd.minimum(last, {stop})
    total = kd.zeros([m])
    for n in kd.sequential(kd.tile("N"), start=first, stop=last):
        total = total + kd.sum(x[m, n].to(kd.f32), axis=1)
    row[m] = total
"""

SIZES = [(64, 64), (64, 128), (96, 64), (64, 96), (70, 64), (64, 70), (128, 112), (70, 128)]
BLOCKS = [(16, 16), (32, 16), (16, 32), (64, 32)]


def attention(**flags: object) -> Instance:
    sizes = {"B": 1, "H": 2, "G": 1, "M": 768, "N": 768, "D": 64}
    (instance,) = registry.get("flash_attention").instances(sizes, "bf16", **flags)
    return instance


def claimed(kernel: ir.Kernel, sizes: tuple[int, int], blocks: tuple[int, int]) -> bool:
    return bool(level_loops(kernel, dict(zip("MN", sizes, strict=True)), dict(zip("mn", blocks, strict=True))))


def level(start: str, stop: str, sizes: tuple[int, int], blocks: tuple[int, int]) -> bool:
    """Whether no tile of the loop has a lane outside, at any place of the grid."""
    (rows, keys), (block, step) = sizes, blocks
    for at in range(0, rows, block):
        known = {"m": SimpleNamespace(start=at, stop=min(at + block, rows)), "ahead": keys - rows, "last": keys}
        first, last = max(eval(start, known), 0), min(keys, eval(stop, known))
        if first < last and (first % step or last % step):
            return False
    return True


@pytest.mark.parametrize(
    ("start", "stop", "possible"),
    [
        ("0", "m.stop + ahead", True),
        ("0", "m.stop", True),
        ("m.start + ahead", "last", True),
        ("m.start + ahead - 32", "m.stop + ahead + 32", True),
        ("0", "m.stop + ahead + 1", False),
        ("m.start - 1", "last", False),
        ("0", "m.start * 2", True),
        ("0", "m.start // 2", False),
    ],
)
def test_what_is_claimed_is_so(tmp_path: Path, start: str, stop: str, possible: bool) -> None:
    kernel = lower(tmp_path, BODY.format(start=start, stop=stop))
    claims = {case: claimed(kernel, *case) for case in itertools.product(SIZES, BLOCKS)}
    assert any(claims.values()) is possible
    for case, claim in claims.items():
        assert not claim or level(start, stop, *case), case


def test_aligned_causality_is_seen(tmp_path: Path) -> None:
    kernel = lower(tmp_path, BODY.format(start="0", stop="m.stop + ahead"))
    for case in itertools.product(SIZES, BLOCKS):
        assert claimed(kernel, *case) is level("0", "m.stop + ahead", *case), case


def test_bounds_that_are_given_are_not_known() -> None:
    """A window's extent is an argument, and a length is loaded."""
    for given in ({"window": 64}, {"key_lengths": True}):
        instance = attention(**given)
        assert not level_loops(settle(instance.lower()), dict(instance.extents.dims), {"m": 64, "n": 64})


@pytest.mark.parametrize(
    ("config", "masked"),
    [
        (Config(block_M=64, block_N=64, num_warps=4, num_stages=2, descriptors=True), False),
        (Config(block_M=64, block_N=128, num_warps=4, num_stages=2, descriptors=True), True),
    ],
)
def test_masks_that_are_left(config: Config, masked: bool) -> None:
    """The author's own one stays, whose lanes lie inside."""
    text = emit(attention(causal=True), targets.get("nvidia-h200"), config).text
    assert ("n_valid" in text) is masked
    assert "n_index[None, :] <= position" in text


def test_tiles_of_groups_begin_and_end_anywhere(tmp_path: Path) -> None:
    text = BODY.format(start="m.start", stop="m.stop")
    assert claimed(settle(lower(tmp_path, text)), (64, 64), (16, 16))
    grouped = settle(lower(tmp_path, text.replace('kd.tile("M")', 'kd.tile("M", starts=ids)')))
    assert not claimed(grouped, (64, 64), (16, 16))
