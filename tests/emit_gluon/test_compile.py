"""Gluon for Hopper: attention and lone products compile for sm_90 without a GPU, within its budgets, and by the schedule."""

import re
from typing import Any

import pytest

from kpt.ops import registry
from kpt_dsl import build, targets
from kpt_dsl.build.triton import binary
from kpt_dsl.emit import emit
from kpt_dsl.emit.triton.facts import WARP_SPECIALISED
from kpt_dsl.errors import ConfigError
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config, space
from kpt_dsl.space.warps.rules import CONSUMERS
from kpt_dsl.space.warps.sizes import BARRIER_BYTES, WarpSizes

H200 = targets.get("nvidia-h200")


def attention(
    head_dim: int, m: int = 4096, n: int = 4096, dtype: str = "bf16", heads: int = 8, **flags: Any
) -> Instance:
    dims = {"B": 2, "H": heads, "G": 2, "M": m, "N": n, "D": head_dim}
    return registry.get("flash_attention").instances(dims, dtype, **flags)[-1]


def product(op: str, m: int, n: int, k: int, kernel: str = "", dtype: str = "bf16", **flags: Any) -> Instance:
    """An instance of an op of M, N and K: its only one, or that of a kernel."""
    found = registry.get(op).instances({"M": m, "N": n, "K": k}, dtype, **flags)
    return next(p for p in found if p.kernel.name.endswith(kernel))


def config(instance: Instance, **knobs: Any) -> Config:
    """The first warp-specialised config of an instance, some knobs changed."""
    variant = next(v for v in space(instance, H200).variants if v.choices.get("schedule") == WARP_SPECIALISED)
    found = variant.rules.first(variant.facts, H200, variant.knobs)
    assert found is not None
    return variant.choices | found | knobs


COMPACT = {"consumers": 3, "block_N": 128, "registers": 160, "overlap": False}

newest = pytest.mark.newest
CASES = [
    pytest.param(attention(64), {}, id="D64", marks=newest),
    pytest.param(attention(64, causal=True), {}, id="D64-causal", marks=newest),
    pytest.param(attention(64, causal=True), {"consumers": 1}, id="D64-one-consumer"),
    pytest.param(attention(128, dtype="f16"), {}, id="D128-f16"),
    pytest.param(attention(128, causal=True), {}, id="D128-causal"),
    pytest.param(attention(128, causal=True), {"overlap": False}, id="D128-causal-compact", marks=newest),
    pytest.param(attention(128, 199, 760, causal=True), {}, id="D128-ragged", marks=newest),
    pytest.param(attention(128, 760, 199, causal=True, window=100), {}, id="D128-window"),
    pytest.param(attention(128, window=100), {}, id="D128-window-both-sides", marks=newest),
    pytest.param(attention(80, 97, 199), {}, id="D80-ragged"),
    pytest.param(attention(128, causal=True, mask="added"), {}, id="D128-bias"),
    pytest.param(attention(128, 199, 760, mask="added"), {"overlap": False}, id="D128-bias-ragged", marks=newest),
    pytest.param(attention(128, causal=True, packed=True), {}, id="D128-packed"),
    pytest.param(attention(64, packed=True), {}, id="D64-packed-all", marks=newest),
    pytest.param(attention(64, causal=True), COMPACT | {"persistent": True}, id="D64-causal-persistent", marks=newest),
    pytest.param(attention(128, causal=True), {"persistent": True}, id="D128-causal-persistent"),
    pytest.param(
        attention(128, causal=True), {"persistent": True, "overlap": False}, id="D128-compact-persistent", marks=newest
    ),
    pytest.param(
        attention(128, 760, 199, causal=True, window=100), {"persistent": True}, id="D128-window-persistent", marks=newest
    ),
    *(
        pytest.param(product("linear_act", 8192, 4096, 4096, activation=name), {}, id=name)
        for name in ("none", "gelu")
    ),
    pytest.param(product("linear_act", 199, 760, 104, activation="silu", dtype="f16"), {}, id="product-ragged"),
    pytest.param(product("linear_act_saving", 8192, 4096, 4096, activation="gelu_tanh"), {}, id="saving"),
    pytest.param(product("linear_act_backward", 8192, 4096, 4096, "_dx", activation="silu"), {}, id="dx"),
    pytest.param(product("linear_act_backward", 8192, 4096, 4096, "_dw", activation="silu"), {}, id="dw"),
    pytest.param(product("fp8_matmul", 8192, 4096, 4096, dtype="fp8"), {}, id="fp8"),
    pytest.param(product("fp8_matmul", 8192, 4096, 4096, dtype="fp8"), {"persistent": False}, id="fp8-once", marks=newest),
]


@pytest.mark.parametrize(("instance", "knobs"), CASES)
def test_compiles_without_spills(instance: Instance, knobs: dict[str, Any]) -> None:
    chosen = config(instance, **knobs)
    space(instance, H200).check(chosen)
    report = build.compile(instance, H200, chosen)
    assert report.spills == 0, report
    assert report.shared_bytes
    assert report.shared_bytes <= H200.shared_bytes


@pytest.mark.parametrize(
    ("flags", "consumers"),
    [({"causal": True}, 3), ({"window": 100}, 2), ({"causal": True, "window": 100}, 2)],
    ids=["causal", "window", "both"],
)
def test_three_consumers_have_registers_for_one_mask(flags: dict[str, Any], consumers: int) -> None:
    """Of the author's, which is enough for a causal loop; with more, and one of lanes beyond it, 160 registers spill."""
    assert config(attention(64, **flags))["consumers"] == consumers


def test_the_schedule_is_in_what_is_compiled() -> None:
    instance = attention(128, causal=True)
    compiled = binary(emit(instance, H200, config(instance)), H200.arch, H200.warp_lanes)
    assert "ttg.warp_specialize" in compiled.asm["ttgir"]
    ptx = compiled.asm["ptx"]
    assert "wgmma.mma_async" in ptx
    assert "cp.async.bulk.tensor" in ptx
    assert {int(n) for n in re.findall(r"setmaxnreg\.\w+\.sync\.aligned\.u32\s+(\d+)", ptx)} >= {24, 240}


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("consumers", CONSUMERS)
def test_shared_memory_is_judged_before_compiling(consumers: int, persistent: bool) -> None:
    """The estimate is what the compiler takes, within the room left for barriers."""
    instance = attention(64)
    chosen = config(instance, consumers=consumers, registers=160, persistent=persistent)
    report = build.compile(instance, H200, chosen)
    variant = next(v for v in space(instance, H200).variants if v.choices.get("schedule") == WARP_SPECIALISED)
    judged = WarpSizes.of(variant.facts, H200, chosen).shared_bytes
    assert report.shared_bytes is not None
    assert judged - BARRIER_BYTES <= report.shared_bytes <= judged


@pytest.mark.parametrize(("head_dim", "values", "persistent"), [(64, 128, False), (192, 128, False), (64, 128, True)])
def test_room_for_outputs_that_are_not_like_the_queries(head_dim: int, values: int, persistent: bool) -> None:
    instance = attention(head_dim, value_dim=values)
    chosen = config(instance, num_stages=2, block_N=64, persistent=persistent)
    report = build.compile(instance, H200, chosen)
    variant = next(v for v in space(instance, H200).variants if v.choices.get("schedule") == WARP_SPECIALISED)
    judged = WarpSizes.of(variant.facts, H200, chosen).shared_bytes
    assert report.shared_bytes is not None
    assert judged - BARRIER_BYTES <= report.shared_bytes <= judged


def test_a_kernel_without_the_form_is_refused() -> None:
    lengths = attention(128, key_lengths=True)
    chosen = config(attention(128))
    with pytest.raises(ConfigError, match="has no warp-specialised schedule: a scalar is loaded"):
        emit(lengths, H200, chosen)
