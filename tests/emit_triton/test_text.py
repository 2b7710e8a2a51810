"""What generated Triton source looks like, and on which facts about an instance it depends."""

import ast
from dataclasses import replace

import pytest

from kpt_dsl import targets
from kpt_dsl.emit import emit
from kpt_dsl.emit.triton.abi import Descriptor, Pointer
from kpt_dsl.errors import ConfigError
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config
from tests.emit_triton.kernels import batched, gelu, row_sum, scaled, softmax
from tests.emit_triton.support import attention_instance, key_gradients_instance, linear_instance, source

BLOCKS = dict(block_M=64, block_N=64, block_K=32, num_warps=4)
ATTENTION = dict(block_M=64, block_N=32, num_warps=4)


def test_text_is_a_module_with_the_authors_names_and_lines() -> None:
    made = source(linear_instance(512, 512, 512), **BLOCKS)
    tree = ast.parse(made.text)
    (function,) = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
    assert function.name == made.name == "linear"
    assert "acc = tl.dot(x_tile, weight_tile.T, acc)" in made.text
    assert '# for k in kd.sequential(kd.tile("K")):' in made.text
    assert [a.arg for a in function.args.args] == list(made.abi.signature())


def test_text_knows_no_machine_path_and_no_long_line() -> None:
    for instance, knobs in (
        (linear_instance(37, 199, 760, activation=gelu), BLOCKS),
        (attention_instance(37, 199, 80), ATTENTION),
    ):
        text = source(instance, **knobs).text
        assert __file__.rpartition("/")[0] not in text
        assert max(map(len, text.splitlines())) <= 160


@pytest.mark.parametrize("descriptors", [False, True])
def test_shapes_with_the_same_facts_share_text(descriptors: bool) -> None:
    knobs = BLOCKS | {"descriptors": descriptors}
    first, second = (source(linear_instance(*shape), **knobs) for shape in ((512, 1024, 256), (4096, 64, 8192)))
    assert first == second
    assert source(linear_instance(500, 1024, 256), **knobs) == first  # rows of products that no loop visits
    assert source(linear_instance(512, 1000, 256), **knobs) != first


def test_multiples_of_the_block_need_no_mask() -> None:
    level, ragged = (source(linear_instance(512, 512, n), **BLOCKS).text for n in (512, 500))
    assert "k_valid" not in level and "n_valid" not in level and "mask=" not in level.partition("tl.store")[0]
    assert "k_valid" in ragged and "mask=" in ragged.partition("tl.store")[0]


def test_ragged_rows_are_wrapped_not_masked_in_the_loop() -> None:
    text = source(linear_instance(500, 512, 512), **BLOCKS).text
    assert "m_inside = m_index % M - m_start" in text
    loop = text.partition("for k_start")[2].partition("bias_base")[0]
    assert "m_inside[:, None]" in loop and "mask" not in loop


def test_causal_loop_splits_and_its_interior_has_no_mask() -> None:
    text = source(attention_instance(512, 512, 64, causal=True), **ATTENTION).text
    interior, tail = text.split("for n_start in ")[1:]
    assert "tl.where(n_index" not in interior and "mask=" not in interior
    assert "tl.where(n_index" in tail


def test_later_tiles_of_causal_attention_run_first() -> None:
    assert "longest first" in source(attention_instance(512, 512, 64, causal=True), **ATTENTION).text
    assert "longest first" not in source(attention_instance(512, 512, 64), **ATTENTION).text
    # The gradients of keys begin later, and do less, the later their tile is: they are longest first as they stand.
    text = source(key_gradients_instance(512, 512, 64, causal=True), **ATTENTION).text
    assert "longest first" not in text
    assert text.count("for m_start") == 2  # along the diagonal, and below it: nothing is cut short at the end
    assert source(key_gradients_instance(512, 500, 64, causal=True), **ATTENTION).text.count("for m_start") == 2
    assert source(key_gradients_instance(500, 512, 64, causal=True), **ATTENTION).text.count("for m_start") == 3


def test_descriptors_where_legal_and_pointers_elsewhere() -> None:
    knobs = BLOCKS | {"descriptors": True}

    def kinds(instance: Instance, target: str = "nvidia-h200") -> set[type]:
        arguments = source(instance, target, **knobs).abi.arguments
        return {type(a) for a in arguments if isinstance(a, Pointer | Descriptor) and a.tensor != "bias"}

    assert kinds(linear_instance(512, 512, 512)) == {Descriptor}
    assert kinds(linear_instance(500, 504, 512)) == {Descriptor}
    assert kinds(linear_instance(512, 512, 500)) == {Pointer, Descriptor}  # rows of 1000 bytes: y alone is on the grid
    assert kinds(linear_instance(512, 512, 512), "nvidia-a100") == {Pointer}


def test_a_descriptor_of_a_batch_has_the_rank_of_the_tensor() -> None:
    instance = Instance.of_shapes(batched, dict(B=3, M=128, N=128, K=64), dict(x="bf16", weight="bf16", y="bf16"))
    made = source(instance, **BLOCKS | {"descriptors": True})
    assert "x_desc.load([b, m_start, k_start]).reshape([BLOCK_M, BLOCK_K])" in made.text
    assert made.abi.signature()["x_desc"] == "tensordesc<bf16[1, 64, 32]>"


def test_grouped_order_and_persistence() -> None:
    text = source(linear_instance(512, 512, 512), **BLOCKS | {"group": 4, "persistent": True}).text
    assert "GROUP: tl.constexpr = 4" in text
    assert "tl.range(tl.program_id(0), m_tiles * n_tiles, tl.num_programs(0), flatten=True)" in text


def test_epilogue_in_parts_cuts_before_it_calculates() -> None:
    text = source(linear_instance(512, 512, 512, activation=gelu), **BLOCKS | {"descriptors": True, "epilogue": 2}).text
    assert "acc_left, acc_right = tl.split(acc.reshape([BLOCK_M, 2, 32]).permute(0, 2, 1))" in text
    assert text.count("y_desc.store(") == 2 and text.count("tl.erf(") == 2
    assert "tl.erf(acc *" not in text


def test_an_epilogue_in_parts_loads_what_its_columns_need_itself() -> None:
    # Held across the loop, every thread would keep the scales of all columns that it multiplies.
    dtypes = dict(a="f8e4m3", b="f8e4m3", scale_a="f32", scale_b="f32", y="bf16")
    instance = Instance.of_shapes(scaled, dict(M=512, N=512, K=512), dtypes)
    ahead, _, behind = source(instance, **BLOCKS | {"epilogue": 4}).text.partition("for k_start")
    assert "scale_a_base" in ahead and "scale_b_base" not in ahead
    assert behind.count("columns = tl.load(scale_b_base") == 4


def test_a_tile_of_stride_zero_is_one_scalar() -> None:
    dtypes = dict(a="bf16", b="bf16", scale_a="f32", scale_b="f32", y="bf16")
    instance = Instance.of_shapes(scaled, dict(M=512, N=512, K=512), dtypes)
    strides = tuple((name, (0,) if name == "scale_a" else s) for name, s in instance.extents.strides)
    expanded = Instance(instance.specialisation, replace(instance.extents, strides=strides))
    text = source(expanded, **BLOCKS).text
    assert "tl.full([BLOCK_M], tl.load(scale_a), tl.float32)" in text
    assert "columns = tl.load(scale_b_base + n_lane)" in text


def test_tensors_beyond_32_bits_have_64_bit_bases() -> None:
    small, large = (Instance.of_shapes(row_sum, dict(M=m, N=65536), dict(x="bf16", total="f32")) for m in (1024, 131072))
    knobs = dict(block_M=4, block_N=1024, num_warps=4)
    assert "int64" not in source(small, **knobs).text
    assert "tl.cast(m_start, tl.int64) * x_stride_M" in source(large, **knobs).text


def test_amd_alone_learns_which_tensors_are_below_two_gib() -> None:
    """Its compiler asks; NVIDIA's does not, and a binary for each answer would be one too many."""
    instance = Instance.of_shapes(softmax, dict(M=64, N=64), dict(x="bf16", out="bf16"))
    amd, nvidia = (source(instance, t, block_M=4, num_warps=4).abi.attributes() for t in ("amd-mi300x", "nvidia-h200"))
    assert ["tt.pointer_range", 32] in amd[(0,)]
    assert not any(["tt.pointer_range", 32] in facts for facts in nvidia.values())


@pytest.mark.parametrize("block", [None, 48, 8])
def test_blocks_that_no_gpu_could_run_are_refused(block: int | None) -> None:
    knobs = dict(BLOCKS, block_M=block) if block else {k: v for k, v in BLOCKS.items() if k != "block_M"}
    with pytest.raises(ConfigError, match=r"block_M is .* must be a power of two of at least 16"):
        emit(linear_instance(64, 64, 64), targets.get("nvidia-h200"), Config(knobs))
