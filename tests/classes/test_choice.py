"""How much work the first choice of a class is: what follows from the IR is found once, few candidates are modelled in full.

Counted, not timed: a program meets a new class whenever its lengths change enough, and waits for its choice.
"""

import math
from collections.abc import Iterator
from unittest.mock import patch

import pytest

import kpt.ops  # noqa: F401
from kpt.ops import registry
from kpt_dsl import ir, targets
from kpt_dsl.classes import options
from kpt_dsl.instance import Instance
from kpt_dsl.passes import pipeline
from kpt_dsl.space import Config, facts, space
from kpt_dsl.space.gpu import candidates, legal, model
from kpt_dsl.space.gpu import rules as gpu
from kpt_dsl.space.gpu.sizes import GpuSizes
from kpt_dsl.space.space import Variant
from kpt_dsl.space.warps import rules as warps

ATTENTION = ({"B": 1, "H": 32, "G": 8, "D": 64}, ("M", "N"), {"causal": True})
OPS = {
    "flash_attention": ATTENTION,
    "flash_attention_backward": ATTENTION,
    "rms_norm": ({"N": 2048}, ("M",), {}),
    "layer_norm_backward": ({"N": 2048}, ("M",), {}),
    "linear_act": ({"N": 2048, "K": 2048}, ("M",), {"activation": "silu"}),
    "linear_act_backward": ({"N": 2048, "K": 2048}, ("M",), {"activation": "silu"}),
}
TARGETS = ("nvidia-h100", "nvidia-a100", "amd-mi300x", "nvidia-b200")
LENGTHS = (20, 700, 4096)
MODELLED, BOUNDED = 0.25, 0.75
"""Of all candidates, how many may be modelled in full; of all tiles with their warps, of how many the least may be asked."""


def of_length(op: str, length: int) -> list[Instance]:
    dims, varying, flags = OPS[op]
    return registry.get(op).instances(dims | dict.fromkeys(varying, length), "bf16", **flags)


def variants(op: str, target: str) -> Iterator[Variant]:
    for length in LENGTHS:
        for instance in of_length(op, length):
            yield from (v for v in space(instance, targets.get(target)).variants if v.rules is gpu)


def every_candidate(variant: Variant, target: str) -> list[tuple[GpuSizes, list[GpuSizes]]]:
    """Tiles and warps, with the candidates that have them; in the order in which the first of equals wins."""
    tiled = candidates._tiles(variant.facts, targets.get(target), variant.knobs)
    threads = (sizes for tiles in tiled for sizes in candidates._threads(tiles, variant.knobs))
    return [(sizes, list(candidates._candidates(sizes, variant.knobs))) for sizes in threads]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", OPS)
def test_what_a_candidate_takes_at_least_is_no_more_than_what_it_takes(op: str, target: str) -> None:
    for variant in variants(op, target):
        for sizes, found in every_candidate(variant, target):
            least, of_tiles = model.at_least(sizes), model.least_of_tiles(sizes)
            for candidate in found:
                assert max(least, of_tiles) <= model.seconds(candidate) * (1 + candidates.CLOSE), candidate.config


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", OPS)
def test_the_search_finds_what_modelling_every_candidate_finds(op: str, target: str) -> None:
    for variant in variants(op, target):
        found = [min(some, key=model.seconds) for _, some in every_candidate(variant, target) if some]
        if found:
            best = min(found, key=model.seconds)
            assert candidates.best(variant.facts, targets.get(target), variant.knobs) == Config(best.config)


def at_both_ends(sizes: GpuSizes) -> tuple[float, float]:
    """The seconds at the greatest extents of a class, and at the least: without end where the config is illegal there."""
    assert sizes.facts.least is not None
    there = GpuSizes(sizes.facts.least, sizes.target, sizes.config)
    return model.seconds(sizes), math.inf if legal.why_illegal(there) else model.seconds(there)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", OPS)
def test_of_tiles_that_are_as_quick_a_class_takes_those_that_are_the_best_at_both_ends(op: str, target: str) -> None:
    for length in LENGTHS:
        for space_of in (options(instance, targets.get(target)) for instance in of_length(op, length)):
            for variant in (v for v in space_of.variants if v.rules is gpu):
                found = [min(some, key=model.seconds) for _, some in every_candidate(variant, target) if some]
                if found and variant.facts.least is not None:
                    most = min(map(model.seconds, found)) * (1 + candidates.NEAR)
                    near = [(math.prod(ends), ends[0], sizes) for sizes in found if (ends := at_both_ends(sizes))[0] <= most]
                    best = min(near, key=lambda one: one[:2])[2]
                    assert candidates.best(variant.facts, targets.get(target), variant.knobs) == Config(best.config)


def test_tiles_that_are_as_quick_at_the_greatest_extents_and_slower_at_the_least_are_left() -> None:
    """257 rows take three tiles of 128 rows or five of 64, a sixth less; 512 fill either."""
    (instance,) = of_length("linear_act", 400)
    H200 = targets.get("nvidia-h200")
    first, alone = options(instance, H200).first, space(of_length("linear_act", 512)[0], H200).first
    assert (first["block_M"], alone["block_M"]) == (64, 128)


def test_few_candidates_are_modelled_in_full_and_not_all_warps_are_bounded() -> None:
    every = modelled = threads = bounded = 0
    for variant in (v for op in OPS for v in variants(op, "nvidia-h100")):
        found = every_candidate(variant, "nvidia-h100")
        every, threads = every + sum(len(candidates) for _, candidates in found), threads + len(found)
        with (
            patch.object(model, "seconds", side_effect=model.seconds) as seconds,
            patch.object(model, "at_least", side_effect=model.at_least) as at_least,
        ):
            candidates.best(variant.facts, targets.get("nvidia-h100"), variant.knobs)
        modelled, bounded = modelled + seconds.call_count, bounded + at_least.call_count
    assert modelled < MODELLED * every
    assert bounded < BOUNDED * threads


@pytest.mark.parametrize("op", OPS)
def test_another_class_of_a_specialisation_finds_nothing_of_its_ir_again(op: str) -> None:
    H100 = targets.get("nvidia-h100")
    for instance in of_length(op, 700):
        _ = options(instance, H100).first
    others = of_length(op, 3000)
    with (
        patch.object(facts, "_Reader", side_effect=AssertionError("facts are read again")),
        patch.object(pipeline, "pipeline", side_effect=AssertionError("a pipeline is planned again")),
        patch.object(warps, "guard", side_effect=AssertionError("a kernel is guarded again")),
    ):
        assert all(options(instance, H100).first for instance in others)


def test_tiles_are_summed_up_once_for_all_warps_and_stages() -> None:
    (instance,) = of_length("linear_act", 4096)
    (variant, *_) = (v for v in space(instance, targets.get("nvidia-h100")).variants if v.rules is gpu)
    with patch.object(GpuSizes, "_in_scope", autospec=True, side_effect=GpuSizes._in_scope) as summed:
        tiled = candidates._tiles(variant.facts, targets.get("nvidia-h100"), variant.knobs)
        every = [sizes for tiles in tiled for sizes in candidates._threads(tiles, variant.knobs)]
    tiles = {tuple(sizes.blocks.items()) for sizes in every}
    assert len(every) > len(tiles)
    assert summed.call_count == len(tiles) * len(every[0].steps)


def test_an_expression_whose_parts_stay_is_the_same_one() -> None:
    kernel = of_length("flash_attention", 700)[0].lower()
    assert all(ir.with_children(e, ir.children(e)) is e for e in ir.every_expr(kernel.body))
