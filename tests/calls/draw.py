"""Calls of ops, drawn: shapes, dtypes, strides, alignment, flags, gradients, autocast. One number says all of one call."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from kpt.ops.linear_act.activations import ACTIVATIONS

EXTENTS = (1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 70, 100, 127, 128, 129, 130)
ROWS = (1, 1, 2, 3, 4, 5, 7, 16, 17, 33)
FLOATS = (torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.bfloat16, torch.float64)
LAYOUTS = ("contiguous", "contiguous", "contiguous", "permuted", "gaps", "steps", "misaligned", "expanded", "negated")
EPS = (1e-5, 1e-6, 1e-3, 1, 0.5)
COUNTS = (torch.int32, torch.int64)
LARGEST_WINDOWS = (2**31 - 1, 2**31, 2**63 - 1)


@dataclass(frozen=True)
class Given:
    """A tensor: its shape, dtype, layout, size of its values, and whether its gradient is wanted."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str = "contiguous"
    magnitude: float = 1.0
    centre: float = 0.0
    grad: bool = False

    def __str__(self) -> str:
        said = [str(self.dtype).removeprefix("torch."), "x".join(map(str, self.shape)) or "()"]
        said += [self.layout] * (self.layout != "contiguous") + [f"*{self.magnitude:g}"] * (self.magnitude != 1)
        return " ".join(said + [f"+{self.centre:g}"] * (self.centre != 0) + ["grad"] * self.grad)


@dataclass(frozen=True)
class Call:
    """One call. ``tensors`` by the names of the op's arguments (None: not given), ``flags`` the others."""

    number: int
    op: str
    backend: str
    device: str
    tensors: dict[str, Given | None]
    flags: dict[str, Any]
    autocast: torch.dtype | None = None
    mode: str = "grad"
    length: int = field(default=1, compare=False)
    """Terms of the longest sum."""

    def __str__(self) -> str:
        given = ", ".join(f"{name}=[{t}]" for name, t in self.tensors.items() if t is not None)
        flags = ", ".join(f"{name}={value!r}" for name, value in self.flags.items())
        around = [self.backend, self.mode, *([f"autocast {self.autocast}"] if self.autocast else [])]
        return f"{self.op}({given}, {flags}) by {', '.join(around)}"


def draw(number: int, device: str, backends: tuple[str, ...]) -> Call:
    """The call of that number. ``backends``: those to choose from; None stands for who serves unasked."""
    rng = random.Random(f"call {number}")
    op = rng.choice(tuple(OPS))
    backend = rng.choice(backends)
    tensors, flags, length = OPS[op](rng)
    if backend == "pallas" and tensors.get("cu_seqlens_q") is not None:  # no TPU does it
        backend = "numpy"
    if op == "flash_attention" and tensors.get("cu_seqlens_q") is None and backend != "pallas" and rng.random() < 0.12:
        tensors = _in_pages(rng, tensors)  # no TPU looks keys up
    grads = rng.random() < 0.5 and op not in ("fp8_matmul", "quantize_fp8")
    if grads:
        without = ["alibi_slopes", *(["weight"] if op == "cross_entropy" else [])]
        without += ["mask"] if backend == "pallas" else []  # no TPU makes the gradient of a mask
        floating = [n for n, t in tensors.items() if t is not None and t.dtype.is_floating_point and n not in without]
        if op == "rotary" and backend not in ("unasked", "reference"):  # no kernel makes the gradients of angles
            floating = ["q", "k"]
        wants = [n for n in floating if rng.random() < 0.7]
        tensors = {
            n: t if t is None or n not in wants else Given(**{**vars(t), "grad": True}) for n, t in tensors.items()
        }
    autocast = rng.choice((torch.bfloat16, torch.float16)) if rng.random() < 0.1 else None
    mode = (
        rng.choice(("grad", "torch.ops")) if grads else rng.choice(("grad", "no_grad", "inference_mode", "torch.ops"))
    )
    return Call(number, op, backend, device, tensors, flags, autocast, mode, length)


# ------------------------------------------------------------------ each op
Drawn = tuple[dict[str, Given | None], dict[str, Any], int]


def _given(
    rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype, magnitude: float = 1.0, centre: float = 0.0
) -> Given:
    return Given(shape, dtype, rng.choice(LAYOUTS), magnitude, centre)


def _leading(rng: random.Random) -> tuple[int, ...]:
    shape = [rng.choice(ROWS) for _ in range(rng.choice((0, 1, 1, 1, 2, 3)))]
    while len(shape) > 1 and torch.Size(shape).numel() > 64:
        shape.pop()
    if shape and rng.random() < 0.03:
        shape[rng.randrange(len(shape))] = 0
    return tuple(shape)


def _norm(rng: random.Random, parameters: tuple[str, ...], mixed: bool) -> Drawn:
    dtype = rng.choice(FLOATS)
    shape = (rng.choice(EXTENTS),) if rng.random() < 0.8 else (rng.choice((1, 2, 3, 5)), rng.choice((1, 4, 7, 16, 33)))
    half = dtype in (torch.float16, torch.bfloat16)
    beside = (
        rng.choice(FLOATS) if mixed and rng.random() < 0.3 else torch.float32 if half and rng.random() < 0.3 else dtype
    )
    magnitude = rng.choice((1.0, 1.0, 1.0, 1e-3, 100.0))
    centre = rng.choice((0.0, 0.0, 0.0, 5.0, -100.0, 1000.0)) if "bias" in parameters else 0.0
    found: dict[str, Given | None] = {"input": _given(rng, (*_leading(rng), *shape), dtype, magnitude, centre)}
    for name in parameters:
        found[name] = _given(rng, shape, beside) if rng.random() < 0.8 else None
    eps = rng.choice(EPS if "bias" in parameters else (*EPS, None))
    flags = {"normalized_shape": shape, "eps": eps}
    if "bias" not in parameters:
        flags["weight_offset"] = rng.choice((0.0, 0, 1.0, -0.5)) if found["weight"] is not None else 0.0
    return found, flags, torch.Size(shape).numel()


def _sum(rng: random.Random, norm: Drawn) -> Drawn:
    """A norm's call with a residual beside its input, which does not cancel it."""
    tensors, flags, length = norm
    x = tensors["input"]
    assert x is not None
    residual = _given(rng, x.shape, x.dtype, x.magnitude, x.centre)
    return {"input": x, "residual": residual, **{n: t for n, t in tensors.items() if n != "input"}}, flags, length


def _linear(rng: random.Random) -> Drawn:
    dtype, k, n = rng.choice(FLOATS), rng.choice(EXTENTS), rng.choice(EXTENTS)
    found: dict[str, Given | None] = {
        "x": _given(rng, (*_leading(rng), k), dtype, rng.choice((1.0, 1.0, 10.0, 0.01))),
        "weight": _given(rng, (n, k), dtype, k**-0.5 * rng.choice((1.0, 1.0, 30.0))),
        "bias": _given(rng, (n,), dtype) if rng.random() < 0.7 else None,
    }
    flags = {"activation": rng.choice(("none", "relu", "gelu", "gelu_tanh", "silu")), "recompute": rng.random() < 0.3}
    return found, flags, k


def _gate(rng: random.Random) -> Drawn:
    dtype, shape = rng.choice(FLOATS), (*_leading(rng), rng.choice(EXTENTS))
    found: dict[str, Given | None] = {
        "gate": _given(rng, shape, dtype, rng.choice((1.0, 1.0, 10.0, 0.01))),
        "up": _given(rng, shape, dtype),
    }
    return found, {"activation": rng.choice(sorted(ACTIVATIONS))}, 1


def _rotary(rng: random.Random) -> Drawn:
    dtype, batch, head_dim = rng.choice(FLOATS), rng.choice((1, 1, 2, 3)), rng.choice((2, 4, 7, 8, 16, 24, 32, 64, 72))
    positions, columns = rng.choice((1, 1, 2, 5, 16, 17, 33, 64)), 2 * rng.randrange(1, head_dim // 2 + 1)
    form = rng.choice(("positions", "batch", "heads first", "heads last"))
    angles: tuple[int, ...] = {
        "positions": (positions, columns),
        "batch": (rng.choice((1, batch)), positions, columns),
        "heads first": (rng.choice((1, batch)), 1, positions, columns),
        "heads last": (rng.choice((1, batch)), positions, 1, columns),
    }[form]
    q, k = (
        (batch, positions, n, head_dim) if form == "heads last" else (batch, n, positions, head_dim)
        for n in (rng.choice((1, 2, 3, 4, 6)), rng.choice((1, 2, 3)))
    )
    half = dtype in (torch.float16, torch.bfloat16)
    beside = torch.float32 if half and rng.random() < 0.3 else dtype
    found: dict[str, Given | None] = {"q": _given(rng, q, dtype), "k": _given(rng, k, dtype)}
    found |= {name: _given(rng, angles, beside) for name in ("cos", "sin")}
    return found, {"interleaved": rng.random() < 0.5}, 2


def _attention(rng: random.Random) -> Drawn:
    if rng.random() < 0.15:
        return _packed(rng)
    dtype = rng.choice(FLOATS)
    batch, kv_heads, group = rng.choice((1, 1, 2, 3)), rng.choice((1, 1, 2, 3)), rng.choice((1, 1, 2, 4))
    queries, head_dim = rng.choice((1, 2, 5, 16, 17, 33, 64, 65)), rng.choice((1, 4, 8, 16, 24, 32, 64, 72))
    keys = queries if rng.random() < 0.4 else rng.choice((1, 3, 7, 16, 20, 33, 64, 90))
    if rng.random() < 0.02:
        head_dim = 264
    if rng.random() < 0.02:
        batch = 0
    found: dict[str, Given | None] = {"q": _given(rng, (batch, kv_heads * group, queries, head_dim), dtype)}
    width = head_dim if rng.random() < 0.7 else rng.choice((1, 8, 24, 40, 64))
    found |= {name: _given(rng, (batch, kv_heads, keys, dim), dtype) for name, dim in (("k", head_dim), ("v", width))}
    for name in ("key_lengths", "key_starts"):
        counts = Given((batch,), rng.choice((torch.int32, torch.int64)), magnitude=keys)
        found[name] = counts if rng.random() < (0.3 if name == "key_lengths" else 0.1) else None
    if found["key_lengths"] is not None and rng.random() < 0.4:
        found["cache_lengths"], found["key_lengths"] = found["key_lengths"], None
    found |= _scores(rng, (batch, kv_heads * group, queries, keys), dtype) | dict.fromkeys(("cu_seqlens_q", "cu_seqlens_k"))
    return found, _attention_flags(rng, queries, keys), max(keys, head_dim, width)


def _packed(rng: random.Random) -> Drawn:
    """Entries of any lengths behind one another, some of none, with rows of no entry before and behind."""
    dtype, entries = rng.choice(FLOATS), rng.choice((0, 1, 1, 2, 3, 7))
    kv_heads, group, head_dim = rng.choice((1, 1, 2)), rng.choice((1, 1, 2, 3)), rng.choice((1, 8, 16, 24, 64))
    queries, keys, width = rng.choice((0, 1, 17, 64, 90)), rng.choice((1, 20, 70, 100)), rng.choice((head_dim, 8, 40))
    alike = rng.random() < 0.5
    if alike:
        keys = queries
    found: dict[str, Given | None] = {"q": _given(rng, (queries, kv_heads * group, head_dim), dtype)}
    found |= {name: _given(rng, (keys, kv_heads, dim), dtype) for name, dim in (("k", head_dim), ("v", width))}
    found |= _scores(rng, (entries, kv_heads * group, queries, keys), dtype)
    found |= dict.fromkeys(("key_lengths", "key_starts", "mask"))
    ends = {
        name: Given((entries + 1,), rng.choice(COUNTS), "ascending", magnitude=rows)
        for name, rows in (("cu_seqlens_q", queries), ("cu_seqlens_k", keys))
    }
    found |= ends | ({"cu_seqlens_k": None} if alike else {})
    return found, _attention_flags(rng, queries, keys), max(keys, head_dim, width)


def _attention_flags(rng: random.Random, queries: int, keys: int) -> dict[str, Any]:
    windows = (None, None, None, 1, 2, rng.randrange(1, keys + 2), keys + 1, queries + keys + 1, *LARGEST_WINDOWS)
    pairs = tuple((rng.choice((-1, 0, 1, keys)), rng.choice((-1, 0, 2, keys))) for _ in range(2))
    return {
        "causal": rng.random() < 0.5,
        "scale": rng.choice((None, None, None, 0.25, 1, 0.0, -0.5)),
        "window": rng.choice(windows + pairs),
        "return_lse": rng.random() < 0.3,
        "softcap": rng.choice((0.5, 3, 30.0)) if rng.random() < 0.15 else None,
        "max_seqlen_q": None,
        "max_seqlen_k": None,
    }


def _in_pages(rng: random.Random, found: dict[str, Given | None]) -> dict[str, Given | None]:
    """The same call with keys in pages, of which entries may have some in common."""
    k, v = found["k"], found["v"]
    assert k is not None
    assert v is not None
    batch, kv_heads, keys, _ = k.shape
    size = rng.choice((1, 3, 16, 32))
    most = -(-keys // size)
    pages = rng.choice((1, 5, batch * most + 1))
    pools = {n: Given((pages, size, kv_heads, t.shape[3]), t.dtype, t.layout) for n, t in (("k", k), ("v", v))}
    counts = Given((batch,), rng.choice(COUNTS), magnitude=most * size)
    table = Given((batch, most), torch.int32, magnitude=pages - 1)
    return found | pools | {"key_lengths": None, "cache_lengths": counts, "block_table": table, "mask": None}


def _scores(rng: random.Random, whole: tuple[int, ...], dtype: torch.dtype) -> dict[str, Given | None]:
    """What may be added to scores, or masks them."""
    mask = tuple(n if rng.random() < 0.6 else 1 for n in whole)[rng.choice((0, 0, 1, 2)) :]
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    slopes = rng.choice((whole[1:2], whole[:2]))
    found: dict[str, Given | None] = {
        "mask": _given(rng, mask, rng.choice((torch.bool, dtype))) if rng.random() < 0.25 else None,
        "alibi_slopes": Given(slopes, exact, magnitude=-1.0) if rng.random() < 0.15 else None,
        "sinks": _given(rng, whole[1:2], dtype) if rng.random() < 0.15 else None,
    }
    return found


def _product(rng: random.Random) -> Drawn:
    m, n, k = (rng.choice(EXTENTS) for _ in range(3))
    kinds = (torch.float8_e4m3fn, torch.float8_e4m3fn, torch.float8_e5m2)
    row_wise = rng.random() < 0.5
    out = rng.choice((torch.bfloat16, torch.float16, torch.float32))
    found: dict[str, Given | None] = {
        "a": Given((m, k), rng.choice(kinds), rng.choice(("contiguous", "permuted", "gaps"))),
        "b": Given((k, n), rng.choice(kinds), rng.choice(("permuted", "permuted", "contiguous"))),
        "scale_a": Given((m, 1) if row_wise else rng.choice(((), (1,), (1, 1))), torch.float32, magnitude=-1.0),
        "scale_b": Given((1, n) if row_wise else (), torch.float32, magnitude=-1.0),
        "bias": _given(rng, (n,), rng.choice((out, torch.float32, torch.float16))) if rng.random() < 0.5 else None,
    }
    return found, {"out_dtype": out}, k


def _quantise(rng: random.Random) -> Drawn:
    found: dict[str, Given | None] = {
        "x": _given(rng, (*_leading(rng), rng.choice(EXTENTS)), rng.choice(FLOATS), rng.choice((1.0, 1e-3, 1e3)))
    }
    kinds = (torch.float8_e4m3fn, torch.float8_e5m2)
    return found, {"granularity": rng.choice(("tensor", "row")), "dtype": rng.choice(kinds)}, 1


def _entropy(rng: random.Random) -> Drawn:
    classes, rows = rng.choice(EXTENTS), _leading(rng)[:2]
    shape = (*rows[:1], classes, *rows[1:])
    given = _given(rng, shape, rng.choice(FLOATS), rng.choice((1.0, 1.0, 10.0, 0.01)), rng.choice((0.0, 0.0, 5.0)))
    found: dict[str, Given | None] = {"input": given, "target": Given(rows, rng.choice(COUNTS), magnitude=classes - 1)}
    found["weight"] = Given((classes,), given.dtype, magnitude=-1.0) if rng.random() < 0.1 else None
    flags = {
        "ignore_index": rng.choice((-100, -100, 0, classes - 1)),
        "reduction": rng.choice(("mean", "sum", "none")),
        "label_smoothing": rng.choice((0.0, 0.0, 0.1, 1)),
        "z_loss": rng.choice((0.0, 0.0, 1e-4, 0.1)),
        "softcap": rng.choice((None, None, 0.5, 30, 1e5)),
        "return_lse": rng.random() < 0.3,
    }
    return found, flags, classes * torch.Size(rows).numel()


def _head(rng: random.Random) -> Drawn:
    dtype, classes, features, rows = rng.choice(FLOATS), rng.choice(EXTENTS), rng.choice(EXTENTS), _leading(rng)
    found: dict[str, Given | None] = {
        "x": _given(rng, (*rows, features), dtype),
        "weight": _given(rng, (classes, features), dtype, features**-0.5),
        "target": Given(rows, rng.choice(COUNTS), magnitude=classes - 1),
        "bias": _given(rng, (classes,), dtype) if rng.random() < 0.5 else None,
    }
    _, flags, _ = _entropy(rng)
    del flags["return_lse"]
    return found, flags | {"ignore_index": rng.choice((-100, 0))}, max(classes, features) * torch.Size(rows).numel()


OPS: dict[str, Callable[[random.Random], Drawn]] = {
    "flash_attention": _attention,
    "linear_act": _linear,
    "gated_act": _gate,
    "layer_norm": lambda rng: _norm(rng, ("weight", "bias"), mixed=False),
    "add_layer_norm": lambda rng: _sum(rng, _norm(rng, ("weight", "bias"), mixed=False)),
    "add_rms_norm": lambda rng: _sum(rng, _norm(rng, ("weight",), mixed=True)),
    "rms_norm": lambda rng: _norm(rng, ("weight",), mixed=True),
    "cross_entropy": _entropy,
    "rotary": _rotary,
    "linear_cross_entropy": _head,
    "fp8_matmul": _product,
    "quantize_fp8": _quantise,
}


# ------------------------------------------------------------------ values
def values(given: Given, generator: torch.Generator) -> torch.Tensor:
    """Numbers for a tensor, on the CPU, contiguous: normal ones, lengths from 0 to ``magnitude``, or positive scales (-1)."""
    if given.dtype in COUNTS:
        counts = torch.randint(0, int(given.magnitude) + 1, given.shape, generator=generator, dtype=given.dtype)
        return counts.sort().values if given.layout == "ascending" else counts
    drawn = torch.randn(given.shape, generator=generator)
    if given.layout == "expanded" and given.shape and given.shape[0]:
        drawn = drawn[:1].expand(given.shape)
    if given.dtype == torch.bool:
        return drawn > -1.0
    if given.magnitude < 0:
        return (drawn.abs() + 0.1).to(given.dtype)
    return (drawn * given.magnitude + given.centre).to(given.dtype)


def laid_out(numbers: torch.Tensor, layout: str, device: str) -> torch.Tensor:
    """A tensor of these numbers on the device whose memory is laid out otherwise."""
    t = numbers.to(device)
    match layout:
        case "permuted":
            order = tuple(reversed(range(t.ndim)))
            return t.permute(order).contiguous().permute(order)
        case "gaps" if t.ndim:
            room = t.new_empty([n + 3 for n in t.shape])
            view = room[tuple(slice(1, 1 + n) for n in t.shape)]
        case "steps" if t.ndim:
            view = t.new_empty((*t.shape[:-1], 2 * t.shape[-1]))[..., ::2]
        case "misaligned":
            view = t.new_empty(t.numel() + 1)[1:].view(t.shape)
        case "expanded" if t.ndim and t.shape[0]:
            return t[:1].contiguous().expand(t.shape)
        case "negated" if t.dtype.is_floating_point and t.dtype.itemsize in (4, 8):
            return torch.complex(torch.zeros_like(t), -t).conj().imag
        case _:
            return t.clone()
    return view.copy_(t)
