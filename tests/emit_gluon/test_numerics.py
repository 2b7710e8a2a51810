"""What generated Gluon computes, against float64: every structure of the schedule on ugly lengths, each warpgroup a thread.

``python -m pytest tests/emit_gluon/test_numerics.py --device cuda`` runs the same cases on a Hopper GPU.
"""

import math
import random
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import Phase, given, seed, settings

from kpt.ops.linear_act.activations import ACTIVATIONS
from kpt_dsl import runtime, targets
from kpt_dsl.emit import Source, emit
from kpt_dsl.emit.triton.facts import WARP_SPECIALISED
from kpt_dsl.errors import CompileError
from kpt_dsl.instance import Instance
from kpt_dsl.runtime import gluon_interpreter
from kpt_dsl.runtime.triton import interpret_for
from kpt_dsl.space import Config, space
from tests.generated.arrays import to_device
from tests.generated.attention import Attention
from tests.generated.case import Case
from tests.generated.linear_backward import Dw, Dx, Saving
from tests.generated.products import Fp8Matmul, LinearAct

H200 = targets.get("nvidia-h200")
TESTS, DRAWN = 8, 10
SEVERAL_TURNS = 300
"""Tiles of a case on a GPU: more than it has programs, so that persistent ones take several."""
COMPACT = Config(
    schedule=WARP_SPECIALISED, block_M=64, block_N=128, consumers=3, num_stages=2, registers=160, overlap=False, group=4,
    persistent=True,
)  # fmt: skip
LENGTHS = [64, 65, 100, 127, 128, 192, 199, 256, 300, 385]

ATTENTION = st.builds(
    Attention,
    B=st.sampled_from([1, 2]), groups=st.sampled_from([1, 1, 3]), M=st.sampled_from(LENGTHS),
    N=st.sampled_from([1, 37, *LENGTHS, 520]), D=st.sampled_from([64, 64, 80, 128]), dtype=st.sampled_from(["bf16", "f16"]),
    causal=st.booleans(), window=st.sampled_from([None, None, 1, 30, 100, 130, 300]),
    magnitude=st.sampled_from([1.0, 30.0]), seed=st.integers(0, 1 << 20),
)  # fmt: skip

EXTENTS = st.sampled_from([8, 40, *(n - n % 8 for n in LENGTHS)])
PRODUCTS = st.one_of(
    st.builds(
        kind, M=st.sampled_from(LENGTHS), N=EXTENTS, K=EXTENTS, dtype=st.sampled_from(["bf16", "f16"]),
        activation=st.sampled_from(list(ACTIVATIONS)), bias=st.booleans(), seed=st.integers(0, 1 << 20),
    )
    for kind in (LinearAct, Saving)
) | st.one_of(
    st.builds(Dx, M=st.sampled_from(LENGTHS), N=EXTENTS, K=EXTENTS, dtype=st.sampled_from(["bf16", "f16"])),
    st.builds(Dw, M=EXTENTS, N=st.sampled_from([64, 128, 192, 256, 384]), K=EXTENTS),
    st.builds(
        Fp8Matmul, M=st.sampled_from(LENGTHS), N=st.sampled_from([16, 48, 192, 256]), K=st.sampled_from([16, 48, 192, 400]),
        a_dtype=st.sampled_from(["f8e4m3", "f8e5m2"]), out=st.sampled_from(["bf16", "f16"]), by_row=st.booleans(),
        bias=st.booleans(), seed=st.integers(0, 1 << 20),
    ),
)  # fmt: skip


def any_schedule(instance: Instance, number: int) -> Config:
    """A random legal config with a producer and consumers."""
    options, chance = space(instance, H200), random.Random(number)
    variant = next(v for v in options.variants if v.choices.get("schedule") == WARP_SPECIALISED)
    while True:
        config = variant.choices | {name: chance.choice(values) for name, values in variant.knobs.items()}
        if options.why_illegal(config) is None:
            return config


def check(case: Case, device: str) -> None:
    if device == "cuda" and isinstance(case, Attention):
        heads = case.G * case.groups * math.ceil(case.M / 192)
        case = replace(case, B=math.ceil(SEVERAL_TURNS / heads))
    arguments = case.kernel.defaults | case.arguments()
    expected = case.expected(arguments, cuda=device == "cuda")
    given = {name: to_device(a, device) if isinstance(a, torch.Tensor) else a for name, a in arguments.items()}
    instance = Instance.bind(case.kernel, given)
    config = any_schedule(instance, case.seed)
    try:
        if device == "cuda":
            runtime.run(instance, given, config, "triton")
        else:
            interpret_for(H200, instance, given, config)
        for name in case.outputs:
            expected[name].check(given[name], name)
    except Exception as error:
        error.add_note(f"config: {config}")
        raise


@pytest.mark.parametrize("cases", [ATTENTION, PRODUCTS], ids=["attention", "products"])
@pytest.mark.parametrize("number", range(TESTS))
def test_drawn_cases(cases: st.SearchStrategy[Case], number: int, device: str) -> None:
    profile = settings()

    @settings(max_examples=DRAWN if profile.derandomize else profile.max_examples, phases=[Phase.generate])
    @given(cases)
    def each(case: Case) -> None:
        check(case, device)

    (seed(number)(each) if profile.derandomize else each)()


PLANTS = {
    "a slot that is never freed": ("mbarrier.arrive(v_free.index(slot), count=1)", "pass", "waited for"),
    "queries that are never given back": ("mbarrier.arrive(q_free", "mbarrier.wait(q_free", "failed"),
    "a product that is not waited for": ("acc = warpgroup_mma_wait(0, deps=[acc])", "pass", "failed"),
    "a mask one key off": ("n_index[None, :] <= position", "n_index[None, :] <= position + 1", "elements are off"),
    "a tile left out": ("range(n_clear_stop, n_stop, ", "range(n_clear_stop, n_stop - BLOCK_N, ", "waited for|are off"),
    "a turn that is wrong": ("tiles_done // AHEAD & 1)", "(tiles_done + 1) // AHEAD & 1)", "waited for|are off|failed"),
}


LONE_PLANTS = {
    "a slot that is freed too soon": ("warpgroup_mma_wait(1, deps=[acc])", "acc", "failed|are off"),
    "a slot that is never freed": ("mbarrier.arrive(x_free.index((step - 1) % SLOTS), count=1)", "pass", "waited for"),
    "rows of another consumer": ("x_ring.index(slot * CONSUMERS + consumer)", "x_ring.index(slot * CONSUMERS)", "are off"),
    "a store that nobody awaits": ("tma.store_wait(0)\n", "pass\n", "failed|are off"),
}


@pytest.mark.parametrize("plant", LONE_PLANTS)
def test_a_broken_schedule_of_a_lone_product_is_found(plant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = LinearAct(M=520, N=520, K=520, dtype="bf16", activation="silu", bias=True)
    config = Config(
        schedule=WARP_SPECIALISED, block_M=64, block_N=128, block_K=64, consumers=2, num_stages=2, registers=216, group=4,
        persistent=True,
    )  # fmt: skip
    assert_found(case, config, "y", LONE_PLANTS[plant], monkeypatch)


@pytest.mark.parametrize("plant", PLANTS)
def test_a_broken_schedule_is_found(plant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a chip would make wrong results or a hang of."""
    case = Attention(M=1100, N=1100, D=64, dtype="bf16", causal=True, groups=2)
    assert_found(case, COMPACT, "o", PLANTS[plant], monkeypatch)


def assert_found(
    case: Case, config: Config, output: str, plant: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The case is right as it is, and not with one text in its source replaced by another."""
    right, wrong, told = plant

    def broken(*given: Any) -> Source:
        source = emit(*given)
        assert right in source.text
        return replace(source, text=source.text.replace(right, wrong))

    arguments = case.kernel.defaults | case.arguments()
    expected = case.expected(arguments, cuda=False)
    instance = Instance.bind(case.kernel, arguments)
    interpret_for(H200, instance, arguments, config)
    expected[output].check(arguments[output], output)

    arguments[output].fill_(float("nan"))  # what nobody writes must not look right
    monkeypatch.setattr(gluon_interpreter, "SECONDS", 1.0)
    monkeypatch.setattr("kpt_dsl.runtime.triton.emit", broken)
    with pytest.raises((AssertionError, CompileError), match=told):  # noqa: PT012 (either may find it)
        interpret_for(H200, instance, arguments, config)
        expected[output].check(arguments[output], output)
