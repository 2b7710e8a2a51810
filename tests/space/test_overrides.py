"""Knobs that a caller sets: a config that has them and is legal, also where a choice among them changes all other knobs."""

from typing import Any

import pytest
import torch

import kpt_dsl as kd
from kpt_dsl import configs, targets
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config, space
from tests.space.instances import linear

X = torch.rand(40, 300) + 1


@kd.kernel(x="M N", y="M N")
def shares(x: kd.In, y: kd.Out) -> None:
    """Each row divided by its sum, whole or tile by tile."""
    for m in kd.parallel(kd.tile("M")):
        if kd.choice("whole_row", True, False):
            y[m, :] = x[m, :] / kd.sum(x[m, :], axis=1)[:, None]
        else:
            total = kd.zeros([m])
            for n in kd.sequential(kd.tile("N")):
                total += kd.sum(x[m, n], axis=1)
            for n2 in kd.sequential(kd.tile("N")):
                y[m, n2] = x[m, n2] / total[:, None]


INSTANCE = Instance.of_shapes(shares, {"M": 40, "N": 300}, {"x": "f32", "y": "f32"})
TARGETS = ("nvidia-h200", "amd-mi300x", "tpu-v6e", "cpu")


@pytest.mark.parametrize("backend", ["numpy", "triton", "pallas"])
@pytest.mark.parametrize(
    "knobs", [{"whole_row": False}, {"whole_row": True}, {"block_M": 8}, {"block_N": 256}, {}], ids=str
)
def test_a_call_takes_the_knobs_that_it_is_given(knobs: dict[str, Any], backend: str) -> None:
    y = torch.empty_like(X)
    shares(X, y, config=knobs, backend=backend)
    torch.testing.assert_close(y, X / X.sum(1, keepdim=True))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("whole", [True, False])
def test_a_choice_takes_the_first_config_that_has_it(whole: bool, target: str) -> None:
    options = space(INSTANCE, targets.get(target))
    other = next(c for c in options.firsts if c["whole_row"] is not whole)
    found = options.overridden(other, {"whole_row": whole})
    assert found == next(c for c in options.firsts if c["whole_row"] is whole)


@pytest.mark.parametrize("target", TARGETS)
def test_every_config_can_be_asked_for(target: str) -> None:
    options = space(INSTANCE, targets.get(target))
    for config in list(options)[::7]:
        assert options.overridden(options.first, config) == config
        for name, value in config.items():
            assert options.overridden(options.first, {name: value})[name] is value


def test_what_was_found_stays_where_it_can() -> None:
    options = space(INSTANCE, targets.get("nvidia-h200"))
    found = Config(whole_row=False, block_M=2, num_warps=8, block_N=256)
    assert options.overridden(found, {"num_warps": 4}) == found | {"num_warps": 4}
    assert options.overridden(found, {"block_N": 128, "whole_row": False}) == found | {"block_N": 128}


WRONG = [
    ("nvidia-h200", {"blok_M": 8}, r"there is no knob blok_M; there are whole_row, block_M, num_warps, block_N"),
    ("nvidia-h200", {"whole_row": "no"}, r"whole_row is 'no'; accepted here are True, False"),
    ("nvidia-h200", {"whole_row": 0}, r"whole_row is 0; accepted here are True, False"),
    ("nvidia-h200", {"whole_row": True, "block_N": 128}, r"block_N does nothing when whole_row=True"),
    ("nvidia-h200", {"whole_row": False, "num_warps": 3}, r"num_warps is 3; accepted here are 1, 2, 4"),
    ("cpu", {"block_M": 17}, r"block_M is 17; accepted here are 16, 32, 64, and other powers of two"),
    ("cpu", {"num_warps": 4}, r"there is no knob num_warps; there are whole_row, block_M, block_N"),
    ("tpu-v6e", {"block_N": 32}, r"block_N is 32; on tpu-v6e it must be a multiple of 128, or all of N"),
    ("cpu", {"block_M": [1]}, r"knob 'block_M' is \[1\]; a config maps names to an int, a bool or a string"),
    ("cpu", "whole_row", r"config is 'whole_row'; it maps the names of knobs to values"),
]


@pytest.mark.parametrize(("target", "knobs", "words"), WRONG, ids=str)
def test_what_cannot_be_had_is_named(target: str, knobs: Any, words: str) -> None:
    chip = targets.get(target)
    with pytest.raises(kd.ConfigError, match=words):
        space(INSTANCE, chip).overridden(configs.choose(INSTANCE, chip)[0], knobs)
    with pytest.raises(kd.ConfigError, match=words):
        kd.source(shares, target, knobs, shapes={"M": 40, "N": 300}, dtypes="f32")


def test_a_config_is_found_for_fewer_columns_than_warps_share() -> None:
    """The model of a GPU divided by what is left of them."""
    options = space(linear(40, 300, 64), targets.get("nvidia-h200"))
    wanted = {"block_M": 64, "block_N": 1, "block_K": 1024}
    assert options.overridden(options.first, wanted).items() >= wanted.items()


@kd.kernel(x="M N", y="M N")
def grouped(x: kd.In, y: kd.Out) -> None:
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        y[m, n] = x[m, n] * kd.choice("block_M", 8, 16)


def test_a_choice_is_not_called_as_a_knob_is() -> None:
    """Each would be given the other's values."""
    with pytest.raises(kd.KptError, match="grouped: choice 'block_M' is called as a knob of cpu is; give it a name of its own"):
        grouped(X, torch.empty_like(X))
