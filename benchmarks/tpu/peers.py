"""What kpt is compared with on TPUs: JAX's own Pallas kernels, tokamax's, and what XLA makes of a formula.

A peer is the text of a function ``peer``, which the compiling process defines, once for each of a few block sizes: its own
default is 128 for most of them, far from its best. The quickest is taken, by the same method as all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from benchmarks.tpu.cost import Counts

BF16 = 2  # bytes

FLASH = """
from jax.experimental.pallas.ops.tpu import flash_attention as flash

def peer(q, k, v):
    sizes = flash.BlockSizes(block_b=1, block_q={rows}, block_k_major={keys}, block_k={at_once})
    return flash.flash_attention(q, k, v, causal={causal}, sm_scale=q.shape[-1] ** -0.5, block_sizes=sizes)
"""

SPLASH = """
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

def peer(q, k, v):
    heads, length = q.shape[1:3]
    mask = masks.CausalMask((length, length)) if {causal} else masks.FullMask((length, length))
    sizes = splash.BlockSizes(block_q={rows}, block_kv={keys}, block_kv_compute={at_once})
    attention = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=1
    )
    return attention(q[0], k[0], v[0])
"""
"""It takes queries that are scaled already, as tokamax's does."""

TOKAMAX = """
from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_kernel as splash
from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_mask as masks

def peer(q, k, v):
    length = q.shape[2]
    mask = masks.CausalMask((length, length)) if {causal} else masks.FullMask((length, length))
    config = splash.SplashConfig(block_q={rows}, block_kv={keys}, block_kv_compute={at_once})
    return splash.make_splash_mha(mask, config=config, q_seq_shards=1)(q[0], k[0], v[0])
"""

PALLAS_MATMUL = """
from jax.experimental.pallas.ops.tpu.matmul import matmul

def peer(x, weight):
    return matmul(x, weight, block_shape=({rows}, {columns}), block_k={depth})
"""

XLA_MATMUL = """
import jax.numpy as jnp

def peer(x, weight):
    return jnp.matmul(x, weight)
"""

XLA_RMS_NORM = """
import jax
import jax.numpy as jnp

def peer(x, weight):
    wide = x.astype(jnp.float32)
    rstd = jax.lax.rsqrt(jnp.mean(wide * wide, axis=1, keepdims=True) + 1e-6)
    return (wide * rstd * weight.astype(jnp.float32)).astype(x.dtype)
"""

XLA_LAYER_NORM = """
import jax
import jax.numpy as jnp

def peer(x, weight, bias):
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=1, keepdims=True)
    rstd = jax.lax.rsqrt(jnp.mean(centred * centred, axis=1, keepdims=True) + 1e-5)
    return (centred * rstd * weight.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)
"""


@dataclass(frozen=True)
class Program:
    """``sizes``: of its blocks, as shown; ``counts``: None where XLA makes the kernels."""

    text: str
    sizes: str = ""
    counts: Counts | None = None


ATTENTION_SIZES = ((2048, 2048, 1024), (1024, 1024, 512))
"""Rows of queries, keys, and keys at once: the best by this method among ten for v6e, of 4k without a mask and with. Of longer
ones the first, whose squares along the diagonal are few by then: it compiles for minutes."""

MATMUL_SIZES = ((1024, 1024, 512), (512, 1024, 1024))
"""Rows, columns and depth; larger blocks do not fit the vector memory that a kernel has by default."""


def attentions(
    heads: int, length: int, width: int, causal: bool
) -> tuple[dict[str, tuple[Program, ...]], dict[str, str]]:
    """Attention forward of (1, heads, length, width) tensors in bfloat16, by name, and why some are not here."""
    kernels = {"JAX flash": FLASH, "JAX splash": SPLASH, "tokamax": TOKAMAX}
    missing = {}
    if find_spec("tokamax") is None:
        missing["tokamax"] = "not installed"
        del kernels["tokamax"]
    found = {name: tuple(_attention(name, text, heads, length, width, causal)) for name, text in kernels.items()}
    return found, missing


def _attention(name: str, text: str, heads: int, length: int, width: int, causal: bool) -> Iterator[Program]:
    for rows, keys, at_once in ATTENTION_SIZES if length <= 4096 else ATTENTION_SIZES[:1]:
        counts = attention_counts(name, heads, length, width, causal, rows, keys)
        shown = f"{rows} x {keys}, {at_once} at once"
        yield Program(text.format(rows=rows, keys=keys, at_once=at_once, causal=causal), shown, counts)


def attention_counts(name: str, heads: int, length: int, width: int, causal: bool, rows: int, keys: int) -> Counts:
    """All three begin a row of blocks and end it under a condition.

    Between, flash works under one where it is causal, splash always; tokamax has no steps that do nothing, and where it is
    causal two bodies, the second for blocks that the diagonal crosses.
    """
    full, crossed = blocks(length, rows, keys) if causal else ((length // rows) * (length // keys), 0)
    begun, some = length // rows, full + crossed
    steps = some if name == "tokamax" else begun * (length // keys)
    body = {"JAX flash": [some] * causal, "JAX splash": [some], "tokamax": [full, crossed] * causal}[name]
    visits = tuple(heads * each for each in (begun, *body, begun))
    moved = heads * width * BF16 * (2 * length + 2 * some * keys)
    return Counts(heads * steps, visits, moved)


def blocks(length: int, rows: int, keys: int) -> tuple[int, int]:
    """Of a square of scores under a causal mask: blocks of which all counts, and of which the diagonal leaves a part."""
    below = [
        (i * rows, j * keys) for i in range(length // rows) for j in range(length // keys) if j * keys < (i + 1) * rows
    ]
    full = sum(column + keys - 1 <= row for row, column in below)
    return full, len(below) - full


def matmuls(m: int, n: int, k: int) -> dict[str, tuple[Program, ...]]:
    """x (m, k) times weight (k, n) in bfloat16, by name."""
    tiled = []
    for rows, columns, depth in MATMUL_SIZES:
        across, down, along = m // rows, n // columns, k // depth
        moved = BF16 * (across * down * along * (rows + columns) * depth + m * n)
        counts = Counts(across * down * along, (across * down,), moved)
        text = PALLAS_MATMUL.format(rows=rows, columns=columns, depth=depth)
        tiled.append(Program(text, f"{rows} x {columns} x {depth}", counts))
    return {"XLA": (Program(XLA_MATMUL),), "JAX Pallas matmul": tuple(tiled)}
