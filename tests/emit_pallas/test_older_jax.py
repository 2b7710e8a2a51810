"""Generated text under a JAX before 0.10: none of the newer names is left, and what takes their place computes the same."""

import math
from typing import Any

import numpy as np
import pytest

from kpt_dsl import targets
from kpt_dsl.emit import emit
from kpt_dsl.runtime import older_jax
from kpt_dsl.space import space
from tests.tolerances import assert_close

jax = pytest.importorskip("jax")

NEWER = ("manual_axis_type", "ManualAxisType", "lax.erf(", " jnp.full(")


def of_texts(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {"jax": jax, "jnp": jax.numpy}
    exec(text, found)
    return found


def test_nothing_newer_is_left() -> None:
    import kpt.ops
    from kpt.ops.registry import get

    kpt.ops.linear_act  # noqa: B018 (enters the op)
    target = targets.get("tpu-v5e")
    (instance, *_) = get("linear_act").instances({"M": 128, "N": 256, "K": 128}, "bf16", target, activation="gelu")
    text = emit(instance, target, space(instance, target).first).text
    assert "lax.erf(" in text and "manual_axis_type" in text
    adapted = older_jax.adapted(text).removesuffix(older_jax.HELPERS)
    assert [name for name in NEWER if name in adapted] == []


def test_the_error_function() -> None:
    erf = of_texts(older_jax.HELPERS)["older_erf"]
    x = np.concatenate([np.linspace(-6, 6, 5001), [0.0, 1e-30, -1e30, np.inf]]).astype(np.float32)
    assert_close(np.asarray(erf(x)), np.array([math.erf(v) for v in x.tolist()]), "f32")
    assert np.isnan(erf(np.float32("nan")))


def test_full_takes_arrays_without_a_copy() -> None:
    full = of_texts(older_jax.HELPERS)["older_full"]
    program = jax.make_jaxpr(lambda x: full((1, 1), x, jax.numpy.float32))(jax.numpy.ones((), "bfloat16"))
    assert "device_put" not in str(program)
    assert full((2, 3), 1.5, jax.numpy.float32).tolist() == [[1.5] * 3] * 2
