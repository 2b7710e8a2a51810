"""Lone products of the warp-specialised schedule: what is legal, and which schedule they begin with."""

from kpt.ops import registry
from kpt.ops.linear_act.backward_kernels import linear_act_bwd_dx
from kpt_dsl import targets
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config, space
from tests.space import instances

H200, H100, A100 = (targets.get(f"nvidia-{name}") for name in ("h200", "h100", "a100"))
LONE = Config(
    schedule="warp_specialised", block_M=64, block_N=128, block_K=64, consumers=3, num_stages=4, registers=160, group=8,
    persistent=True,
)  # fmt: skip


def test_a_lone_product_may_have_a_producer_and_consumers() -> None:
    found = space(instances.linear(8192, 14336, 4096), H200)
    assert found.why_illegal(LONE) is None
    assert "there is no knob schedule" in str(space(instances.linear(8192, 14336, 4096), A100).why_illegal(LONE))
    assert "there is no knob schedule" in str(space(instances.linear(32, 14336, 4096), H200).why_illegal(LONE))
    assert "there is no knob overlap" in str(found.why_illegal(LONE | {"overlap": True}))
    assert "products of 256 columns" in str(found.why_illegal(LONE | {"block_N": 256}))
    assert found.why_illegal(LONE | {"block_N": 256, "consumers": 2, "num_stages": 3, "registers": 240}) is None


def test_operands_of_eight_bits_lie_along_what_is_summed() -> None:
    """wgmma reads them no other way (PTX ISA)."""
    dense = instances.fp8_matmul(8192, 8192, 8192)
    assert space(dense, H200).why_illegal(LONE | {"block_K": 128}) is None
    extents, narrow = {"M": 8192, "N": 8192, "K": 8192}, {"dz": "f8e4m3", "weight": "f8e4m3", "dx": "bf16"}
    across = Instance.of_shapes(linear_act_bwd_dx, extents, narrow)  # sums over N, and a row of its weight lies along K
    assert "schedule" not in space(across, H200).knobs
    assert "schedule" in space(Instance.of_shapes(linear_act_bwd_dx, extents, dict.fromkeys(narrow, "bf16")), H200).knobs


def test_the_schedule_of_a_lone_product_follows_from_its_tiles() -> None:
    """A weight gradient of 2816 x 1024 fills an H100 in tiles of 192 x 128: 132 us for 159 as the compiler pipelines it; beside
    two outputs slots have no room: 1,482 us for 1,304."""
    gradient = registry.get("linear_act_backward").instances({"M": 16384, "N": 2816, "K": 1024}, "bf16", activation="silu")
    dw = next(p for p in gradient if p.kernel.name == "linear_act_bwd_dw")
    (saving,) = registry.get("linear_act_saving").instances({"M": 8192, "N": 14336, "K": 4096}, "bf16", activation="gelu_tanh")
    assert space(dw, H100).first["schedule"] == "warp_specialised"
    assert space(saving, H100).first["schedule"] == "pipelined"
