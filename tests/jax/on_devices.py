"""What kpt.jax does in programs of several devices, run as a program of its own: ``python -m tests.jax.on_devices``.

JAX counts devices once a process. A line for each check: its name, and what went wrong, if anything did.
"""

import os
import traceback
from collections.abc import Callable
from typing import Any

os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P

import kpt.jax
from tests.jax.kernels import softmax
from tests.tolerances import assert_close

N = 40
MESH = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))


def array(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), "float32")


X, W, B = array(8, 5, N), array(N), array(N) + 1
Q, K = array(4, 4, 9, 16), array(4, 2, 9, 16)


def rms(x: Any, w: Any) -> Any:
    return (kpt.jax.rms_norm(x, (N,), w, 1e-5) ** 3).sum()


def layer(x: Any, w: Any, b: Any) -> Any:
    return (kpt.jax.layer_norm(x, (N,), w, b) ** 3).sum()


def attention(q: Any, k: Any) -> Any:
    return (kpt.jax.flash_attention(q, k, k, causal=True) ** 2).sum()


def same(got: Any, expected: Any, length: int) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert_close(a, b, "f32", length)


def expected(function: Any, *arrays: Any) -> Any:
    """The gradients by XLA's operations on one device."""
    with kpt.jax.prefer("reference"):
        return jax.grad(function, tuple(range(len(arrays))))(*arrays)


def sharded(*arrays: Any) -> list[Any]:
    """By rows, but for vectors."""
    specs = [P("rows") if a.ndim > 1 else P() for a in arrays]
    return [jax.device_put(a, jax.NamedSharding(MESH, s)) for a, s in zip(arrays, specs, strict=True)]


def shard_map_differentiates() -> None:
    """With JAX's own checks of what varies over the mesh."""
    for function, arrays in ((rms, (X, W)), (layer, (X, W, B))):
        specs = tuple(P("rows") if a.ndim > 1 else P() for a in arrays)
        summed = jax.shard_map(
            lambda *a, f=function: jax.lax.psum(f(*a), "rows"), mesh=MESH, in_specs=specs, out_specs=P()
        )
        found = jax.jit(jax.grad(summed, tuple(range(len(arrays)))))(*arrays)
        same(found, expected(function, *arrays), 8 * 5 * N)


def partitioned_by_rows() -> None:
    """Each device has its rows: nothing is gathered, and gradients of parameters are summed up once."""
    for function, arrays in ((rms, (X, W)), (layer, (X, W, B))):
        parts = sharded(*arrays)
        program = jax.jit(jax.grad(function, tuple(range(len(arrays))))).lower(*parts).compile()
        found = program(*parts)
        assert "all-gather" not in program.as_text()
        assert "all-reduce" in program.as_text()
        assert found[0].sharding.spec == P("rows"), found[0].sharding
        same(found, expected(function, *arrays), 8 * 5 * N)


def partitioned_by_batch_entries() -> None:
    parts = sharded(Q, K)
    program = jax.jit(jax.grad(attention, (0, 1))).lower(*parts).compile()
    assert "all-gather" not in program.as_text()
    same(program(*parts), expected(attention, Q, K), 4 * 9 * 16)


def gathered_where_columns_are_cut() -> None:
    """A row of a norm is whole on a device: what is dealt out otherwise is brought there."""
    x = jax.device_put(X, jax.NamedSharding(MESH, P(None, None, "rows")))
    same(jax.jit(jax.grad(rms, (0, 1)))(x, W), expected(rms, X, W), 8 * 5 * N)


def explicit_axes_are_named() -> None:
    """Kernels do not serve there outside of ``jax.shard_map``; XLA's operations do."""
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Explicit,))
    x = jax.device_put(X, jax.NamedSharding(mesh, P("rows")))
    w = jax.device_put(W, jax.NamedSharding(mesh, P()))
    with pytest.raises(kpt.InputError, match=r"dealt out over Explicit axes of a mesh: call within jax\.shard_map"):
        kpt.jax.rms_norm(x, (N,), w)
    with kpt.jax.prefer("reference"):
        same(jax.jit(jax.grad(rms, (0, 1)))(x, w), expected(rms, X, W), 8 * 5 * N)
    summed = jax.shard_map(lambda *a: jax.lax.psum(rms(*a), "rows"), mesh=mesh, in_specs=(P("rows"), P()), out_specs=P())
    same(jax.jit(jax.grad(summed, (0, 1)))(x, w), expected(rms, X, W), 8 * 5 * N)


def vmap_of_a_batch() -> None:
    """Also where XLA partitions the rest of the program, and in a gradient."""
    found = jax.jit(jax.vmap(jax.grad(rms, (0, 1)), (0, None)))(X, W)
    by_hand = [expected(rms, x, W) for x in X]
    same(found, [jnp.stack(parts) for parts in zip(*by_hand, strict=True)], 5 * N)


def kernels_of_users() -> None:
    """In shard_map, with the gradient that their author gave."""
    def cubed(x: Any) -> Any:
        return (softmax.jax(x) ** 3).sum()

    x = X[:, 0]
    summed = jax.shard_map(lambda x: jax.lax.psum(cubed(x), "rows"), mesh=MESH, in_specs=P("rows"), out_specs=P())
    same(jax.jit(jax.grad(summed))(x), jax.grad(lambda x: (jax.nn.softmax(x, 1) ** 3).sum())(x), N)


CHECKS: tuple[Callable[[], None], ...] = (
    shard_map_differentiates, partitioned_by_rows, partitioned_by_batch_entries, gathered_where_columns_are_cut,
    explicit_axes_are_named, vmap_of_a_batch, kernels_of_users,
)  # fmt: skip

if __name__ == "__main__":
    with kpt.jax.prefer("pallas"):
        for check in CHECKS:
            try:
                check()
                print(check.__name__, "ok", flush=True)
            except Exception:
                print(check.__name__, " ".join(traceback.format_exc(limit=-3).split()), flush=True)
