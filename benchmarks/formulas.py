"""What the kernels of docs/gallery compute, in PyTorch, and a realistic size of each: for tests, predictions and timing.

A formula takes what a kernel reads, by name, and gives its outputs in order. In float64 it is exact; in the kernel's own types
it is what one would write instead of the kernel.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional

from docs.gallery.add_rms_norm import add_rms_norm
from docs.gallery.block_scaled_fp8 import block_scaled_fp8
from docs.gallery.cross_entropy import cross_entropy, cross_entropy_backward
from docs.gallery.embedding import embedding, embedding_backward
from docs.gallery.group_norm import group_norm
from docs.gallery.grouped_product import grouped_product
from docs.gallery.int4_product import int4_product
from docs.gallery.int8_product import int8_product
from docs.gallery.packed_attention import packed_attention
from docs.gallery.paged_attention import paged_parts
from docs.gallery.rope import rope_halves, rope_neighbours
from docs.gallery.split_kv_decode import decode_join, decode_parts
from docs.gallery.top_k import top_k
from kpt_dsl import Kernel
from kpt_dsl.instance import Instance

Tensor = torch.Tensor
Arrays = dict[str, Tensor]
Dims = Mapping[str, int]

TORCH = {
    "f32": torch.float32, "bf16": torch.bfloat16, "f8e4m3": torch.float8_e4m3fn, "i8": torch.int8, "u8": torch.uint8,
    "i32": torch.int32, "i64": torch.int64,
}  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """Kernels that together, one after the other, compute a formula.

    ``dims``: the realistic size. ``dtypes``: of the tensors that are not bfloat16. ``drawn``: how inputs are made whose
    elements are no normal numbers, of the inputs before them and dims. ``given``: scalars and static arguments. ``added``:
    outputs that are added to, so cleared before. ``work``: FLOPs of a call, or bytes where memory decides; None: the bytes of
    all tensors that the caller sees.
    """

    kernels: tuple[Kernel, ...]
    formula: Callable[..., tuple[Tensor, ...]]
    dims: Dims
    dtypes: Mapping[str, str] = field(default_factory=dict)
    drawn: Mapping[str, Callable[[Arrays, Dims], Tensor]] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    added: tuple[str, ...] = ()
    unit: str = "GB/s"
    work: Callable[[Arrays, Dims], float] | None = None

    def instances(self) -> list[Instance]:
        """The kernels at their realistic size."""
        return [
            Instance.of_shapes(
                kernel,
                {dim: self.dims[dim] for dim in kernel.dim_names},
                {name: self.dtypes.get(name, "bf16") for name in kernel.tensors},
                {name: value for name, value in self.given.items() if name in kernel.statics},
            )
            for kernel in self.kernels
        ]

    def arguments(self, dims: Dims, device: str = "cpu", wide: bool = False, **own: Any) -> Arrays:
        """Every tensor, inputs drawn. ``wide``: float32 for bfloat16. ``own``: inputs not to be drawn."""
        arrays: Arrays = {}
        with torch.device(device):
            for kernel, (name, names) in ((k, tensor) for k in self.kernels for tensor in k.tensors.items()):
                shape, dtype = [dims[dim] for dim in names], TORCH[self.dtypes.get(name, "f32" if wide else "bf16")]
                if name in arrays:
                    continue
                if name in own:
                    arrays[name] = torch.as_tensor(own[name], dtype=dtype)
                elif kernel.roles[name] == "out":
                    arrays[name] = torch.zeros(shape, dtype=dtype)
                elif name in self.drawn:
                    arrays[name] = self.drawn[name](arrays, dims).to(dtype)
                else:
                    arrays[name] = torch.randn(shape).to(dtype)
        return arrays

    def run(self, arrays: Arrays, backend: str | None = None, config: Mapping[str, Any] | None = None) -> tuple[Tensor, ...]:
        """Calls the kernels, the first with this config, and gives the outputs of the last."""
        for name in self.added:
            arrays[name].zero_()
        for kernel in self.kernels:
            kernel(**_named(kernel, {**arrays, **self.given}), backend=backend, config=config)
            config = None
        return tuple(arrays[name] for name in self.outputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the last kernel gives."""
        last = self.kernels[-1]
        return tuple(name for name in last.tensors if last.roles[name] == "out")

    def worth(self, arrays: Arrays, dims: Dims) -> float:
        """FLOPs or bytes of a call."""
        if self.work:
            return self.work(arrays, dims)
        seen = {name for kernel in self.kernels for name in kernel.tensors if kernel.roles[name] == "in"}
        between = {name for kernel in self.kernels for name in kernel.tensors if kernel.roles[name] == "out"} & seen
        counted = (seen | set(self.outputs)) - between
        return float(sum(arrays[name].numel() * arrays[name].element_size() for name in counted))

    def bound(self, arrays: Arrays) -> tuple[Instance, ...]:
        """The kernels with these arguments."""
        return tuple(Instance.bind(kernel, _named(kernel, {**arrays, **self.given})) for kernel in self.kernels)

    def read(self, arrays: Arrays, function: Callable[..., object]) -> dict[str, Any]:
        """What a function, as the formula, takes by name."""
        taken = signature(function).parameters
        return {name: value for name, value in {**arrays, **self.given}.items() if name in taken}


def _named(kernel: Kernel, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in (*kernel.tensors, *kernel.other_parameters)}


# ------------------------------------------------------------------ norms, positions
def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, ...]:
    total = x + residual
    return total, functional.rms_norm(total, weight.shape, weight, eps)


def _group_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
    y = functional.group_norm(x.flatten(1, 2), x.shape[1], weight.flatten(), bias.flatten(), eps)
    return (y.view(x.shape),)


def _rope(x: Tensor, cosine: Tensor, sine: Tensor, pairs: int) -> tuple[Tensor, ...]:
    a, b = x.unbind(pairs)
    cosine, sine = cosine[:, None], sine[:, None]
    return (torch.stack((a * cosine - b * sine, b * cosine + a * sine), pairs).to(x.dtype),)


def _rope_halves(x: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, ...]:
    return _rope(x, cosine, sine, 3)


def _rope_neighbours(x: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, ...]:
    return _rope(x, cosine, sine, 4)


# ------------------------------------------------------------------ vocabularies
def _targets(_: Arrays, dims: Dims) -> Tensor:
    """Every seventh is not to count."""
    target = torch.randint(dims["N"], (dims["M"],))
    target[::7] = -100
    return target


def _cross_entropy(x: Tensor, target: Tensor, ignored: int) -> tuple[Tensor, ...]:
    lse = (x if x.dtype == torch.float64 else x.float()).logsumexp(1)
    counts = target != ignored
    hit = x.gather(1, target.where(counts, 0)[:, None])[:, 0]
    return torch.where(counts, lse - hit, 0.0), lse


def _cross_entropy_backward(x: Tensor, target: Tensor, lse: Tensor, dloss: Tensor, ignored: int) -> tuple[Tensor, ...]:
    one_hot = torch.arange(x.shape[1], device=x.device) == target[:, None]
    factor = torch.where(target == ignored, 0.0, dloss)
    return (((torch.exp(x - lse[:, None]) - one_hot.to(lse.dtype)) * factor[:, None]).to(x.dtype),)


def _embedding(ids: Tensor, table: Tensor) -> tuple[Tensor, ...]:
    return (functional.embedding(ids, table),)


def _embedding_backward(ids: Tensor, dy: Tensor, dtable: Tensor) -> tuple[Tensor, ...]:
    return (torch.zeros_like(dtable).index_add_(0, ids, dy.to(dtable.dtype)),)


def _top_k(x: Tensor, count: int) -> tuple[Tensor, ...]:
    return tuple(torch.topk(x, count))


# ------------------------------------------------------------------ products
def _int8_product(x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    return ((x @ weight.to(x.dtype).T * scale).to(x.dtype),)


def _int4_product(x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    both = weight.view(torch.int8)
    w = torch.stack((both << 4 >> 4, both >> 4), 1) * scale[..., None]
    return (x.flatten(1) @ w.to(x.dtype).flatten(1).T,)


def _block_scaled_fp8(a: Tensor, scale_a: Tensor, b: Tensor, scale_b: Tensor) -> tuple[Tensor, ...]:
    kind = torch.float64 if scale_a.dtype == torch.float64 else torch.bfloat16
    left = (a.to(kind) * scale_a[:, :, None].to(kind)).flatten(1)
    right = (b.to(kind) * scale_b[:, None, :, None].to(kind)).flatten(2)
    return ((left @ right.flatten(0, 1).T).unflatten(1, b.shape[:2]),)


def _grouped_product(x: Tensor, weight: Tensor, cu: Tensor) -> tuple[Tensor, ...]:
    groups = pairwise(cu.tolist())
    return (torch.cat([x[i:j] @ w.T for w, (i, j) in zip(weight, groups, strict=True)]),)


# ------------------------------------------------------------------ attention
def _decode(q: Tensor, k: Tensor, v: Tensor, length: Tensor, scale: float) -> tuple[Tensor, ...]:
    counts = torch.arange(k.shape[2], device=k.device) < length[:, None]
    return (functional.scaled_dot_product_attention(q, k, v, counts[:, None, None], scale=scale),)


def _paged(q: Tensor, k: Tensor, v: Tensor, table: Tensor, length: Tensor, scale: float) -> tuple[Tensor, ...]:
    k, v = (pool[table].flatten(1, 2).transpose(1, 2) for pool in (k, v))
    return _decode(q, k, v, length, scale)


def _packed(q: Tensor, k: Tensor, v: Tensor, cu: Tensor, scale: float) -> tuple[Tensor, ...]:
    rows = [[t[i:j].transpose(0, 1) for t in (q, k, v)] for i, j in pairwise(cu.tolist())]
    found = [
        functional.scaled_dot_product_attention(*each, is_causal=True, scale=scale, enable_gqa=True) for each in rows
    ]
    return (torch.cat(found, 1).transpose(0, 1),)


def _uneven(total: str) -> Callable[[Arrays, Dims], Tensor]:
    """Where groups begin, each longer than the one before: fractions squared."""

    def cu(_: Arrays, dims: Dims) -> Tensor:
        return (torch.linspace(0, 1, dims["C"], dtype=torch.float64).square() * dims[total]).round()

    return cu


def _moved_rows(arrays: Arrays, dims: Dims) -> float:
    """Bytes of the rows of a table that are read and written."""
    return dims["M"] * dims["D"] * 2.0 * arrays["table"].element_size()


def _added_rows(arrays: Arrays, dims: Dims) -> float:
    """Bytes of the rows that are added, of what they are added to, read and written, and of all that was cleared before."""
    moved = arrays["dy"].element_size() + 2.0 * arrays["dtable"].element_size()
    return dims["M"] * dims["D"] * moved + arrays["dtable"].numel() * arrays["dtable"].element_size()


EPS = {"eps": 1e-5}
ROTARY = {"B": 4, "T": 4096, "H": 32, "R": 2, "P": 64}
ANGLES = {"cosine": "f32", "sine": "f32"}
VOCABULARY = {"M": 8192, "N": 128256}
IDS = {"ids": lambda _, dims: torch.randint(dims["V"], (dims["M"],))}
DECODED = {"length": "i32", "parts": "f32", "lse": "f32"}
HEADS = {"B": 16, "G": 8, "R": 4, "D": 128, "P": 2}

SHOWN: dict[str, Shown] = {
    "add_rms_norm": Shown((add_rms_norm,), _add_rms_norm, {"M": 8192, "N": 4096}, given=EPS),
    "group_norm": Shown((group_norm,), _group_norm, {"B": 8, "G": 32, "C": 20, "S": 4096}, given=EPS),
    "rope_halves": Shown((rope_halves,), _rope_halves, ROTARY, ANGLES),
    "rope_neighbours": Shown((rope_neighbours,), _rope_neighbours, ROTARY, ANGLES),
    "cross_entropy": Shown(
        (cross_entropy,),
        _cross_entropy,
        VOCABULARY,
        {"target": "i64", "loss": "f32", "lse": "f32"},
        {"target": _targets},
        {"ignored": -100},
    ),
    "cross_entropy_backward": Shown(
        (cross_entropy_backward,),
        _cross_entropy_backward,
        VOCABULARY,
        {"target": "i64", "dloss": "f32", "lse": "f32"},
        {"target": _targets, "lse": lambda arrays, _: arrays["x"].float().logsumexp(1)},
        {"ignored": -100},
    ),
    "embedding": Shown(
        (embedding,), _embedding, {"M": 16384, "V": 32000, "D": 4096}, {"ids": "i64"}, IDS, work=_moved_rows
    ),
    "embedding_backward": Shown(
        (embedding_backward,),
        _embedding_backward,
        {"M": 16384, "V": 32000, "D": 4096},
        {"ids": "i64", "dtable": "f32"},
        IDS,
        added=("dtable",),
        work=_added_rows,
    ),
    "top_k": Shown(
        (top_k,), _top_k, {"M": 16384, "N": 128, "K": 8}, {"x": "f32", "values": "f32", "places": "i64"},
        given={"count": 8},
    ),
    "int8_product": Shown(
        (int8_product,),
        _int8_product,
        {"M": 16, "N": 8192, "K": 8192},
        {"weight": "i8", "scale": "f32"},
        {"weight": lambda _, dims: torch.randint(-127, 128, (dims["N"], dims["K"]))},
    ),
    "int4_product": Shown(
        (int4_product,),
        _int4_product,
        {"M": 16, "N": 8192, "P": 2, "G": 32, "K": 128},
        {"weight": "u8"},
        {"weight": lambda _, dims: torch.randint(256, (dims["N"], dims["G"], dims["K"]))},
    ),
    "block_scaled_fp8": Shown(
        (block_scaled_fp8,),
        _block_scaled_fp8,
        {"M": 4096, "J": 32, "N": 128, "G": 32, "K": 128},
        {"a": "f8e4m3", "b": "f8e4m3", "scale_a": "f32", "scale_b": "f32"},
        unit="TFLOP/s",
        work=lambda _, dims: 2.0 * dims["M"] * dims["J"] * dims["N"] * dims["G"] * dims["K"],
    ),
    "split_kv_decode": Shown(
        (decode_parts, decode_join),
        _decode,
        {**HEADS, "N": 8192},
        DECODED,
        {"length": lambda _, dims: torch.full((dims["B"],), dims["N"])},
        {"scale": 128**-0.5},
    ),
    "packed_attention": Shown(
        (packed_attention,),
        _packed,
        {"T": 32768, "H": 32, "G": 8, "D": 128, "C": 33},
        {"cu": "i32"},
        {"cu": _uneven("T")},
        {"scale": 128**-0.5},
        unit="TFLOP/s",
        work=lambda arrays, dims: 2.0 * dims["H"] * dims["D"] * float(arrays["cu"].double().diff().square().sum()),
    ),
    "paged_attention": Shown(
        (paged_parts, decode_join),
        _paged,
        {**HEADS, "L": 2048, "S": 64, "N": 128},
        {**DECODED, "table": "i32"},
        {
            "table": lambda _, dims: torch.randperm(dims["L"]).view(dims["B"], dims["N"]),
            "length": lambda _, dims: torch.full((dims["B"],), dims["N"] * dims["S"]),
        },
        {"scale": 128**-0.5},
    ),
    "grouped_product": Shown(
        (grouped_product,),
        _grouped_product,
        {"T": 16384, "E": 64, "N": 2048, "K": 2048, "C": 65},
        {"cu": "i32"},
        {"cu": _uneven("T")},
        unit="TFLOP/s",
        work=lambda _, dims: 2.0 * dims["T"] * dims["N"] * dims["K"],
    ),
}
"""By name. Products with narrow weights have 16 rows, as when a batch decodes; the grouped one has those of 4,096 tokens, four
experts of 64 each."""
