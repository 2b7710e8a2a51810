"""Kernels and instances that the tests of spaces share: the ops' own, and those of a stranger."""

import kpt_dsl as kd
from kpt.ops import registry
from kpt.ops.flash_attention.kernels import flash_attention_fwd
from kpt.ops.fp8_matmul.kernels import fp8_matmul_fwd
from kpt.ops.layer_norm.kernels import layer_norm_fwd
from kpt.ops.linear_act.activations import ACTIVATIONS
from kpt.ops.linear_act.kernels import linear_act_fwd
from kpt.ops.quantize_fp8.kernels import quantize_rows, quantize_with_scale, row_amax
from kpt.ops.rms_norm.kernels import rms_norm_fwd
from kpt_dsl.instance import Instance


@kd.kernel(x="M N", y="M N", z="M N")
def add(x: kd.In, y: kd.In, z: kd.Out) -> None:
    """Elementwise, by a stranger."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        z[m, n] = x[m, n] + y[m, n]


@kd.kernel(a="M K", b="K N", c="N P", y="M P")
def two_products(a: kd.In, b: kd.In, c: kd.In, y: kd.Out) -> None:
    """(a @ b) @ c without storing a @ b, by a stranger."""
    for m in kd.parallel(kd.tile("M")):
        acc = kd.zeros([m, "P"])
        for n in kd.sequential(kd.tile("N")):
            acc = kd.dot(kd.dot(a[m, :], b[:, n]), c[n, :], acc)
        y[m, :] = acc


@kd.kernel(a="M K", b="N K", r="M N", y="M N")
def with_residual(a: kd.In, b: kd.In, r: kd.In, y: kd.Out) -> None:
    """r + a @ b.T, by a stranger."""
    for m, n in kd.parallel(kd.tile("M"), kd.tile("N")):
        acc = kd.zeros([m, n])
        for k in kd.sequential(kd.tile("K")):
            acc = kd.dot(a[m, k], b[n, k].T, acc)
        y[m, n] = r[m, n] + acc


def attention(
    m: int, n: int, d: int = 128, *, b: int = 1, h: int = 16, g: int = 16, dtype: str = "bf16", causal: bool = False
) -> Instance:
    return Instance.of_shapes(
        flash_attention_fwd,
        {"B": b, "H": h, "G": g, "M": m, "N": n, "D": d, "E": d},
        {"q": dtype, "k": dtype, "v": dtype, "key_lengths": None, "o": dtype, "lse": "f32"},
        {"causal": causal, "window": None},
    )


def linear(m: int, n: int, k: int, dtype: str = "bf16", activation: str = "gelu_tanh") -> Instance:
    return Instance.of_shapes(
        linear_act_fwd,
        {"M": m, "N": n, "K": k},
        {"x": dtype, "weight": dtype, "bias": dtype, "y": dtype},
        {"activation": ACTIVATIONS[activation]},
    )


def fp8_matmul(m: int, n: int, k: int, dtype: str = "f8e4m3") -> Instance:
    return Instance.of_shapes(
        fp8_matmul_fwd,
        {"M": m, "N": n, "K": k},
        {"a": dtype, "b": dtype, "scale_a": "f32", "scale_b": "f32", "bias": None, "y": "bf16"},
    )


def layer_norm(m: int, n: int, dtype: str = "bf16") -> Instance:
    dtypes = {"x": dtype, "weight": dtype, "bias": dtype, "y": dtype}
    return Instance.of_shapes(layer_norm_fwd, {"M": m, "N": n}, dtypes)


def layer_norm_backward(m: int, n: int, dtype: str = "bf16") -> Instance:
    """With all gradients: the first of the kernels that the op launches."""
    return registry.get("layer_norm_backward").instances({"M": m, "N": n}, dtype)[0]


def rms_norm(m: int, n: int, dtype: str = "bf16") -> Instance:
    return Instance.of_shapes(rms_norm_fwd, {"M": m, "N": n}, {"x": dtype, "weight": dtype, "y": dtype})


def quantize(m: int, n: int, dtype: str = "bf16") -> list[Instance]:
    """Row-wise quantisation, and the two halves of tensor-wise."""
    return [
        Instance.of_shapes(quantize_rows, {"M": m, "N": n}, {"x": dtype, "y": "f8e4m3", "scale": "f32"}),
        Instance.of_shapes(row_amax, {"M": m, "N": n}, {"x": dtype, "amax": "f32"}),
        Instance.of_shapes(quantize_with_scale, {"M": m, "N": n, "ONE": 1}, {"x": dtype, "scale": "f32", "y": "f8e4m3"}),
    ]


def residual(m: int, n: int, k: int, dtype: str = "bf16") -> Instance:
    return Instance.of_shapes(with_residual, {"M": m, "N": n, "K": k}, dict.fromkeys(("a", "b", "r", "y"), dtype))


def of_strangers(m: int, n: int, dtype: str = "bf16") -> list[Instance]:
    return [
        Instance.of_shapes(add, {"M": m, "N": n}, {"x": dtype, "y": dtype, "z": dtype}),
        Instance.of_shapes(
            two_products, {"M": m, "K": 64, "N": n, "P": 48}, {"a": dtype, "b": dtype, "c": dtype, "y": dtype}
        ),
    ]
