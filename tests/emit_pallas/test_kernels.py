"""Kernels that ask more of the emitter than the ops do, interpreted against NumPy."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import kpt_dsl as kd
from kpt.ops.flash_attention.kernels import flash_attention_fwd
from kpt_dsl.instance import Instance
from kpt_dsl.runtime.numpy import run as run_numpy
from kpt_dsl.runtime.pallas import run
from kpt_dsl.space import Config
from tests.emit_pallas.test_text import standardised
from tests.tolerances import assert_close

pytest.importorskip("jax")


def both(kernel: kd.Kernel, config: Config, **arguments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs of the Pallas and of the NumPy backend, which reads the same IR."""
    instance = Instance.bind(kernel, arguments)
    found: list[dict[str, Any]] = []
    for runner in (run, run_numpy):
        outputs = {n: np.full_like(arguments[n], 77) for n, role in kernel.roles.items() if role == "out"}
        runner(instance, arguments | outputs, config)
        found.append(outputs)
    return found[0], found[1]


def agree(kernel: kd.Kernel, config: Config, length: int = 1, **arguments: Any) -> None:
    got, expected = both(kernel, config, **arguments)
    for name, array in expected.items():
        assert_close(got[name], array, "f32", length)


def floats(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


@kd.kernel(x="N", bounds="B TWO", out="B", counts="B")
def windowed_sum(x: kd.In, bounds: kd.In, out: kd.Out, counts: kd.Out) -> None:
    for b in kd.parallel("B"):
        total, count = kd.full([], 0.0), kd.full([], 0, kd.i32)
        for n in kd.sequential(kd.tile("N"), start=bounds[b, 0], stop=bounds[b, 1]):
            total = total + kd.sum(x[n], axis=0)
            count = n.before + n.count
        out[b] = total
        counts[b] = count


@pytest.mark.parametrize("block", [128, 256, 512])
def test_loop_bounds_may_come_from_a_tensor(block: int, rng: np.random.Generator) -> None:
    bounds = [(0, 300), (3, 170), (5, 5), (7, 6), (-4, 3), (180, 900), (250, 300), (299, 300), (0, 0), (400, 500)]
    held = {"bounds": np.array(bounds, np.int32), "out": np.zeros(10, np.float32), "counts": np.zeros(10, np.int32)}
    agree(windowed_sum, Config(block_N=block), 300, x=floats(rng, 300), **held)


@pytest.mark.parametrize("several", [3, 1])
def test_several_tiles_of_a_step_lie_within_bounds(several: int, rng: np.random.Generator) -> None:
    bounds = [(0, 384), (3, 170), (5, 5), (7, 6), (-4, 3), (180, 900), (250, 300), (129, 256), (300, 200), (400, 500)]
    held = {"bounds": np.array(bounds, np.int32), "out": np.zeros(10, np.float32), "counts": np.zeros(10, np.int32)}
    x = floats(rng, 300)
    x[[299, 0]] = 1e6
    agree(windowed_sum, Config(block_N=128, unroll_N=several), 300, x=x, **held)


@pytest.mark.parametrize(("causal", "several", "keys"), [(True, 2, 500), (False, 4, 512), (False, 2, 130)])
def test_several_tiles_of_a_step_give_the_attention_of_each(
    causal: bool, several: int, keys: int, rng: np.random.Generator
) -> None:
    q, k, v = floats(rng, 1, 2, 160, 40), floats(rng, 1, 1, keys, 40), floats(rng, 1, 1, keys, 40)
    held = {"o": np.zeros_like(q), "lse": np.zeros((1, 2, 160), np.float32)}
    options = {**flash_attention_fwd.defaults, "key_lengths": None, "window": None, "scale": 0.2, "causal": causal}
    agree(flash_attention_fwd, Config(block_M=64, block_N=128, unroll_N=several), keys, q=q, k=k, v=v, **held, **options)


@kd.kernel(q="M D", k="N D", row_scale="M", out="N M", sums="M")
def transposed(q: kd.In, k: kd.In, row_scale: kd.In, out: kd.Out, sums: kd.Out) -> None:
    """A vector that is wanted as a row and as a column."""
    for m in kd.parallel(kd.tile("M")):
        total = kd.zeros([m])
        for n in kd.sequential(kd.tile("N")):
            s = kd.dot(k[n, :], q[m, :].T) * row_scale[m][None, :]
            out[n, m] = s
            total += kd.sum(s, axis=0) + kd.sum(kd.dot(q[m, :], k[n, :].T) * row_scale[m][:, None], axis=1)
        sums[m] = total


def test_a_vector_may_lie_either_way(rng: np.random.Generator) -> None:
    M, N, D = 200, 170, 32
    held = {"out": np.zeros((N, M), np.float32), "sums": np.zeros(M, np.float32)}
    arguments = {"q": floats(rng, M, D), "k": floats(rng, N, D), "row_scale": floats(rng, M)}
    agree(transposed, Config(block_M=128, block_N=64), N * D, **arguments, **held)


@kd.kernel(x="M H N", scale="H", out="M H N", top="M H")
def headwise(x: kd.In, scale: kd.In, out: kd.Out, top: kd.Out) -> None:
    """A dim between the tiled ones that is looped over one by one."""
    for h, m in kd.parallel("H", kd.tile("M")):
        tile = x[m, h, :] * scale[h]
        out[m, h, :] = tile
        top[m, h] = kd.max(tile, axis=1)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_single_dims_may_lie_anywhere(dtype: Any, rng: np.random.Generator) -> None:
    x = floats(rng, 37, 3, 50).astype(dtype)
    got, expected = both(
        headwise, Config(block_M=16), x=x, scale=floats(rng, 3), out=np.zeros_like(x), top=np.zeros((37, 3), dtype)
    )
    for name in ("out", "top"):
        np.testing.assert_array_equal(np.float32(got[name]), np.float32(expected[name]))


@kd.kernel(x="M N", out="M N", count="M")
def scalars(x: kd.In, out: kd.Out, count: kd.Out, alpha: kd.Float, n: kd.Int) -> None:
    for m in kd.parallel(kd.tile("M")):
        factor = kd.where(n > 3, alpha, 0.5) * kd.sqrt(2.0) + kd.maximum(alpha, 0.25) / kd.size("N")
        bound = kd.size("N") - 3
        bound = kd.minimum(bound, kd.size("M") - n)
        shown = (x[m, :] > 0.0) & (m.index < bound)[:, None]
        out[m, :] = kd.where(shown, x[m, :] * factor, kd.floor(x[m, :]))
        count[m] = m.index % 3 + n // -2 + (n - kd.size("M")) * kd.size("N") // 7


def test_scalars_meet_tiles(rng: np.random.Generator) -> None:
    held = {"out": np.zeros((40, 20), np.float32), "count": np.zeros(40, np.int32)}
    agree(scalars, Config(block_M=16), 1, x=floats(rng, 40, 20), alpha=0.3, n=5, **held)


@kd.kernel(x="M N", low="Q", weight="N K", out="Q M N", product="Q M K")
def filled(x: kd.In, low: kd.In, weight: kd.In, out: kd.Out, product: kd.Out) -> None:
    for q, m in kd.parallel("Q", kd.tile("M")):
        least = low[q]
        some = kd.where(x[m, :] > 0.0, x[m, :], least)
        neither = kd.where(x[m, :] > 0.0, least, low[0])
        out[q, m, :] = kd.where(x[m, :] < 0.5, some, neither)
        product[q, m, :] = kd.dot(some, weight[:, :])


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.bfloat16, np.float16])
def test_narrow_scalars_meet_narrow_tiles(dtype: Any, rng: np.random.Generator) -> None:
    """A TPU holds scalars of tensors in 32 bits, and tiles as they are."""
    x, low, weight = (floats(rng, *shape).astype(dtype) for shape in ((20, 40), (3,), (40, 8)))
    held = {"out": np.zeros((3, 20, 40), dtype), "product": np.zeros((3, 20, 8), np.float32)}
    got, expected = both(filled, Config(block_M=32), x=x, low=low, weight=weight, **held)
    np.testing.assert_array_equal(np.float32(got["out"]), np.float32(expected["out"]))
    assert_close(got["product"], expected["product"], "f32", 40)


@kd.kernel(x="M", out="M")
def special(x: kd.In, out: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        v = x[m]
        out[m] = (
            kd.erf(v) + kd.sigmoid(-v) - kd.rsqrt(kd.abs(v) + 1.0) * kd.floor(v) + kd.tanh(v) / kd.log2(v * v + 2.0)
            + kd.ndtr(v) + kd.sin(v) * kd.cos(v * 2.0) * kd.round(v * 3.0)
        )


def test_functions(rng: np.random.Generator) -> None:
    agree(special, Config(block_M=128), 4, x=floats(rng, 300), out=np.zeros(300, np.float32))


@kd.kernel(x="M", out="M")
def copy(x: kd.In, out: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        out[m] = x[m]


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.bfloat16, np.float16])
def test_narrow_stores_round_and_saturate_alike(dtype: Any) -> None:
    x = np.array([0.0, 1.0625, 1.1875, -1e9, 1e9, 500.0, np.inf, np.nan, 2.0**-9, -3e-5], np.float32)
    got, expected = both(copy, Config(block_M=128), x=x, out=np.zeros(10, dtype))
    np.testing.assert_array_equal(got["out"].astype(np.float32), expected["out"].astype(np.float32))


@kd.kernel(x="M N", y="M N", row="M", lax="N")
def pallas_words(x: kd.In, y: kd.Out, row: kd.Out, lax: kd.In) -> None:
    for M in kd.parallel(kd.tile("M")):
        dot = kd.zeros([M])
        for step in kd.sequential(kd.tile("N")):
            jnp = x[M, step] * lax[step][None, :]
            dot = dot + kd.sum(jnp, axis=1)
        for column in kd.sequential(kd.tile("N")):
            y[M, column] = x[M, column] - dot[:, None]
        row[M] = dot


def test_names_that_the_text_needs_are_still_the_authors_to_use(rng: np.random.Generator) -> None:
    held = {"y": np.zeros((20, 300), np.float32), "row": np.zeros(20, np.float32)}
    agree(pallas_words, Config(block_M=8, block_N=128), 300, x=floats(rng, 20, 300), lax=floats(rng, 300), **held)


@kd.kernel(x="M N", out="M N")
def recomputed(x: kd.In, out: kd.Out) -> None:
    """Values from before a loop that are read in it and behind it: some computed anew, some kept."""
    for m in kd.parallel(kd.tile("M")):
        edge = x[m, :]
        mean = kd.sum(edge, axis=1) / kd.size("N")
        half = edge * 0.5
        limit = kd.size("N") - 3
        limit = kd.minimum(limit, m.stop)
        spread = kd.zeros([m])
        for n in kd.sequential(kd.tile("N"), stop=limit):
            spread += kd.sum(kd.abs(x[m, n] - mean[:, None]), axis=1)
        out[m, :] = half + (spread * mean)[:, None]


@pytest.mark.parametrize("block", [128, 256])
def test_what_crosses_a_loop_is_kept_or_computed_anew(block: int, rng: np.random.Generator) -> None:
    x = floats(rng, 160, 200)
    agree(recomputed, Config(block_M=32, block_N=block), 200, x=x, out=np.zeros_like(x))


@pytest.mark.parametrize("blocks", [(128, 128), (8, 256)])
def test_kept_columns_meet_tiles_rows_and_columns(blocks: tuple[int, int], rng: np.random.Generator) -> None:
    held = {"out": np.zeros((150, 300), np.float32), "count": np.zeros(150, np.float32), "offset": np.zeros(150, np.float32)}
    agree(standardised, Config(block_M=blocks[0], block_N=blocks[1]), x=floats(rng, 150, 300), **held)
