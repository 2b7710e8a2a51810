"""Every op at one ragged shape in every dtype: what all rungs of the TPU ladder are climbed with."""

from collections.abc import Iterator

import kpt_dsl as kd
from kpt.ops.column_sums import column_sums, partial_column_sums
from kpt.ops.cross_entropy.backward_kernels import cross_entropy_bwd
from kpt.ops.cross_entropy.kernels import cross_entropy_fwd, partial_losses, reduce_losses
from kpt.ops.flash_attention import backward_kernels as gradients
from kpt.ops.flash_attention.kernels import flash_attention_fwd
from kpt.ops.fp8_matmul.kernels import fp8_matmul_fwd
from kpt.ops.gated_act.kernels import gated_act_bwd, gated_act_fwd
from kpt.ops.layer_norm import backward_kernels as layer
from kpt.ops.layer_norm.kernels import layer_norm_fwd
from kpt.ops.linear_act import backward_kernels as training
from kpt.ops.linear_act.activations import ACTIVATIONS, BACKWARD
from kpt.ops.linear_act.kernels import linear_act_fwd
from kpt.ops.quantize_fp8.kernels import quantize_rows, quantize_with_scale, row_amax
from kpt.ops.rms_norm import backward_kernels as rms
from kpt.ops.rms_norm.kernels import rms_norm_fwd
from kpt.ops.rotary.kernels import rotary_halves, rotary_neighbours
from kpt_dsl.instance import Instance

WIDE = ("f32", "f16", "bf16")
FP8 = ("f8e4m3", "f8e5m2")


def linear(dtype: str, activation: str = "gelu", M: int = 760, N: int = 1099, K: int = 600) -> Instance:
    """With a bias."""
    dtypes = dict.fromkeys(("x", "weight", "bias", "y"), dtype)
    return Instance.of_shapes(linear_act_fwd, {"M": M, "N": N, "K": K}, dtypes, {"activation": ACTIVATIONS[activation]})


def linear_training(dtype: str, activation: str = "gelu") -> Iterator[tuple[str, Instance]]:
    """What its forward saves and its gradients, by name."""
    dims = {"M": 760, "N": 1099, "K": 600, "P": 11}
    for kernel in (training.linear_act_fwd_saving, training.linear_act_bwd_dz_recomputing, training.linear_act_bwd_dz,
                   training.linear_act_bwd_dz_sums, training.linear_act_bwd_dx, training.linear_act_bwd_dw):  # fmt: skip
        given = {"activation": ACTIVATIONS[activation], "gradient": BACKWARD[activation]}
        statics = {name: value for name, value in given.items() if name in kernel.other_parameters}
        dtypes = {tensor: "f32" if tensor == "partial" else dtype for tensor in kernel.tensors}
        mine = {dim: extent for dim, extent in dims.items() if dim in kernel.dim_names}
        yield kernel.name, Instance.of_shapes(kernel, mine, dtypes, statics)


def _statics(dtype: str, causal: bool, masked: bool) -> dict[str, bool | None]:
    """As ops call attention's kernels on a TPU."""
    return {"causal": causal, "scaled": dtype == "bf16" or None} | ({} if masked else {"window": None})


def attention(dtype: str, causal: bool, masked: bool, M: int = 370, N: int = 760, D: int = 80, H: int = 4) -> Instance:
    """``masked``: with key lengths and a window."""
    dtypes = {"q": dtype, "k": dtype, "v": dtype, "key_lengths": "i32" if masked else None, "o": dtype, "lse": "f32"}
    statics = _statics(dtype, causal, masked)
    dims = {"B": 2, "H": H, "G": H // 2, "M": M, "N": N, "D": D, "E": D}
    return Instance.of_shapes(flash_attention_fwd, dims, dtypes, statics)


def attention_gradients(
    dtype: str, causal: bool, masked: bool, M: int = 370, N: int = 760, D: int = 80, H: int = 4
) -> Iterator[tuple[str, Instance]]:
    """All kernels, by name; two query heads to a key head."""
    narrow, wide = ("q", "k", "v", "o", "do", "dq"), ("lse", "dlse", "delta", "shift", "dk_parts", "dv_parts")
    known = {**dict.fromkeys(narrow, dtype), **dict.fromkeys(wide, "f32"), "key_lengths": "i32" if masked else None}
    dims = {"B": 2, "H": H, "G": H // 2, "M": M, "N": N, "D": D, "E": D}
    for kernel in (gradients.flash_attention_rows, gradients.flash_attention_dq, gradients.flash_attention_dkdv):
        given = kernel.tensors.keys() - kernel.defaults
        dtypes = {name: None if name == "dq_sum" else known.get(name, "f32") for name in given}
        statics = {} if kernel is gradients.flash_attention_rows else _statics(dtype, causal, masked)
        mine = {d: n for d, n in dims.items() if d in kernel.dim_names}
        yield kernel.name, Instance.of_shapes(kernel, mine, dtypes, statics)
    dtypes = {name: known.get(name, dtype) for name in gradients.flash_attention_group_sum.tensors}
    dims = {"B": 2, "G": H // 2, "R": 2, "N": N, "D": D, "E": D}
    yield "flash_attention_group_sum", Instance.of_shapes(gradients.flash_attention_group_sum, dims, dtypes)


def gate(kernel: kd.Kernel, dtype: str, activation: str = "silu", M: int = 199, N: int = 1300) -> Instance:
    """A gate, or both of its gradients."""
    given = {"activation": ACTIVATIONS[activation], "gradient": BACKWARD[activation]}
    statics = {name: value for name, value in given.items() if name in kernel.other_parameters}
    return Instance.of_shapes(kernel, {"M": M, "N": N}, dict.fromkeys(kernel.tensors, dtype), statics)


def norm(kernel: kd.Kernel, dtype: str, M: int = 199, N: int = 1300, residual: bool = False) -> Instance:
    """Layer or RMS norm, with all its parameters; ``residual``: of a sum."""
    tensors = [t for t in kernel.tensors if residual or t not in ("residual", "new_residual")]
    return Instance.of_shapes(kernel, {"M": M, "N": N}, dict.fromkeys(tensors, dtype))


def norm_backward(kernel: kd.Kernel, dtype: str, M: int = 199, N: int = 1300, P: int = 2) -> Instance:
    """A kernel of their gradients, with all that it makes; statistics and partial sums are float32."""
    wide = {"mean", "rstd", "across", "along", "dweight", "dbias", "partial", "first", "second"}
    dtypes = {tensor: "f32" if tensor in wide else dtype for tensor in kernel.tensors}
    dims = {"M": M, "N": N, "P": P}
    return Instance.of_shapes(kernel, {dim: dims[dim] for dim in kernel.dim_names}, dtypes)


def entropy(dtype: str, M: int = 199, N: int = 1300, P: int = 2) -> Iterator[tuple[str, Instance]]:
    """The kernels of cross-entropy with all that they may do, by name."""
    dims = {"M": M, "N": N, "P": P, "ONE": 1}
    for kernel in (cross_entropy_fwd, cross_entropy_bwd, partial_losses, reduce_losses):
        known = {"x": dtype, "dx": dtype, "target": "i32"}
        dtypes = {tensor: known.get(tensor, "f32") for tensor in kernel.tensors}
        statics = {"mean": True} if kernel is reduce_losses else dict.fromkeys(kernel.scalars, 1)
        mine = {dim: dims[dim] for dim in kernel.dim_names}
        yield f"{kernel.name}-{dtype}", Instance.of_shapes(kernel, mine, dtypes, statics)


def rotary(kernel: kd.Kernel, dtype: str, rest: bool, T: int = 199) -> Instance:
    """Two groups of heads; ``rest``: with columns that are passed on."""
    parts = {"q_rest", "k_rest", "q_kept", "k_kept"}
    dims = {"B": 2, "K": 2, "N": 4, "M": 1, "T": T, "R": 2, "P": 32} | ({"S": 48} if rest else {})
    dtypes = {name: None if name in parts and not rest else dtype for name in kernel.tensors}
    return Instance.of_shapes(kernel, dims, dtypes, {"back": rest})


def fp8_matmul(dtype: str, M: int = 370, N: int = 1099, K: int = 600) -> Instance:
    """Row-wise scales, bias, bf16 out."""
    dtypes = {"a": dtype, "b": dtype, "scale_a": "f32", "scale_b": "f32", "bias": "bf16", "y": "bf16"}
    return Instance.of_shapes(fp8_matmul_fwd, {"M": M, "N": N, "K": K}, dtypes)


def quantize(dtype: str, to: str) -> Iterator[tuple[str, Instance]]:
    """The three kernels of quantisation."""
    dims = {"M": 199, "N": 1300}
    yield f"quantize_rows-{dtype}-{to}", Instance.of_shapes(quantize_rows, dims, {"x": dtype, "y": to, "scale": "f32"})
    yield f"row_amax-{dtype}-{to}", Instance.of_shapes(row_amax, dims, {"x": dtype, "amax": "f32"})
    dtypes = {"x": dtype, "scale": "f32", "y": to}
    yield f"quantize_with_scale-{dtype}-{to}", Instance.of_shapes(quantize_with_scale, dims | {"ONE": 1}, dtypes)


def every_op() -> Iterator[tuple[str, Instance]]:
    """Every op in every dtype that it takes, by name."""
    for dtype in WIDE:
        yield f"linear_act-{dtype}", linear(dtype)
        for name, instance in linear_training(dtype):
            yield f"{name}-{dtype}", instance
        for causal in (False, True):
            yield f"flash_attention-{dtype}{'-causal' * causal}", attention(dtype, causal, masked=False)
        yield f"flash_attention-{dtype}-causal-masked", attention(dtype, causal=True, masked=True)
        for name, instance in attention_gradients(dtype, causal=True, masked=False):
            yield f"{name}-{dtype}", instance
        for name, instance in list(attention_gradients(dtype, causal=True, masked=True))[1:3]:
            yield f"{name}-{dtype}-masked", instance
        yield f"gated_act-{dtype}", gate(gated_act_fwd, dtype)
        yield f"gated_act_backward-{dtype}", gate(gated_act_bwd, dtype)
        for kernel in (rotary_halves, rotary_neighbours):
            yield f"{kernel.name}-{dtype}", rotary(kernel, dtype, rest=dtype == "bf16")
        yield f"layer_norm-{dtype}", norm(layer_norm_fwd, dtype)
        yield f"rms_norm-{dtype}", norm(rms_norm_fwd, dtype)
        for kernel in (layer_norm_fwd, rms_norm_fwd):
            yield f"add_{kernel.name}-{dtype}", norm(kernel, dtype, residual=True)
        for kernel in (layer.layer_norm_bwd, layer.layer_norm_bwd_dx, layer.layer_norm_bwd_rows, layer.layer_norm_bwd_tiles,
                       rms.rms_norm_bwd, rms.rms_norm_bwd_dx, rms.rms_norm_bwd_rows, rms.rms_norm_bwd_tiles,
                       partial_column_sums, column_sums):  # fmt: skip
            yield f"{kernel.name}-{dtype}", norm_backward(kernel, dtype)
        yield from entropy(dtype)
    for dtype in FP8:
        yield f"fp8_matmul-{dtype}", fp8_matmul(dtype)
    for dtype, to in zip(WIDE, (*FP8, FP8[0]), strict=True):
        yield from quantize(dtype, to)


OPS = dict(every_op())
