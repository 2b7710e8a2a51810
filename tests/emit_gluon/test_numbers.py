"""NaN and casts in warp-specialised kernels: as everywhere else, interpreted here and compiled for sm_90."""

import math

import pytest
import torch

import kpt.ops
import kpt_dsl as kd
from kpt.ops.flash_attention.kernels import flash_attention_fwd
from kpt_dsl import build, targets
from kpt_dsl.emit import emit
from kpt_dsl.emit.triton.facts import WARP_SPECIALISED
from kpt_dsl.instance import Instance
from kpt_dsl.runtime.triton import interpret_for
from kpt_dsl.space import Config, space
from tests.tolerances import assert_close

H200 = targets.get("nvidia-h200")


@kd.kernel(q="M D", k="N D", v="N D", o="M D", highest="M")
def attention(q: kd.In, k: kd.In, v: kd.In, o: kd.Out, highest: kd.Out) -> None:
    """Attention whose running maximum keeps NaN, and is an output."""
    for m in kd.parallel(kd.tile("M")):
        query = q[m, :]
        top, total, acc = kd.full([m], -kd.inf), kd.zeros([m]), kd.zeros([m, "D"])
        for n in kd.sequential(kd.tile("N")):
            s = kd.dot(query, k[n, :].T)
            new_top = kd.maximum(top, kd.max(s, axis=1))
            p = kd.exp2(s - new_top[:, None])
            fade = kd.exp2(top - new_top)
            total = total * fade + kd.sum(p, axis=1)
            acc = kd.dot(p, v[n, :], acc * fade[:, None])
            top = new_top
        o[m, :] = acc / total[:, None]
        highest[m] = top


@kd.kernel(q="M D", k="N D", v="N D", weight="B M N", o="M D", total="M")
def weighed(q: kd.In, k: kd.In, v: kd.In, weight: kd.In, o: kd.Out, total: kd.Out) -> None:
    """Products of scores, weighed each, over as many keys as there are queries; and the sums of these weights."""
    for m in kd.parallel(kd.tile("M")):
        query = q[m, :]
        acc, weights = kd.zeros([m, "D"]), kd.zeros([m])
        for n in kd.sequential(kd.tile("N"), stop=kd.size("M")):
            s = kd.dot(query, k[n, :].T)
            s = s * weight[kd.size("B") - 1, m, n]
            weights = weights + kd.sum(weight[kd.size("B") - 1, m, n], axis=1)
            acc = kd.dot(s, v[n, :], acc)
        o[m, :] = acc
        total[m] = weights


@kd.kernel(x="M K", w="N K", y="M N")
def product(x: kd.In, w: kd.In, y: kd.Out) -> None:
    """A product whose epilogue clamps and truncates."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        acc = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K")):
            acc = kd.dot(x[m, k], w[n, k].T, acc)
        y[m, n] = kd.minimum(kd.maximum(acc, -64.0), 1e9) + acc.to(kd.i32).to(kd.f32)


@kd.kernel(x="M K", w="N K", y="M N")
def waves(x: kd.In, w: kd.In, y: kd.Out) -> None:
    """A product whose epilogue has functions."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        acc = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K")):
            acc = kd.dot(x[m, k], w[n, k].T, acc)
        y[m, n] = kd.sin(kd.round(acc) * 0.5)


def warp_specialised(instance: Instance) -> Config:
    variant = next(v for v in space(instance, H200).variants if v.choices.get("schedule") == WARP_SPECIALISED)
    found = variant.rules.first(variant.facts, H200, variant.knobs)
    assert found is not None
    return variant.choices | found


def interpreted(kernel: kd.Kernel, **tensors: torch.Tensor) -> None:
    instance = Instance.bind(kernel, tensors)
    config = warp_specialised(instance)
    assert "warp_specialize" in emit(instance, H200, config).text
    interpret_for(H200, instance, tensors, config)


def test_a_running_maximum_keeps_nan() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(n, 64).bfloat16() for n in (300, 199, 199))
    q[17, 3] = q[250, 60] = math.nan
    o, highest = torch.empty(300, 64, dtype=torch.bfloat16), torch.empty(300)
    interpreted(attention, q=q, k=k, v=v, o=o, highest=highest)
    wanted = (q.float() @ k.float().T).amax(1)
    assert highest.isnan().nonzero().flatten().tolist() == [17, 250]
    torch.testing.assert_close(highest, wanted, equal_nan=True)
    assert (o.isnan().all(1) == wanted.isnan()).all()


@pytest.mark.parametrize(("head_dim", "values"), [(64, 32), (32, 64)])
def test_values_of_another_head_dim(head_dim: int, values: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, d).bfloat16() for n, d in ((199, head_dim), (330, head_dim), (330, values)))
    arguments = flash_attention_fwd.bind(
        q, k, v, None, torch.empty(1, 2, 199, values, dtype=torch.bfloat16), torch.empty(1, 2, 199), 0.3, None, True
    )
    instance = Instance.bind(flash_attention_fwd, arguments)
    interpret_for(H200, instance, arguments, warp_specialised(instance))
    wanted = kpt.ops.flash_attention(*(t.double() for t in (q, k, v)), causal=True, scale=0.3)
    assert_close(arguments["o"], wanted, "bf16", 330)


@pytest.mark.parametrize("knobs", [{"overlap": True}, {"overlap": False, "persistent": True}], ids=str)
@pytest.mark.parametrize("entries", [(2, 1), (1, 4), (2, 4)], ids=str)
def test_a_bias_of_some_or_all_heads(entries: tuple[int, int], knobs: dict[str, bool]) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, h, n, 64).bfloat16() for h, n in ((4, 130), (2, 200), (2, 200)))
    bias = torch.randn(*entries, 130, 200).bfloat16()
    arguments = flash_attention_fwd.bind(
        q, k, v, None, torch.empty_like(q), torch.empty(2, 4, 130), 0.3, None, True, bias=bias.expand(2, 4, 130, 200)
    )
    instance = Instance.bind(flash_attention_fwd, arguments)
    interpret_for(H200, instance, arguments, warp_specialised(instance) | knobs)
    wide = (t.double() for t in (q, k, v))
    wanted = kpt.ops.flash_attention(*wide, causal=True, scale=0.3, mask=bias.double())
    assert_close(arguments["o"], wanted, "bf16", 200)


def test_weights_end_where_the_loop_does() -> None:
    """Those behind it are there, and count nowhere; the tensor is the same all along its first dim."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(n, 64).bfloat16() for n in (130, 200, 200))
    weight = torch.randn(130, 200).bfloat16()
    weight[:, 130:] = math.inf
    o, total = torch.empty(130, 64, dtype=torch.bfloat16), torch.empty(130)
    interpreted(weighed, q=q, k=k, v=v, weight=weight.expand(3, 130, 200), o=o, total=total)
    q, k, v, weight = (t.double() for t in (q, k[:130], v[:130], weight[:, :130]))
    assert_close(o, q @ k.T * weight @ v, "bf16", 130)
    torch.testing.assert_close(total.double(), weight.sum(1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{"sinks": True}, {"softcap": True}, {"sinks": True, "softcap": True}], ids=str)
def test_sinks_and_caps(options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 64).bfloat16() for n in (130, 200, 200))
    sinks = torch.tensor([2.0, -1.0]) if "sinks" in options else None
    softcap = 1.5 if "softcap" in options else None
    arguments = flash_attention_fwd.bind(
        q, k, v, None, torch.empty_like(q), torch.empty(1, 2, 130), 0.3, None, True, softcap=softcap, sinks=sinks
    )
    instance = Instance.bind(flash_attention_fwd, arguments)
    interpret_for(H200, instance, arguments, warp_specialised(instance))
    wide = (t.double() for t in (q, k, v))
    wanted, lse = kpt.ops.flash_attention(*wide, causal=True, scale=0.3, softcap=softcap, sinks=sinks, return_lse=True)
    assert_close(arguments["o"], wanted, "bf16", 200)
    assert_close(arguments["lse"], lse, "f32", 200)


def test_an_epilogue_keeps_nan_and_truncates() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(200, 128).bfloat16(), torch.randn(264, 128).bfloat16()
    x[5, 7], x[6, 0], w[:, 0] = math.nan, 3e38, 3.0
    y = torch.empty(200, 264, dtype=torch.bfloat16)
    interpreted(product, x=x, w=w, y=y)
    acc = x.float() @ w.float().T
    whole = acc.double().trunc().clamp(-(2**31), 2**31 - 1).nan_to_num()
    wanted = acc.clamp(-64.0, 1e9).double() + whole
    assert y[5].isnan().all()
    torch.testing.assert_close(y.double(), wanted, equal_nan=True, rtol=2**-7, atol=1.01)


def test_an_epilogue_of_functions() -> None:
    torch.manual_seed(0)
    x, w = torch.randint(-2, 3, (200, 128)).bfloat16() / 4, torch.randint(-2, 3, (264, 128)).bfloat16()
    y = torch.empty(200, 264, dtype=torch.bfloat16)
    interpreted(waves, x=x, w=w, y=y)
    acc = x.double() @ w.double().T
    assert (acc % 1 == 0.5).any()
    instance = Instance.bind(waves, dict(x=x, w=w, y=y))
    report = build.compile(instance, H200, warp_specialised(instance))
    assert report.spills is not None
    assert report.spills <= 32  # where large arguments are reduced
    assert_close(y, (acc.round() * 0.5).sin(), "bf16")


@pytest.mark.parametrize(
    "instance",
    [
        Instance.of_shapes(
            attention, {"M": 4096, "N": 4096, "D": 128}, dict.fromkeys("qkvo", "bf16") | {"highest": "f32"}
        ),
        Instance.of_shapes(product, {"M": 4096, "N": 4096, "K": 4096}, dict.fromkeys("xwy", "bf16")),
    ],
    ids=lambda p: p.kernel.name,
)
def test_it_compiles(instance: Instance) -> None:
    report = build.compile(instance, H200, warp_specialised(instance))
    assert report.spills == 0, report
