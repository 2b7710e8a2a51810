"""Loops in which several products wait for each other and read the same tiles: what the gradients of attention ask of a GPU."""

import pytest

from kpt.ops import registry
from kpt.ops.flash_attention.backward_kernels import flash_attention_dkdv, flash_attention_dq
from kpt_dsl.classes import options
from kpt_dsl.instance import Instance
from kpt_dsl.kernel import Kernel
from kpt_dsl.space import Config, space
from kpt_dsl.space.gpu.sizes import GpuSizes
from kpt_dsl.targets import get

H200 = get("nvidia-h200")


def instance(kernel: Kernel, D: int = 128, causal: bool = False) -> Instance:
    dtypes: dict[str, str | None] = dict.fromkeys(kernel.tensors.keys() - kernel.defaults, "bf16")
    dtypes |= {"delta": "f32", "shift": "f32"}
    dtypes |= {name: None for name in ("key_lengths", "dq_sum") if name in kernel.tensors}
    dims = {"B": 4, "H": 2048 // D, "G": 2048 // D, "M": 4096, "N": 4096, "D": D, "E": D}
    return Instance.of_shapes(kernel, dims, dtypes, {"causal": causal, "window": None})


def sizes(kernel: Kernel, block_M: int, block_N: int, num_warps: int, causal: bool = False) -> GpuSizes:
    config = Config(block_M=block_M, block_N=block_N, num_warps=num_warps, num_stages=2, descriptors=True)
    found = space(instance(kernel, causal=causal), H200)
    found.check(config)
    return GpuSizes(found.variants[0].facts, H200, config)


@pytest.mark.parametrize(
    ("kernel", "blocks", "shared", "registers"),
    [  # what Triton 3.9 made of them for sm_90
        (flash_attention_dq, (128, 64, 8), 131104, 142),
        (flash_attention_dq, (128, 128, 8), 196640, 208),
        (flash_attention_dq, (64, 64, 4), 99328, 156),
        (flash_attention_dkdv, (64, 128, 8), 131600, 241),
        (flash_attention_dkdv, (64, 64, 4), 99328, 252),
        (flash_attention_dkdv, (32, 128, 8), 98584, 209),
    ],
)
def test_estimates_are_near_what_was_compiled(
    kernel: Kernel, blocks: tuple[int, int, int], shared: int, registers: int
) -> None:
    found = sizes(kernel, *blocks)
    assert found.shared_bytes == pytest.approx(shared, rel=0.02)  # a tile that two products read is there once
    assert abs(found.registers - registers) <= 30


def test_warps_beyond_the_rows_repeat_the_work_of_others() -> None:
    """Eight warps on 64 rows: each half makes all scores."""
    found = space(instance(flash_attention_dkdv), H200)
    four, eight = (
        found.seconds(Config(block_M=64, block_N=64, num_warps=n, num_stages=2, descriptors=True)) for n in (4, 8)
    )
    assert eight > 1.2 * four
    assert sizes(flash_attention_dkdv, 64, 64, 8).registers > sizes(flash_attention_dkdv, 32, 64, 8).registers + 16


def test_causal_programs_that_all_run_at_once_end_late_too() -> None:
    """As more do that do not: one tile more a head is no step in the model."""
    config = Config(block_M=64, block_N=64, num_warps=4, num_stages=2, group=4, descriptors=False)

    def found(tiles: int) -> tuple[int, float]:
        of = space(instance(flash_attention_dq, D=64, causal=True).with_dims(B=1, M=64 * tiles, N=1024), H200)
        sizes = GpuSizes(of.variants[0].facts, H200, config)
        return sizes.programs // (sizes.resident * H200.cores), of.seconds(config)

    (at_once, less), (beyond, more) = found(8), found(9)
    assert (at_once, beyond) == (0, 1)
    assert more < 1.2 * less


@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", [flash_attention_dq, flash_attention_dkdv], ids=lambda k: k.name)
def test_first_configs_fill_the_matrix_unit(kernel: Kernel, D: int, causal: bool) -> None:
    """Each four warps have the 64 rows of their instruction, and crowded registers leave addresses to descriptors."""
    found = space(instance(kernel, D, causal), H200)
    rows = found.first["block_M" if kernel is flash_attention_dq else "block_N"]
    assert int(rows) >= 16 * int(found.first["num_warps"])
    crowded = GpuSizes(found.variants[0].facts, H200, found.first).pressure > 0.8
    assert found.first["descriptors"] or not crowded


@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", [flash_attention_dq, flash_attention_dkdv], ids=lambda k: k.name)
def test_results_that_wait_for_each_other_are_narrow(kernel: Kernel, D: int, causal: bool) -> None:
    """128 x 128 of scores and of their gradients fit, and were measured slower than 128 x 64."""
    first = space(instance(kernel, D, causal), H200).first
    assert int(first["block_N" if kernel is flash_attention_dq else "block_M"]) <= 64


@pytest.mark.parametrize(
    ("D", "length", "expected"),
    [
        (64, 200, {"block_M": 32, "num_stages": 2, "descriptors": False}),  # 1.68 of its time with 64, descriptors
        (64, 256, {"block_M": 32, "num_stages": 2, "descriptors": False}),  # 1.25
        (64, 4096, {"block_M": 64, "num_stages": 3, "descriptors": False}),  # 1.08 with two stages, descriptors
        (128, 4096, {"block_M": 64, "num_stages": 2, "descriptors": True}),  # 1.29 with 32
    ],
)
def test_gradients_of_keys_have_what_was_measured_to_be_quick(D: int, length: int, expected: dict[str, object]) -> None:
    """As many keys a program; short loops leave registers to masks, so that three programs share a core."""
    dims = {"B": 64 if length < 1000 else 2, "H": 32, "G": 8, "M": length, "N": length}
    first = options(instance(flash_attention_dkdv, D, causal=True).with_dims(**dims), H200).first
    assert {"block_N": 64, "num_warps": 4, **expected}.items() <= first.items()


def test_two_accumulators_are_no_more_than_one_to_an_epilogue() -> None:
    """dk and dv of 128 keys, 64 registers a thread each, are stored one after the other."""
    assert space(instance(flash_attention_dkdv), H200).first["block_N"] == 128


def test_heads_take_no_turns_where_tiles_keep_within_groups() -> None:
    dims = {"B": 2, "H": 8, "G": 2, "M": 4096, "N": 4096, "D": 128}
    *_, packed = registry.get("flash_attention").instances(dims, "bf16", causal=True, packed=True)
    assert space(packed, H200).first["group"] == 1
    assert space(instance(flash_attention_dq, causal=True), H200).first["group"] == 4


def test_more_groups_than_keys_have_a_config() -> None:
    dims = {"B": 1, "H": 4, "G": 2, "M": 64, "N": 64, "D": 64}
    *_, packed = registry.get("flash_attention").instances(dims, "bf16", causal=True, packed=True)
    groups = packed.kernel.tensors["query_ends"][0], packed.kernel.tensors["key_ends"][0]
    few = packed.with_dims(N=1, **dict.fromkeys(groups, 5))
    assert space(few, H200).first["block_M"] == space(packed, H200).first["block_M"]


@pytest.mark.parametrize(("queries", "keys"), [(4096, 1), (16384, 64)])
def test_loops_that_no_program_looked_at_makes_a_step_of_have_a_config(queries: int, keys: int) -> None:
    """Causal, only the last queries see any of so few keys."""
    dims = {"B": 1, "H": 16, "G": 16, "M": queries, "N": keys, "D": 128}
    for found in registry.get("flash_attention").instances(dims, "bf16", causal=True):
        assert space(found, H200).first
