"""The third rung: first configs of every op and dtype lower for every TPU, and configs that none takes are refused before."""

import pytest

import kpt_dsl as kd
from kpt.ops.layer_norm.kernels import layer_norm_fwd
from kpt.ops.linear_act.activations import ACTIVATIONS, BACKWARD
from kpt_dsl import targets
from kpt_dsl.build.pallas import lower
from kpt_dsl.emit import emit
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config, space
from tests.emit_pallas import instances

pytest.importorskip("jax")

TPUS = [name for name in targets.names() if targets.get(name).backend == "pallas"]


def lowered(instance: Instance, target: str, config: Config | None = None) -> str:
    chip = targets.get(target)
    return lower(emit(instance, chip, config or space(instance, chip).first))


@pytest.mark.parametrize("target", TPUS)
@pytest.mark.parametrize("name", instances.OPS)
def test_first_configs_lower(name: str, target: str) -> None:
    assert "tpu_custom_call" in lowered(instances.OPS[name], target)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", instances.WIDE)
def test_every_activation_lowers(activation: str, dtype: str) -> None:
    assert "tpu_custom_call" in lowered(instances.linear(dtype, activation), "tpu-v6e")


@pytest.mark.parametrize("activation", BACKWARD)
def test_every_gradient_of_an_activation_lowers(activation: str) -> None:
    for _, instance in instances.linear_training("bf16", activation):
        assert "tpu_custom_call" in lowered(instance, "tpu-v6e")


@pytest.mark.parametrize("whole_row", [True, False])
@pytest.mark.parametrize("name", ["layer_norm-bf16", "rms_norm-f32", "quantize_rows-bf16-f8e4m3"])
def test_both_ways_over_a_row_lower(name: str, whole_row: bool) -> None:
    config = Config(whole_row=whole_row, block_M=64, block_N=256)
    assert "tpu_custom_call" in lowered(instances.OPS[name], "tpu-v5e", config)


def test_a_block_that_no_tpu_takes_is_refused() -> None:
    instance = instances.norm(layer_norm_fwd, "bf16")
    with pytest.raises(
        kd.ConfigError,
        match=r"block_N=200: tiles of x\[M, N\] along N must be multiples of 128 on a TPU, or all of its 1300",
    ):
        emit(instance, targets.get("tpu-v6e"), Config(whole_row=False, block_M=64, block_N=200))
    with pytest.raises(
        kd.ConfigError,
        match=r"block_M=12: tiles of x\[M, N\] along M must be multiples of 8 on a TPU, or all of its 199",
    ):
        emit(instance, targets.get("tpu-v6e"), Config(whole_row=True, block_M=12))
    with pytest.raises(
        kd.ConfigError, match="block_M is None; it must be a positive integer, the length of tiles of M"
    ):
        emit(instance, targets.get("tpu-v6e"), Config(whole_row=True))


@kd.kernel(x="M N", out="M")
def nested(x: kd.In, out: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        total = kd.zeros([m])
        for _ in kd.sequential(kd.tile("M")):
            for n in kd.sequential(kd.tile("N")):
                total += kd.sum(x[m, n], axis=1)
        out[m] = total


@kd.kernel(x="N", last="B", out="B")
def computed_bound(x: kd.In, last: kd.In, out: kd.Out) -> None:
    for b in kd.parallel("B"):
        found, total = kd.full([], 0, kd.i32), kd.full([], 0.0)
        for n in kd.sequential(kd.tile("N")):
            found = kd.maximum(found, n.start)
        for n2 in kd.sequential(kd.tile("N"), stop=found):
            total += kd.sum(x[n2], axis=0)
        out[b] = total


@kd.kernel(x="M", out="M")
def two_ways(x: kd.In, out: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        out[m] = x[m] + x[0]


@pytest.mark.parametrize(
    ("kernel", "dims", "reason"),
    [
        (nested, {"M": 256, "N": 256}, r"nested: a sequential loop inside another \(line \d+\) has no TPU form yet"),
        (computed_bound, {"N": 256, "B": 2}, r"an index or a loop bound depends on found, which a loop computes"),
        (two_ways, {"M": 256}, "two_ways reads x both in tiles and one element at a time"),
    ],
)
def test_what_a_tpu_cannot_do_is_said(kernel: kd.Kernel, dims: dict[str, int], reason: str) -> None:
    dtypes = {name: "i32" if name == "last" else "f32" for name in kernel.tensors}
    instance = Instance.of_shapes(kernel, dims, dtypes)
    with pytest.raises(kd.TargetError, match=reason):
        emit(instance, targets.get("tpu-v6e"), Config(block_M=128, block_N=128))


def test_an_empty_dim_is_refused_by_name() -> None:
    instance = instances.norm(layer_norm_fwd, "f32", M=0)
    with pytest.raises(kd.ConfigError, match="layer_norm_fwd: dim M is empty"):
        emit(instance, targets.get("tpu-v6e"), Config(whole_row=True, block_M=8))


def test_what_pallas_refuses_is_a_compile_error() -> None:
    source = emit(instances.norm(layer_norm_fwd, "f32"), targets.get("tpu-v6e"), Config(whole_row=True, block_M=64))
    wrong = type(source)("pallas", source.name, source.text.replace("(block_M, N)", "(13, 17)"), source.abi)
    with pytest.raises(kd.CompileError, match="Pallas refuses layer_norm_fwd"):
        lower(wrong)
