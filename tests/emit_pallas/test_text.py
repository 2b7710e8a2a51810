"""The generated module: pleasant to read, with nothing in it that its shape does not need."""

import re

import pytest

import kpt_dsl as kd
from kpt_dsl import targets
from kpt_dsl.emit import Source, emit
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config
from tests.emit_pallas import instances

V6E = targets.get("tpu-v6e")


@kd.kernel(x="M N", weight="N", out="M N")
def scaled(x: kd.In, weight: kd.In, out: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        top = kd.full([m], 0.0)
        for n in kd.sequential(kd.tile("N")):
            top = kd.maximum(top, kd.max(x[m, n], axis=1))
        for n2 in kd.sequential(kd.tile("N")):
            out[m, n2] = x[m, n2] / top[:, None] * weight[n2][None, :]


SCALED = '''\
"""scaled for TPUs, at one shape: a function of JAX arrays."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

M = 100
N = 512
block_M = 32
block_N = 128


def across(x, length):
    """A column that all lanes have, (rows, 128), along as many lanes as a tile has."""
    return jnp.concatenate([x] * -(-length // 128), axis=1)[:, :length]


def manual_axes(*arrays):
    """The axes of a mesh over which any of the arrays varies within jax.shard_map: over them outputs do."""
    varying = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    return jax.sharding.ManualAxisType(varying=frozenset().union(*varying))


def scaled_kernel(x_ref, weight_ref, out_ref, top_scratch):
    step = pl.program_id(1)

    @pl.when(step == 0)
    def begin():
        top_scratch[...] = jnp.zeros((block_M, 128), jnp.float32)  # top = kd.full([m], 0.0)

    @pl.when(step <= 3)
    def visit_n():
        # top = kd.maximum(top, kd.max(x[m, n], axis=1))
        top_scratch[...] = jnp.maximum(top_scratch[...], jnp.max(x_ref[...], axis=1, keepdims=True))

    @pl.when(step >= 4)
    def visit_n2():
        # out[m, n2] = x[m, n2] / top[:, None] * weight[n2][None, :]
        out_ref[...] = x_ref[...] / across(top_scratch[...], block_N) * weight_ref[...]


def scaled(x: jax.Array, weight: jax.Array, interpret: bool = False) -> jax.Array:
    """Gives out (M, N) f32."""
    axes = manual_axes(x, weight)
    (out,) = pl.pallas_call(
        scaled_kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=0,
            grid=(pl.cdiv(M, block_M), 8),
            in_specs=[
                pl.BlockSpec((block_M, block_N), lambda m, step: (m, jnp.where(step < 4, step, step - 4))),  # x
                pl.BlockSpec((1, block_N), lambda m, step: (0, jnp.maximum(step - 4, 0))),  # weight
            ],
            out_specs=[
                pl.BlockSpec((block_M, block_N), lambda m, step: (m, jnp.maximum(step - 4, 0))),  # out
            ],
            scratch_shapes=[
                pltpu.VMEM((block_M, 128), jnp.float32),  # top
            ],
        ),
        out_shape=[jax.ShapeDtypeStruct((M, N), jnp.float32, manual_axis_type=axes)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=134217728,
        ),
        interpret=interpret,
        name="scaled",
    )(
        x,
        weight[..., None, :],
    )
    return out
'''


def text(instance: Instance, target: str = "tpu-v6e", **config: int | bool) -> str:
    source: Source = emit(instance, targets.get(target), Config(**config))
    return source.text


def test_the_text_is_pleasant() -> None:
    instance = Instance.of_shapes(scaled, {"M": 100, "N": 512}, dict.fromkeys(("x", "weight", "out"), "f32"))
    assert text(instance, block_M=32, block_N=128) == SCALED


def test_a_loop_of_one_tile_is_no_loop() -> None:
    instance = Instance.of_shapes(scaled, {"M": 100, "N": 512}, dict.fromkeys(("x", "weight", "out"), "bf16"))
    one = text(instance, block_M=32, block_N=512)
    assert "pl.when" not in one
    assert "scratch" not in one
    assert 'dimension_semantics=("parallel",)' in one


def test_masks_stand_in_the_edge_only() -> None:
    body = text(instances.attention("bf16", causal=True, masked=False, N=370), block_M=64, block_N=128)
    interior = re.search(r"def interior_n\(\):\n(.*?)\n\n", body, re.S)
    edge = re.search(r"def edge_n\(\):\n(.*?)\n\n", body, re.S)
    assert interior is not None
    assert edge is not None
    assert "n_valid" not in interior[1]
    assert "position" not in interior[1]
    assert "n_valid" in edge[1]
    assert "position" in edge[1]


def test_whole_tiles_need_no_masks() -> None:
    body = text(instances.attention("bf16", causal=False, masked=False, M=256, N=512, D=64), block_M=128, block_N=128)
    assert "valid" not in body
    assert "jnp.where(new_top" in body  # the author's own


def test_steps_that_a_mask_makes_useless_fetch_nothing() -> None:
    body = text(instances.attention("bf16", causal=True, masked=False, N=370), block_M=64, block_N=128)
    assert "nearest(n, n_bounds(m), block_N, 3)" in body


def test_a_value_for_each_row_lies_along_lanes_in_memory() -> None:
    instance = instances.attention("bf16", causal=False, masked=False, M=512, N=512, D=64)
    body = text(instance, block_M=128, block_N=128)
    assert "lse_ref[...] = ((top_scratch[...] + jnp.log2(total_scratch[...])) * 0.6931472).T[:1]" in body
    assert "pl.BlockSpec((None, None, 1, block_M), lambda b, h, m, n, *_: (b, h, 0, m)),  # lse" in body
    assert "return o, lse[..., 0, :]" in body
    short = text(instance, block_M=64, block_N=128)
    assert "pl.BlockSpec((None, None, block_M, 1), lambda b, h, m, n, *_: (b, h, m, 0)),  # lse" in short


def test_what_lies_otherwise_in_memory_is_turned_once_a_program() -> None:
    _, instance = list(instances.attention_gradients("bf16", causal=False, masked=False, M=512, N=512, D=64))[1]
    body = text(instance, block_M=128, block_N=128)
    assert len(re.findall(r"top_scratch\[\.\.\.\] = jnp.broadcast_to\(shift_ref\[\.\.\.\]\.T, \(block_M, 128\)\)", body)) == 1
    assert body.count("shift_ref[...]") == 1


@kd.kernel(x="M N", out="M N", count="M", offset="M")
def standardised(x: kd.In, out: kd.Out, count: kd.Out, offset: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        top = kd.full([m], 0.0)
        for n in kd.sequential(kd.tile("N")):
            top = kd.maximum(top, kd.max(x[m, n], axis=1))
        half = top * 0.5
        count[m] = half
        offset[m] = half + m.index
        for n2 in kd.sequential(kd.tile("N")):
            out[m, n2] = kd.where((half > 1.0)[:, None], x[m, n2], (half - top)[:, None])


@pytest.mark.parametrize("block", [128, 8])
def test_what_is_made_of_a_kept_column_is_in_all_lanes_until_it_is_stored(block: int) -> None:
    instance = Instance.of_shapes(standardised, {"M": 256, "N": 512}, dict.fromkeys(standardised.tensors, "f32"))
    body = text(instance, block_M=block, block_N=128)
    column = block == 8  # tiles that are too short for rows
    assert "count_ref[...] = half" + ("[:, :1]" if column else ".T[:1]") in body
    assert "across(half_scratch[...] > 1.0, block_N)" in body
    assert "across(half_scratch[...] - top_scratch[...], block_N)" in body


@pytest.mark.parametrize(("block", "of_a_row"), [(128, 1), (1024, 1), (64, 128)])
def test_bytes_that_fill_registers_are_counted(block: int, of_a_row: int) -> None:
    """Of an output with an element a row, columns of which have 128 times the bytes."""
    instance = instances.attention("bf16", causal=False, masked=False, M=1024, N=512, D=128, H=2)
    abi = emit(instance, V6E, Config(block_M=block, block_N=512)).abi
    q, kv, lse = 2 * 1024 * 128, 2 * 2 * 512 * 128, 4 * 1024
    assert abi.moved_bytes == 4 * (2 * q + kv + of_a_row * lse)  # of two batches and heads, with q and o


def test_a_step_may_go_through_several_tiles() -> None:
    instance = instances.attention("bf16", causal=False, masked=False, M=512, N=512, D=64)
    body = text(instance, block_M=128, block_N=128, unroll_N=2)
    assert "for part in range(2):\n" in body
    assert "k_ref[part * block_N:(part + 1) * block_N, :]" in body
    assert "pl.BlockSpec((None, None, 2 * block_N, D)," in body.replace("\n                    ", "")
    assert "pl.when(step == 1)" in body
    assert body.index("* factor).astype(jnp.bfloat16)") < body.index("for part in range(2)")  # once for both
    one = text(instance, block_M=128, block_N=128, unroll_N=1)
    assert one == text(instance, block_M=128, block_N=128)
    with pytest.raises(kd.ConfigError, match="unroll_N is 3; it must divide the 4 tiles of N"):
        text(instance, block_M=128, block_N=128, unroll_N=3)


def test_steps_of_which_a_tile_is_cut_have_masks_and_are_counted_by_tile() -> None:
    instance = instances.attention("bf16", causal=True, masked=False, M=1024, N=1024, D=64, H=2)
    abi = emit(instance, V6E, Config(block_M=128, block_N=128, unroll_N=2)).abi
    # Tiles 0 to m are visited, the last with a mask, in steps of two: of m = 5 (0 1) (2 3) without masks, 4 and 5 with.
    begin, interior, first, second, finish = abi.visits
    assert begin == finish == 2 * 2 * 8
    assert interior == 2 * 2 * sum(m // 2 for m in range(8))
    assert (first, second) == (2 * 2 * 8, 2 * 2 * 4)
    assert abi.steps == 2 * 2 * 8 * 4


def test_float16_crosses_as_float32() -> None:
    body = text(instances.linear("f16"), block_M=128, block_N=128, block_K=128)
    assert "jnp.float16" not in body.replace("return y.astype(jnp.float16)", "")
    assert "x.astype(jnp.float32)," in body
    assert "precision=lax.Precision.HIGHEST" in body


@pytest.mark.parametrize(("target", "widened"), [("tpu-v4", True), ("tpu-v5e", False), ("tpu-tpu7x", False)])
def test_float8_is_widened_where_the_compiler_does_not_multiply_it(target: str, widened: bool) -> None:
    body = text(instances.fp8_matmul("f8e4m3", K=512), target, block_M=128, block_N=128, block_K=128)
    assert ("a_ref[...].astype(jnp.bfloat16)" in body) == widened
    assert ("b_ref[...].astype(jnp.bfloat16)" in body) == widened


def test_the_source_says_how_it_is_called_and_what_it_costs() -> None:
    source = emit(instances.linear("bf16", M=256, N=512, K=512), V6E, Config(block_M=128, block_N=256, block_K=128))
    abi = source.abi
    assert [(a.name, a.shape) for a in abi.inputs] == [("x", (256, 512)), ("weight", (512, 512)), ("bias", (512,))]
    assert [(a.name, a.shape, a.dtype) for a in abi.outputs] == [("y", (256, 512), "bf16")]
    assert abi.steps == 2 * 2 * 4
    assert abi.visits == (4, 4)  # the first and the last step of each program
    assert dict(abi.flops) == {"bf16": 2.0 * 256 * 512 * 512}
    x, weight, bias, y = 2 * 256 * 512, 2 * 512 * 512, 2 * 512, 256 * 512
    assert abi.moved_bytes == 2 * (
        x + weight + bias + y
    )  # each x for 2 columns of tiles, each weight and bias for 2 rows
