"""Spaces: which knobs a kernel has where, what is refused and why, and that every instance has a legal config to begin with."""

import ast
import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpt.ops import registry
from kpt.ops.column_sums import column_sums
from kpt_dsl import targets
from kpt_dsl.errors import ConfigError, TargetError
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config, Space, space
from kpt_dsl.space.config import Value
from kpt_dsl.space.gpu.sizes import GpuSizes
from kpt_dsl.space.tpu.sizes import TpuSizes
from tests.space import instances

H200, H100, A100 = (targets.get(f"nvidia-{name}") for name in ("h200", "h100", "a100"))
MI300X, V6E, CPU = targets.get("amd-mi300x"), targets.get("tpu-v6e"), targets.get("cpu")


# ------------------------------------------------------------------ which knobs there are
def test_matmul_on_hopper_has_every_knob() -> None:
    found = space(instances.linear(8192, 14336, 4096), H200)
    assert set(found.knobs) == {
        "schedule", "block_M", "block_N", "block_K", "num_warps", "num_stages", "group", "persistent", "descriptors",
        "epilogue", "consumers", "registers",
    }  # fmt: skip


def test_descriptors_need_hardware_for_them() -> None:
    found = space(instances.linear(8192, 14336, 4096), A100)
    assert not {"descriptors", "epilogue"} & set(found.knobs)


def test_descriptors_need_aligned_strides() -> None:
    assert "descriptors" in space(instances.attention(256, 256, 64), H200).knobs
    assert "descriptors" not in space(instances.attention(256, 256, 63), H200).knobs


def test_compiler_options_come_from_the_target() -> None:
    found = space(instances.attention(4096, 4096), MI300X)
    assert found.knobs["matrix_instr_nonkdim"] == (16, 32)
    assert found.knobs["kpack"] == (1, 2)
    assert "kpack" not in space(instances.attention(4096, 4096), targets.get("amd-mi355x")).knobs


def test_rows_alone_have_no_knobs_of_products() -> None:
    found = space(instances.layer_norm(8192, 4096), H200)
    assert set(found.knobs) == {"whole_row", "block_M", "block_N", "num_warps"}


def test_tpu_has_blocks_only() -> None:
    assert set(space(instances.linear(8192, 14336, 4096), V6E).knobs) == {"block_M", "block_N", "block_K"}


def test_a_tpu_takes_several_tiles_at_once_where_products_hang_on_each_other() -> None:
    found = space(instances.attention(8192, 8192), V6E)
    assert found.knobs["unroll_N"] == (1, 2, 4)
    assert found.first["unroll_N"] == 4
    assert space(instances.attention(8192, 8192, causal=True), V6E).first["unroll_N"] == 2
    why = found.why_illegal(found.first | {"block_N": 2048, "unroll_N": 8})
    assert why is not None
    assert why.startswith("unroll_N is 8; accepted here are 1, 2, 4")
    odd = space(instances.attention(8192, 5000), V6E)
    why = odd.why_illegal(odd.first | {"block_N": 1024, "unroll_N": 2})
    assert why == "unroll_N is 2, which does not divide 5 tiles of N"
    why = odd.why_illegal(odd.first | {"block_N": 8, "unroll_N": 1})
    assert why is None
    why = space(instances.attention(8192, 64), V6E).why_illegal(Config(block_M=1024, block_N=8, unroll_N=2))
    assert why == "block_N is 8; one behind the other, tiles must be multiples of 128"


def test_tiles_grow_no_further_than_the_dim() -> None:
    found = space(instances.linear(16, 14336, 4096), H200)
    assert found.knobs["block_M"] == (16,)
    assert found.knobs["block_N"] == (16, 32, 64, 128, 256)


def test_depth_of_8_bit_products_starts_at_32() -> None:
    assert space(instances.fp8_matmul(512, 512, 512), H200).knobs["block_K"][0] == 32


def test_size_counts_each_choice_with_its_own_knobs() -> None:
    found = space(instances.layer_norm(8192, 4096), H200)
    knobs = found.knobs
    shared = len(knobs["block_M"]) * len(knobs["num_warps"])
    assert found.size == shared + shared * len(knobs["block_N"])


@pytest.mark.parametrize("instance", [instances.attention(64, 128, 32), instances.layer_norm(64, 512)], ids=str)
def test_iteration_gives_legal_configs_each_once(instance: Instance) -> None:
    found = space(instance, H200)
    configs = list(found)
    assert 0 < len(configs) <= found.size
    assert len(set(configs)) == len(configs)
    assert all(found.why_illegal(config) is None for config in configs)


# ------------------------------------------------------------------ a config has exactly the knobs that its choices need
def test_a_knob_of_the_other_choice_is_refused() -> None:
    found = space(instances.layer_norm(8192, 4096), H200)
    config = Config(whole_row=True, block_M=1, block_N=1024, num_warps=8)
    assert found.why_illegal(config) == "block_N does nothing when whole_row=True; leave it out"
    assert found.canonical(config) == Config(whole_row=True, block_M=1, num_warps=8)
    assert found.why_illegal(found.canonical(config)) is None


def test_a_missing_knob_is_named() -> None:
    found = space(instances.layer_norm(8192, 4096), H200)
    assert str(found.why_illegal(Config(whole_row=False, block_M=1, num_warps=8))).startswith("block_N missing")


def test_an_unknown_knob_is_named() -> None:
    found = space(instances.layer_norm(8192, 4096), H200)
    assert str(found.why_illegal(found.first | {"num_stage": 3})).startswith("there is no knob num_stage; there are")


@pytest.mark.parametrize("value", [96, True, "64", 512])
def test_a_value_outside_the_space_is_refused(value: Value) -> None:
    found = space(instances.linear(8192, 14336, 4096), H200)
    assert found.why_illegal(found.first | {"block_M": value}) == (
        f"block_M is {value!r}; accepted here are 16, 32, 64, 128, 256"
    )


# ------------------------------------------------------------------ planted illegal points, each with its reason
_CASES = (
    ("products of 128 rows", H200, instances.linear(8192, 8192, 8192), {"num_warps": 2}, "issued by 4 warps together"),
    ("accumulators", H200, instances.linear(8192, 8192, 8192), {"num_warps": 4}, "296 registers a thread"),
    (
        "four stages and a whole epilogue",
        H200, instances.linear(8192, 8192, 8192), {"num_stages": 4, "epilogue": 1}, "262,144 B of shared memory",
    ),
    ("narrow parts", H200, instances.linear(8192, 8192, 8192), {"block_N": 64, "epilogue": 4}, "fewer than 32 a part"),
    ("parts without descriptors", H200, instances.linear(8192, 8192, 8192), {"descriptors": False}, "only descriptors"),
    ("more threads than elements", H200, instances.layer_norm(64, 37), {"block_M": 1, "num_warps": 16}, "512 threads"),
    ("a huge tile", H200, instances.rms_norm(64, 65536), {"whole_row": True, "block_M": 64}, "1,048,576"),
    ("a whole row in registers", H200, instances.rms_norm(64, 65536), {"num_warps": 4, "whole_row": True}, "registers"),
    ("shared memory of an older chip", A100, instances.attention(4096, 4096, 256), {"num_stages": 5}, "shared memory"),
    ("vector memory", targets.get("tpu-v4"), instances.layer_norm(4096, 8192), {"block_M": 2048}, "vector memory"),
)  # fmt: skip
PLANTED = [pytest.param(*case, id=name) for name, *case in _CASES]


@pytest.mark.parametrize(("target", "instance", "change", "reason"), PLANTED)
def test_planted_config_is_refused_with_its_reason(
    target: targets.Target, instance: Instance, change: Mapping[str, Value], reason: str
) -> None:
    found = space(instance, target)
    config = found.canonical({**found.first, **change})
    assert reason in str(found.why_illegal(config))
    with pytest.raises(ConfigError, match=rf"on {target.name}: config .* is illegal: "):
        found.check(config)


def test_what_is_read_beside_a_result_takes_shared_memory() -> None:
    """As much as Triton allocates: 262,208 B were seen of this config, and it does not fit."""
    config = Config(
        block_M=256, block_N=128, block_K=64, num_warps=8, num_stages=4, group=16, persistent=True, descriptors=True, epilogue=2
    )  # fmt: skip
    chip = targets.get("nvidia-b200")
    assert space(instances.linear(8192, 8192, 8192), chip).why_illegal(config) is None
    reason = space(instances.residual(8192, 8192, 8192), chip).why_illegal(config)
    assert reason is not None
    assert reason.startswith("tiles need about 262,144 B of shared memory")


def test_a_tpu_block_that_is_no_multiple_of_a_register_is_refused() -> None:
    found = space(instances.linear(1000, 1000, 1000), V6E)
    assert 1000 in found.knobs["block_N"]
    assert all(int(value) % 128 == 0 or value == 1000 for value in found.knobs["block_N"])
    assert all(int(value) % 8 == 0 or value == 1000 for value in found.knobs["block_M"])


@pytest.mark.parametrize(("block", "bytes_of_a_row"), [(64, 512), (128, 4), (256, 4), (300, 5.12)])
def test_columns_are_priced_as_what_they_fill(block: int, bytes_of_a_row: float) -> None:
    facts = space(instances.attention(300, 4096), V6E).variants[0].facts
    (lse,) = (store for store in facts.stores if store.tensor.name == "lse")
    assert TpuSizes(facts, V6E, Config(block_M=block, block_N=512)).block_bytes(lse) == round(block * bytes_of_a_row)


def test_rules_that_cannot_be_imported_are_named() -> None:
    strange = replace(CPU, name="acme-npu", rules="acme_npu.rules")
    with pytest.raises(TargetError, match=r"space rules 'acme_npu\.rules' of acme-npu"):
        Space(instances.layer_norm(8, 8), strange)


# ------------------------------------------------------------------ the first config
FLOATS = ("f32", "f16", "bf16")
UGLY = (1, 37, 199, 760)


def _ugly(dtype: str, m: int, n: int) -> list[Instance]:
    found = [
        instances.attention(m, n, 80, b=2, h=4, g=2, dtype=dtype, causal=m <= n),
        instances.linear(m, n, 37, dtype, "silu"),
        instances.layer_norm(m, n, dtype),
        instances.rms_norm(m, n, dtype),
        *instances.quantize(m, n, dtype),
        *instances.of_strangers(m, n, dtype),
    ]
    return [*found, instances.fp8_matmul(m, n, 760, "f8e5m2")] if dtype == "bf16" else found


HUGE = [
    *(instances.attention(16384, 131072, d, dtype=t) for d, t in ((256, "f32"), (256, "bf16"), (32, "f16"))),
    *(instances.layer_norm(65536, 262144, dtype) for dtype in FLOATS),
    *(instances.rms_norm(1, 262144, dtype) for dtype in FLOATS),
    *instances.quantize(131072, 131072),
    instances.linear(131072, 131072, 131072),
    instances.linear(1, 262144, 16384, "f32"),
    instances.fp8_matmul(131072, 16, 131072),
]


def _check_first(instance: Instance, target: targets.Target) -> None:
    found = space(instance, target)
    assert found.why_illegal(found.first) is None, f"{instance} on {target.name}: {found.first}"
    assert found.canonical(found.first) == found.first


@pytest.mark.parametrize("name", ["nvidia-h200", "amd-mi300x", "tpu-v6e", "cpu"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_ugly_shapes_have_a_legal_first_config(name: str, dtype: str) -> None:
    for m, n in itertools.product(UGLY, UGLY):
        for instance in _ugly(dtype, m, n):
            _check_first(instance, targets.get(name))


@pytest.mark.parametrize("name", targets.names())
def test_every_kernel_has_a_legal_first_config_on_every_target(name: str) -> None:
    for instance in [instance for dtype in FLOATS for instance in _ugly(dtype, 199, 760)] + HUGE:
        _check_first(instance, targets.get(name))


@given(
    m=st.integers(1, 300_000),
    n=st.integers(1, 300_000),
    dtype=st.sampled_from(FLOATS),
    name=st.sampled_from(targets.names()),
)
def test_strangers_have_a_legal_first_config(m: int, n: int, dtype: str, name: str) -> None:
    for instance in instances.of_strangers(m, n, dtype):
        _check_first(instance, targets.get(name))


KNOWN_GOOD = (
    # Measured best on an H100 or H200, or published by the vendor for its own kernels.
    (H200, instances.linear(8192, 14336, 4096), {
        "block_M": 128, "block_N": 256, "block_K": 64, "num_warps": 8, "num_stages": 4, "persistent": True,
        "descriptors": True, "epilogue": 2,
    }),
    (H200, instances.fp8_matmul(8192, 8192, 8192), {
        "block_M": 128, "block_N": 256, "block_K": 128, "num_warps": 8, "num_stages": 4,
    }),
    (H200, instances.attention(16384, 16384), {
        "schedule": "warp_specialised", "block_M": 64, "block_N": 128, "consumers": 2, "overlap": True,
    }),
    (H200, instances.attention(16384, 16384, 64), {
        "schedule": "warp_specialised", "block_M": 64, "block_N": 128, "consumers": 3, "registers": 160,
    }),
    (H100, instances.attention(4096, 4096, 64, b=4, h=32, g=32, causal=True), {
        "schedule": "warp_specialised", "block_M": 64, "block_N": 128, "consumers": 3, "overlap": False, "persistent": True,
    }),
    (H100, instances.attention(16384, 16384, causal=True), {
        "schedule": "warp_specialised", "block_M": 64, "block_N": 128, "consumers": 2, "overlap": True,
    }),
    (H200, instances.attention(1, 8192), {"block_M": 16}),
    (H200, instances.layer_norm(4096, 16384), {"whole_row": True, "block_M": 1, "num_warps": 16}),
    (H200, instances.layer_norm(16, 262144), {"whole_row": False}),
    (MI300X, instances.attention(16384, 16384), {"block_M": 128, "block_N": 64, "num_stages": 1}),
    (MI300X, instances.linear(8192, 14336, 4096), {
        "block_M": 256, "block_N": 128, "block_K": 64, "num_warps": 8, "num_stages": 2,
    }),
    (V6E, instances.attention(16384, 16384), {"block_M": 1024, "block_N": 1024}),
    (V6E, instances.linear(8192, 8192, 8192), {"block_M": 1024, "block_N": 1024, "block_K": 1024}),
)  # fmt: skip


@pytest.mark.parametrize(("target", "instance", "expected"), KNOWN_GOOD, ids=lambda v: str(getattr(v, "name", v))[:40])
def test_first_config_where_a_good_one_is_known(
    target: targets.Target, instance: Instance, expected: Mapping[str, Value]
) -> None:
    first = space(instance, target).first
    assert {name: first[name] for name in expected} == expected


def test_every_variant_has_a_config_to_begin_with() -> None:
    found = space(instances.linear(8192, 14336, 4096), H200)
    assert found.firsts[0] == found.first
    assert [c["schedule"] for c in found.firsts] == ["pipelined", "warp_specialised"]
    assert [found.why_illegal(c) for c in found.firsts] == [None, None]
    assert found.seconds(found.firsts[0]) <= found.seconds(found.firsts[1])


def test_small_grids_get_smaller_tiles() -> None:
    """A product that would leave most cores idle is cut finer than a large one."""
    large, small = (space(instances.linear(m, 2048, 4096), H200).first for m in (8192, 128))
    assert int(small["block_M"]) * int(small["block_N"]) < int(large["block_M"]) * int(large["block_N"])


def test_the_model_prefers_the_first_config_to_a_poor_one() -> None:
    found = space(instances.linear(8192, 8192, 8192), H200)
    poor = found.first | {"block_M": 16, "block_N": 16, "epilogue": 1}
    assert found.why_illegal(poor) is None
    assert found.seconds(poor) > 3 * found.seconds(found.first)


# ------------------------------------------------------------------ agreement with the emitter, and with the design
def test_rules_ask_for_limits_never_for_who_made_a_chip(repository: Path) -> None:
    for file in (repository / "kpt_dsl" / "space").rglob("*.py"):
        asked = {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
        assert not asked & {"vendor", "arch", "device_names"}, file.name


# ------------------------------------------------------------------ rows that stream through programs
def test_streams_may_be_fetched_ahead_and_others_may_not() -> None:
    assert space(instances.layer_norm_backward(8192, 4096), H200).knobs["num_stages"] == H200.stages
    assert "num_stages" not in space(instances.layer_norm(8192, 4096), H200).knobs


def test_what_is_fetched_ahead_takes_shared_memory() -> None:
    config = Config(read_again=False, block_M=1, num_warps=16, num_stages=5)
    instance = instances.layer_norm_backward(8192, 8192)
    assert space(instance, H200).why_illegal(config) is None
    assert "131,072 B of shared memory" in str(space(instance, targets.get("nvidia-a10")).why_illegal(config))


def test_a_row_beside_its_sums_takes_registers() -> None:
    """Two sums of 16384 columns, and a row that is read again or held."""
    found = space(instances.layer_norm_backward(4096, 16384), H200)
    lean = Config(read_again=True, block_M=1, num_warps=8, num_stages=1)
    assert found.why_illegal(lean) is None
    for change in ({"read_again": False}, {"num_warps": 32}, {"num_stages": 2}):
        assert "registers a thread" in str(found.why_illegal(lean | change))


@pytest.mark.parametrize(
    ("m", "n", "again", "programs"),
    [(32768, 1024, False, 2), (8192, 4096, False, 1), (8192, 8192, False, 1), (4096, 16384, True, 1)],
)
def test_first_configs_of_streams(m: int, n: int, again: bool, programs: int) -> None:
    """All programs that the op starts run at once, and the next row is fetched while one is worked on, where it fits."""
    found = space(instances.layer_norm_backward(m, n), H100)
    first = found.first
    assert first["read_again"] is again
    assert first["num_stages"] == (1 if again else 3)  # two rows ahead; one or three took longer on an H100
    variant = next(v for v in found.variants if v.choices["read_again"] is again)
    assert GpuSizes(variant.facts, H100, first).resident >= programs


@pytest.mark.parametrize("op", ["layer_norm_backward", "rms_norm_backward"])
def test_sums_down_columns_that_cross_warps_are_dear(op: str) -> None:
    """Four rows of 1024 in 8 warps: 202 us for 80 in 4 (layer norm), 114 for 78 (RMS norm), on an H100."""
    found = space(registry.get(op).instances({"M": 32768, "N": 1024}, "bf16")[0], H100)
    four, eight = (Config(read_again=False, block_M=4, num_warps=w, num_stages=3) for w in (4, 8))
    assert found.seconds(eight) > 1.2 * found.seconds(four)


def test_columns_that_are_only_summed_may_be_few() -> None:
    sums = Instance.of_shapes(
        column_sums, {"P": 264, "N": 4096}, {"first": "f32", "second": None, "first_sum": "bf16", "second_sum": None}
    )
    assert space(sums, H200).knobs["block_N"][0] == 32
    assert space(instances.layer_norm(8192, 4096), H200).knobs["block_N"][0] == 128
