"""Generated text under a JAX before 0.10: what takes the place of its newer names computes the same."""

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kpt_dsl as kd
from kpt_dsl import targets
from kpt_dsl.emit import emit
from kpt_dsl.instance import Instance
from kpt_dsl.runtime import pallas
from kpt_dsl.space import Config
from tests.tolerances import assert_close

jax = pytest.importorskip("jax")

from kpt_dsl.runtime import older_jax  # noqa: E402 (JAX is there)


@kd.kernel(x="B N", shift="B", out="B N")
def erf_and_shift(x: kd.In, shift: kd.In, out: kd.Out) -> None:
    for b in kd.parallel("B"):
        out[b, :] = kd.erf(x[b, :]) + kd.full(["N"], shift[b])


def test_text_runs_where_newer_names_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {"B": 9, "N": 40}
    instance = Instance.of_shapes(erf_and_shift, shapes, dict.fromkeys(("x", "shift", "out"), "f32"))
    source = emit(instance, targets.get("tpu-v5e"), Config())
    assert all(name in source.text for name in ("manual_axis_type", "ManualAxisType", "lax.erf(", "jnp.full("))

    class ShapeDtypeStruct(jax.ShapeDtypeStruct):
        def __init__(self, shape: tuple[int, ...], dtype: str, vma: frozenset[str]) -> None:
            super().__init__(shape, dtype)

    older = {"typeof": lambda _: SimpleNamespace(vma=frozenset()), "ShapeDtypeStruct": ShapeDtypeStruct}
    def full(shape: Any, value: Any, dtype: Any) -> Any:
        assert not isinstance(value, jax.Array), "JAX copies an array to a device"
        return newer_full(shape, value, dtype)

    newer_full = jax.numpy.full
    monkeypatch.setattr(older_jax, "jax", SimpleNamespace(**{**vars(jax), **older}))
    monkeypatch.delattr(jax.sharding, "ManualAxisType", raising=False)
    monkeypatch.setattr(jax.numpy, "full", full)
    monkeypatch.delattr(jax.lax, "erf")
    x, shift = (np.random.default_rng(1).normal(size=s).astype(np.float32) for s in ((9, 40), (9,)))
    found = jax.jit(partial(pallas.define(source.name, source.text), interpret=True))(x, shift)
    assert_close(np.asarray(found), np.vectorize(math.erf)(x) + shift.astype(float)[:, None], "f32")


def test_the_error_function() -> None:
    x = np.concatenate([np.linspace(-6, 6, 5001), [0.0, 1e-30, -1e30, np.inf]]).astype(np.float32)
    assert_close(np.asarray(older_jax.erf(x)), np.array([math.erf(v) for v in x.tolist()]), "f32")
    assert np.isnan(older_jax.erf(np.float32("nan")))


def test_full_of_a_number() -> None:
    assert older_jax.full((2, 3), 1.5, jax.numpy.float32).tolist() == [[1.5] * 3] * 2
