"""Outputs that programs add to: cleared before a launch that is verified, and compared with all that is added."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from autotune_db import inputs, sums
from autotune_db.bench import Bench
from autotune_db.verify import wrong
from kpt.ops import registry
from kpt_dsl import ir, targets
from kpt_dsl.instance import Instance
from kpt_dsl.runtime.numpy import run
from kpt_dsl.space import Config, space
from tests.autotune_db import kernels

CPU = targets.get("cpu")


def small(kernel: Any, **dims: int) -> Instance:
    return Instance.of_shapes(kernel, dims, dict.fromkeys(kernel.tensors, "f32"))


def attention(dtype: str = "bf16", M: int = 70, N: int = 90, **flags: Any) -> Instance:
    """The kernel of attention's gradients that adds to dq, two query heads to a key head."""
    dims = {"B": 2, "H": 4, "G": 2, "M": M, "N": N, "D": 16}
    instances = registry.get("flash_attention_backward").instances(dims, dtype, **flags)
    (found,) = (p for p in instances if ir.added(p.lower({})))
    return found


SMALL: dict[str, Instance] = {
    "shares of rows": small(kernels.shares_of_rows, M=100, N=70),
    "below the top": small(kernels.below_the_top, M=50, N=40),
    "group sums": small(kernels.group_sums, B=3, H=12, G=4, N=50),
    "tiles of groups": Instance.of_shapes(
        kernels.head_sums, {"H": 3, "T": 100, "D": 8, "C": 8}, {"x": "f32", "cu": "i32", "y": "f32"}
    ),
    "attention": attention(),
    "attention f32": attention("f32", causal=True, window=20),
    "attention with lengths": attention("f16", key_lengths=True),
    "causal attention": attention(M=90, N=40, causal=True),
}


def launched(instance: Instance) -> tuple[Config, dict[str, Any], str]:
    """What a right launch leaves, and the output that it has added to."""
    config = Config(dict.fromkeys(space(instance, CPU).knobs, 16))
    arguments = inputs.make(instance, "cpu", seed=1)
    (name,) = ir.added(instance.lower(config))
    arguments[name].zero_()
    run(instance, arguments, config)
    return config, arguments, name


@pytest.mark.parametrize("name", SMALL)
def test_a_right_sum_passes(name: str) -> None:
    config, arguments, _ = launched(SMALL[name])
    assert wrong(SMALL[name], config, arguments, seed=0) == ""


def added_twice(y: torch.Tensor) -> torch.Tensor:
    return 2 * y


def nothing_added(y: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(y)


def not_cleared(y: torch.Tensor) -> torch.Tensor:
    return y + y.abs().max()


def elsewhere(y: torch.Tensor) -> torch.Tensor:
    return y.roll(1, -1)


def last_one_unset(y: torch.Tensor) -> torch.Tensor:
    y = y.clone()
    y.flatten()[-1] = float("nan")
    return y


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("damage", [added_twice, nothing_added, not_cleared, elsewhere, last_one_unset])
def test_a_wrong_sum_does_not(name: str, damage: Callable[[torch.Tensor], torch.Tensor]) -> None:
    config, arguments, output = launched(SMALL[name])
    arguments[output].copy_(damage(arguments[output]))
    assert f"{output} at " in wrong(SMALL[name], config, arguments, seed=0)


@pytest.mark.parametrize("keys", [slice(0, 16), slice(64, 80)], ids=["first", "last but one"])
def test_what_one_program_did_not_add_is_missed(keys: slice) -> None:
    """One tile of keys of six: the others are as they should be."""
    instance = attention("f32")
    config, arguments, output = launched(instance)
    alone = {name: a.clone() if isinstance(a, torch.Tensor) else a for name, a in arguments.items()}
    alone[output].zero_()
    for name in ("k", "v"):  # of no weight, so that only these keys add anything
        kept = alone[name][:, :, keys].clone()
        alone[name].zero_()[:, :, keys] = kept
    run(instance, alone, config)
    arguments[output] -= alone[output]
    assert "error" in wrong(instance, config, arguments, seed=0)


def test_parts_are_as_large_as_they_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tile of queries of one head, where each step of a loop adds for itself; else all that the loop may meet."""
    instance = attention(M=4096, N=4096)
    config = Config(block_M=64, block_N=128)
    found = list(_parts(instance, config))
    assert {tuple(stop - start for start, stop in part.bounds) for part in found} == {(1, 1, 64, 16)}
    assert [part.bounds[2] for part in (found[0], found[-1])] == [(0, 64), (4032, 4096)]
    assert found[0].config["block_N"] == sums.AT_ONCE
    (steps, *_) = {p.bounds for p in _parts(SMALL["below the top"], Config(block_M=16, block_N=16))}
    assert steps[0] == (0, 50)
    assert {p.bounds[1] for p in _parts(SMALL["group sums"], Config(block_N=16))} == {(0, 4)}


def _parts(instance: Instance, config: Config) -> Any:
    import random

    kernel = instance.lower(config)
    return sums.parts(kernel, *ir.added(kernel), instance.extents, config, random.Random(0))


def test_a_bench_clears_what_is_added_to() -> None:
    """However often a config was launched before it is verified."""
    instance = SMALL["shares of rows"]
    bench = Bench(instance, "cpu", 0, seed=0)
    first = space(instance, CPU).first
    assert bench.wrong(first) == ""  # getting a launch ready is to launch it
    bench.compare([first], 0.01)
    assert bench.wrong(first) == ""
