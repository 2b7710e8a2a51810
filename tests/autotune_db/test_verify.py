"""Verification against float64: right results pass, each kind of wrong result does not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from autotune_db import inputs
from autotune_db.verify import wrong
from kpt_dsl import targets
from kpt_dsl.instance import Instance
from kpt_dsl.runtime.numpy import run
from kpt_dsl.space import Config, space
from tests.autotune_db import instances, kernels

CPU = targets.get("cpu")

SMALL: dict[str, Instance] = {
    "softmax": instances.softmax(M=37, N=100),
    "softmax f32": instances.softmax("f32", M=100, N=257),
    "softmax f16": instances.softmax("f16", M=5, N=3),
    "linear": instances.linear(M=50, N=70, K=300),
    "linear doubled": instances.linear(activation=kernels.double, bias=False, M=130, N=33, K=64),
    "linear f32": instances.linear("f32", M=64, N=64, K=1000),
    "scores": instances.scores(M=50, N=70),
    "scores with lengths": instances.scores(lengths=True, M=50, N=70),
    "scale rows": instances.scale_rows(),
    "group means": instances.group_means(),
}


def launched(instance: Instance) -> tuple[Config, dict[str, Any]]:
    """What a right launch leaves: NumPy in the types of the kernel."""
    config = Config(dict.fromkeys(space(instance, CPU).knobs, 16))
    arguments = inputs.make(instance, "cpu", seed=1)
    run(instance, arguments, config)
    return config, arguments


@pytest.mark.parametrize("name", SMALL)
def test_a_right_result_passes(name: str) -> None:
    config, arguments = launched(SMALL[name])
    assert wrong(SMALL[name], config, arguments, seed=0) == ""


def shifted(y: torch.Tensor) -> torch.Tensor:
    return y.roll(1, -1)


def scaled(y: torch.Tensor) -> torch.Tensor:
    return (y.float() * 1.05).to(y.dtype)


def unwritten(y: torch.Tensor) -> torch.Tensor:
    y = y.clone()
    y.flatten()[-1] = float("nan")
    return y


def zero(y: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(y)


def infinite(y: torch.Tensor) -> torch.Tensor:
    y = y.clone()
    y.flatten()[0] = float("inf")
    return y


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("damage", [shifted, scaled, unwritten, zero, infinite])
def test_a_wrong_result_does_not(name: str, damage: Callable[[torch.Tensor], torch.Tensor]) -> None:
    config, arguments = launched(SMALL[name])
    arguments["y"].copy_(damage(arguments["y"]))
    assert "y at " in wrong(SMALL[name], config, arguments, seed=0)


def test_padding_that_is_summed_is_found() -> None:
    """The bug that ragged edges invite: a row's sum over its padding lanes too."""
    instance = instances.softmax(M=37, N=100)
    config, arguments = launched(instance)
    x = arguments["x"].double()
    padded = torch.cat([x, torch.zeros(37, 28)], 1)
    arguments["y"].copy_(padded.softmax(1)[:, :100].to(torch.bfloat16))
    assert "error" in wrong(instance, config, arguments, seed=0)


def test_infinities_in_the_right_place_are_right() -> None:
    instance = instances.scores(lengths=True, M=20, N=40)
    config, arguments = launched(instance)
    arguments["lengths"].zero_()
    run(instance, arguments, config)
    assert arguments["y"].isinf().all()
    assert wrong(instance, config, arguments, seed=0) == ""
    arguments["y"].zero_()
    assert "NaN or infinity is not where float64 has it" in wrong(instance, config, arguments, seed=0)


def test_some_programs_of_a_large_grid_are_compared() -> None:
    """The first and the last always, so the ragged edge is; how many does not depend on the shape."""
    instance = instances.softmax(M=20_001, N=64)
    config, arguments = launched(instance)
    assert wrong(instance, config, arguments, seed=0) == ""
    arguments["y"][-1] *= 2
    assert "y at 20000:20001" in wrong(instance, config, arguments, seed=0)


@pytest.mark.parametrize(
    ("strides", "aligned"),
    [((200, 1), True), ((1, 64), True), ((100, 1), False)],
    ids=["gaps", "transposed", "odd address"],
)
def test_inputs_have_the_layout_of_the_instance(strides: tuple[int, int], aligned: bool) -> None:
    from dataclasses import replace

    plain = instances.softmax(M=64, N=100)
    apart = (("x", strides), plain.extents.strides[1])
    extents = replace(plain.extents, strides=apart, aligned=frozenset({"x", "y"} if aligned else {"y"}))
    instance = Instance(plain.specialisation, extents)
    made = inputs.make(instance, "cpu", seed=0)
    assert Instance.bind(instance.kernel, made) == instance
    assert made["x"].float().std() > 0.5


def test_inputs_depend_on_the_seed_only() -> None:
    one, same, other = (inputs.make(instances.linear(M=8), "cpu", seed)["x"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_counts_among_the_inputs_stay_within_what_they_count() -> None:
    lengths = inputs.make(instances.scores(lengths=True, B=64, N=300), "cpu", seed=0)["lengths"]
    assert lengths.dtype == torch.int32
    assert lengths.min() >= 150
    assert lengths.max() <= 300
    assert inputs.make(instances.scores(N=300), "cpu", seed=0)["lengths"] is None


@pytest.mark.parametrize("index", ["i8", "u8"])
def test_bytes_among_the_inputs_are_all_that_a_byte_holds_and_indices_of_the_dim(index: str) -> None:
    made = inputs.make(instances.picked(index), "cpu", seed=0)
    assert (made["table"].min(), made["table"].max()) == (-128, 127)
    assert made["ids"].min() >= 0
    assert made["ids"].max() > 100
    assert set(made["keep"].tolist()) == {True, False}
    assert inputs.make(instances.picked(index, V=20), "cpu", seed=0)["ids"].max() < 20


def test_whole_numbers_that_no_float_decides_are_compared_exactly() -> None:
    instance = instances.picked(M=100, N=2000)
    config, arguments = launched(instance)
    assert wrong(instance, config, arguments, seed=0) == ""
    arguments["y"][0, 3] += 1
    assert "y at 0:16, :: 1 of 32000 integers differ" in wrong(instance, config, arguments, seed=0)


def test_whole_numbers_that_float32_tips_are_right() -> None:
    """x / step lies so near to a half in a few elements that float32 rounds it to the other side than float64."""
    instance = instances.quantise()
    config = Config(block_M=64)
    for seed in range(4):  # of two of which there are such elements
        arguments = inputs.make(instance, "cpu", seed)
        run(instance, arguments, config)
        assert wrong(instance, config, arguments, seed) == ""
    arguments["q"][:, -1] += 1
    assert "integers differ" in wrong(instance, config, arguments, seed)
