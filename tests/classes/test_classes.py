"""What follows from the class of a call, and not from its lengths: the IR, the config, the text."""

import random
from unittest.mock import patch

import numpy as np
import pytest
import torch

import kpt.ops  # noqa: F401
import kpt_dsl as kd
from kpt.ops import registry
from kpt_dsl import configs, ir, targets
from kpt_dsl.buckets import Span
from kpt_dsl.classes import Class, ClassSpace, options
from kpt_dsl.emit import emit
from kpt_dsl.errors import IndexRangeError, InputError
from kpt_dsl.instance import Instance
from kpt_dsl.runtime.triton import interpret_for
from kpt_dsl.space import space

H100 = targets.get("nvidia-h100")
LENGTHS = [
    *range(1, 9), 15, 16, 17, 33, 64, 100, 127, 128, 199, 256, 300, 511, 512, 760, 1000, 1023, 1024, 1500, 2000, 2048, 3000,
    4096, 5000, 7777, 8192, 12000, 16384, 30000, 40000, 65536, 100000, 131072,
]  # fmt: skip
MOST = 12
"""Texts and signatures of a specialisation of a kernel."""
OPS = {
    "flash_attention": ({"B": 1, "H": 32, "G": 8, "D": 64}, ("M", "N"), {"causal": True}),
    "flash_attention_backward": ({"B": 1, "H": 32, "G": 8, "D": 64}, ("M", "N"), {"causal": True}),
    "rms_norm": ({"N": 2048}, ("M",), {}),
    "layer_norm": ({"N": 2048}, ("M",), {}),
    "linear_act": ({"N": 2048, "K": 2048}, ("M",), {"activation": "silu"}),
}


HEADS = {"B": 1, "H": 32, "G": 8}
COUNTED = [
    *((op, *of) for op, of in OPS.items()),
    *(
        (op, {**HEADS, "D": features}, ("M", "N"), {"causal": causal})
        for op in ("flash_attention", "flash_attention_backward")
        for features, causal in ((64, False), (128, True), (128, False))
        if (op, features, causal) != ("flash_attention_backward", 128, False)  # 16: what is best for short ones is many things
    ),
    ("linear_act_saving", {"N": 2048, "K": 2048}, ("M",), {"activation": "silu"}),
    ("linear_act_backward", {"N": 2048, "K": 2048}, ("M",), {"activation": "silu"}),
    ("linear_act_backward", {"N": 2048, "K": 2048}, ("M",), {"activation": "none"}),
    # Those whose kernels sum over shares of the rows: how many there are changes with short lengths.
    ("rms_norm_backward", {"N": 2048}, ("M",), {}),
    ("layer_norm_backward", {"N": 2048}, ("M",), {}),
]


def of_length(op: str, length: int) -> list[Instance]:
    dims, varying, flags = OPS[op]
    return registry.get(op).instances(dims | dict.fromkeys(varying, length), "bf16", **flags)


@pytest.mark.parametrize(
    ("op", "dims", "varying", "flags"), COUNTED,
    ids=[" ".join(map(str, (op, *dims.values(), *flags.values()))) for op, dims, _, flags in COUNTED],
)  # fmt: skip
def test_a_handful_of_binaries_serves_all_lengths(
    op: str, dims: dict[str, int], varying: tuple[str, ...], flags: dict[str, object]
) -> None:
    made: dict[object, set[object]] = {}
    for length in LENGTHS:
        for instance in registry.get(op).instances(dims | dict.fromkeys(varying, length), "bf16", **flags):
            source = emit(instance, H100, options(instance, H100).first)
            made.setdefault(instance.specialisation, set()).add((source.text, source.abi))
    assert len(LENGTHS) == 40
    assert {kernel: len(binaries) for kernel, binaries in made.items() if len(binaries) > MOST} == {}


@pytest.mark.parametrize(
    ("op", "length", "spans"),
    [
        ("linear_act", 2112, {"M": Span(2049, 3072)}),
        ("linear_act", 3072, {"M": Span(2049, 3072)}),
        ("linear_act", 3073, {"M": Span(3073, 4096)}),
        ("linear_act", 512, {"M": Span(257, 512)}),
        ("flash_attention", 33, {"M": Span(33, 48), "N": Span(33, 48)}),
        ("flash_attention", 64, {"M": Span(49, 64), "N": Span(49, 64)}),
        ("flash_attention", 769, {"M": Span(769, 1024), "N": Span(769, 1024)}),
        ("flash_attention", 1500, {"M": Span(1025, 1536), "N": Span(1025, 1536)}),
        ("flash_attention", 20, {"M": Span(17, 32), "N": Span(17, 32)}),
        ("flash_attention", 2112, {"M": Span(2049, 4096), "N": Span(2049, 4096)}),
    ],
)
def test_buckets_are_two_classes_where_the_best_config_changes_within(op: str, length: int, spans: dict[str, Span]) -> None:
    made = Class.of(of_length(op, length)[0])
    assert {dim: span for dim, span in made.spans if span.low < span.high} == spans


@pytest.mark.parametrize("keys", [300, 1500, 3000])
def test_sums_of_heads_are_no_business_of_several_warps(keys: int) -> None:
    """Exchanging what is left of a tile cost a quarter of their time on an H200."""
    dims = {"B": 1, "H": 32, "G": 8, "D": 64, "M": keys, "N": keys}
    every = registry.get("flash_attention_backward").instances(dims, "bf16", causal=True)
    sums = next(instance for instance in every if instance.kernel.name == "flash_attention_group_sum")
    first = options(sums, targets.get("nvidia-h200")).first
    assert first["num_warps"] == 1 or first["block_R"] == 1


@pytest.mark.parametrize("op", OPS)
def test_a_new_length_of_a_known_class_costs_neither_a_choice_nor_a_text(op: str) -> None:
    known = [(instance, configs.choose(instance, H100)) for instance in of_length(op, 901)]
    sources = [emit(instance, H100, config) for instance, (config, _) in known]

    def too_much(*_: object) -> None:
        raise AssertionError("done again for a length")

    with (
        patch("kpt_dsl.specialisation.lower", too_much),
        patch("kpt_dsl.lowerings.indices.check", too_much),
        patch("kpt_dsl.space.space.collect", too_much),
        patch("kpt_dsl.emit.triton.module.guard", too_much),
        patch("kpt_dsl.emit.gluon.module.guard", too_much),
    ):
        for instance, (_, answer), source in zip(of_length(op, 777), known, sources, strict=True):
            config, provenance = configs.choose(instance, H100)
            assert (config, provenance) == answer
            assert emit(instance, H100, config) is source


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("target", ["nvidia-h100", "nvidia-a100", "amd-mi300x"])
def test_a_classes_config_is_legal_for_all_its_lengths(target: str, op: str) -> None:
    chip, draw = targets.get(target), random.Random(op)
    for length in (3, 40, 700, 3000):
        for instance in of_length(op, length):
            config = options(instance, chip).first
            low, high = next(span for dim, span in Class.of(instance).spans if dim in OPS[op][1])
            for other in {low, high, *(draw.randint(low, high) for _ in range(3))}:
                at = instance.with_dims(**{dim: other for dim in OPS[op][1] if dim in dict(instance.extents.dims)})
                exact = space(at, chip)
                assert exact.why_illegal(exact.variants[0].choices | exact.canonical(config)) is None, f"{at} {config}"
                assert options(at, chip).first == config


def test_a_schedule_that_the_least_of_a_class_cannot_have_is_not_its_config() -> None:
    """Products of 64 rows are shared out among warps, those of 33 are not."""
    (instance,) = of_length("linear_act", 64)
    of_class = options(instance, H100)
    assert isinstance(of_class, ClassSpace)
    alone = next(c for c in space(instance, H100) if c.get("schedule") == "warp_specialised")
    expected = "there is no schedule 'warp_specialised' (as for the least of its class, linear_act_fwd[M=33,"
    assert (of_class.why_illegal(alone) or "").startswith(expected)
    assert of_class.first.get("schedule") != "warp_specialised"


def test_where_blocks_are_as_long_as_dims_configs_follow_from_extents() -> None:
    (instance,) = of_length("rms_norm", 700)
    for name in ("tpu-v6e", "cpu"):
        assert not isinstance(options(instance, targets.get(name)), ClassSpace)


@kd.kernel(x="M N", y="M N")
def scaled(x: kd.In, y: kd.Out, by: kd.Float) -> None:
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        y[m, n] = x[m, n] * by


def test_layouts_are_kept_by_a_class() -> None:
    def of(x: torch.Tensor) -> Class:
        return Class.of(Instance.bind(scaled, {"x": x, "y": torch.empty_like(x), "by": 2.0}))

    base = of(torch.empty(700, 600))
    assert of(torch.empty(900, 1000)) == base
    assert of(torch.empty(700, 601)) != base  # rows do not begin at multiples of 16 bytes
    assert of(torch.empty(600, 700).T) != base
    assert of(torch.empty(1200, 700)) != base
    turned = of(torch.empty(600, 700).T)
    for end in (turned.least, turned.representative):
        assert end.extents.stride("x")[0] == 1
        assert end.extents.stride("x")[1] == end.extents.dim("M")
    assert (base.representative.extents.dim("M"), base.representative.extents.dim("N")) == (1024, 1024)
    assert (base.least.extents.dim("M"), base.least.extents.dim("N")) == (513, 528)
    gaps = of(torch.empty(700, 1200)[:, ::2])
    assert of(torch.empty(900, 1800)[:, ::2]) == gaps != of(torch.empty(700, 1800)[:, ::3])
    assert gaps.representative.extents.stride("x") == (2048, 2)


def test_what_is_the_same_along_an_axis_is_so_all_over_a_class() -> None:
    """As the gradient of a mean loss is, a mask of all heads, keys of one head for all: other lengths were other classes."""

    def of(x: torch.Tensor) -> Class:
        return Class.of(Instance.bind(scaled, {"x": x, "y": torch.empty(x.shape), "by": 2.0}))

    row, column, one = (torch.empty(s) for s in ((1, 600), (700, 1), (1, 1)))
    for x, other, strides in (
        (row.expand(700, 600), torch.empty(1, 900).expand(650, 900), [(0, 1), (0, 1)]),
        (column.expand(700, 600), torch.empty(800, 1).expand(800, 1000), [(1, 0), (1, 0)]),
        (one.expand(700, 600), one.expand(900, 900), [(0, 0), (0, 0)]),
    ):
        made = of(x)
        assert made == of(other) != of(torch.empty(700, 600))
        assert [end.extents.stride("x") for end in (made.least, made.representative)] == strides
        assert options(made.at({"M": 650, "N": 1000}), H100).first == options(made.representative, H100).first


@kd.kernel(x="M N", y="M")
def sixth(x: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        y[m] = x[m, 5]


@kd.kernel(x="M", y="M")
def squares(x: kd.In, y: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        y[m] = x[m] + (kd.size("M") * kd.size("M")).to(kd.f32)


def test_what_only_some_lengths_of_a_class_allow_is_asked_of_each() -> None:
    dtypes = {"x": "f32", "y": "f32"}
    for extent in (8, 6, 8):
        assert not [e for e in ir.every_expr(Instance.of_shapes(sixth, {"M": 7, "N": extent}, dtypes).lower().body)
                    if isinstance(e, ir.Checked)]  # fmt: skip
        with pytest.raises(IndexRangeError, match="whose extent is 5"):
            Instance.of_shapes(sixth, {"M": 7, "N": 5}, dtypes).lower()
    Instance.of_shapes(scaled, {"M": 2**31 - 1, "N": 1}, dtypes).lower()
    with pytest.raises(InputError, match="extents are 2147483647 at most"):
        Instance.of_shapes(scaled, {"M": 2**31, "N": 1}, dtypes).lower()
    for extent in (46340, 40000, 46340):
        Instance.of_shapes(squares, {"M": extent}, dtypes).lower()
        with pytest.raises(InputError, match="comes to 2147488281"):
            Instance.of_shapes(squares, {"M": 46341}, dtypes).lower()


def test_where_only_some_lengths_are_allowed_each_has_a_config() -> None:
    """Ends of their classes are beyond what int32 holds, or have not the element that is asked for."""
    dtypes = {"x": "f32", "y": "f32"}
    for instance in (
        Instance.of_shapes(squares, {"M": 40000}, dtypes),
        Instance.of_shapes(sixth, {"M": 7, "N": 8}, dtypes),
        Instance.of_shapes(scaled, {"M": 2**31 - 1, "N": 1}, dtypes),
    ):
        assert options(instance, H100).first == space(instance, H100).first
        assert not isinstance(options(instance, H100), ClassSpace)
        assert emit(instance, H100, configs.choose(instance, H100)[0]).text


@pytest.mark.parametrize("repeated", [False, True])
def test_one_text_is_right_for_every_length_of_its_class(repeated: bool) -> None:
    (first,) = registry.get("rms_norm").instances({"M": 40, "N": 24}, "f32")
    chip, generator, configs_of, texts = H100, np.random.default_rng(0), set(), set()
    for length in {33, 63, 64, *generator.integers(33, 65, 17).tolist()}:
        x, weight = torch.randn(1 if repeated else length, 24).expand(length, 24), torch.randn(24)
        y = torch.empty(length, 24)
        instance = Instance.bind(first.kernel, arguments := first.kernel.bind(x, weight, y, 1e-6))
        config = options(instance, chip).first
        interpret_for(chip, instance, arguments, config)
        want = torch.nn.functional.rms_norm(x.double(), (24,), weight.double(), 1e-6)
        torch.testing.assert_close(y.double(), want, rtol=2e-6, atol=2e-6)
        configs_of.add(config)
        texts.add(emit(instance, chip, config).text)
    assert len(configs_of) == 1
    assert len(texts) <= 2  # level with the tiles, or not


@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_every_length_of_a_class(causal: bool) -> None:
    dims = {"B": 1, "H": 2, "G": 2, "M": 40, "N": 40, "D": 16}
    (first,) = registry.get("flash_attention").instances(dims, "f32", causal=causal)
    config, generator, texts = options(first, H100).first, np.random.default_rng(1), set()
    for length in {33, 64, *generator.integers(33, 65, 18).tolist()}:
        q, k, v = (torch.randn(1, 2, length, 16) for _ in range(3))
        given = dict.fromkeys(first.kernel.signature.parameters) | dict(first.specialisation.statics)
        given |= {"q": q, "k": k, "v": v, "o": (o := torch.empty_like(q)), "lse": torch.empty(1, 2, length), "scale": 0.25}
        arguments = first.kernel.bind(**given)
        instance = Instance.bind(first.kernel, arguments)
        interpret_for(H100, instance, arguments, config)
        want = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=causal)
        torch.testing.assert_close(o.double(), want, rtol=3e-5, atol=3e-5)
        texts.add(emit(instance, H100, config).text)
    assert len(texts) <= 4  # level with the tiles of queries, of keys, or not
