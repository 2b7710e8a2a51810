"""``kernel.jax``: a user's kernel as a function of JAX arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kpt_dsl as kd
from tests.jax.kernels import doubled, linear, scaled, softmax
from tests.tolerances import assert_close

jax = pytest.importorskip("jax")
jnp = jax.numpy

X = jnp.asarray(np.random.default_rng(3).normal(size=(9, 37)), "float32")


def test_a_kernel_gives_its_output() -> None:
    assert_close(softmax.jax(X), jax.nn.softmax(X, 1), "f32", 37)
    assert_close(jax.jit(softmax.jax)(X), jax.nn.softmax(X, 1), "f32", 37)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, "bfloat16", np.dtype("float16")])
def test_an_output_has_the_dtype_asked_for(dtype: Any) -> None:
    assert softmax.jax(X, out=dtype).dtype == jnp.dtype(dtype)


def test_static_and_optional_arguments() -> None:
    bias = jnp.arange(37.0)
    y, total = scaled.jax(X, bias, 3.0, squared=True)
    assert_close(y, (3 * X) ** 2 + bias, "f32")
    assert_close(total, y.sum(1), "f32", 37, scale=float(jnp.abs(y).sum()))
    assert_close(scaled.jax(X, None, 3.0, total=None), 3 * X, "f32")


@pytest.mark.parametrize("squared", [True, False])
def test_the_authors_gradient(squared: bool) -> None:
    """A function of arrays; a kernel is one of ``on_devices``."""

    def by_kernel(x: Any) -> Any:
        y, total = scaled.jax(x, None, 3.0, squared=squared)
        return (y**2).sum() + total.sum()

    def by_jax(x: Any) -> Any:
        y = (3 * x) ** 2 if squared else 3 * x
        return (y**2).sum() + y.sum()

    assert_close(jax.grad(by_kernel)(X), jax.grad(by_jax)(X), "f32", 4)


def test_batches_are_mapped() -> None:
    """Also those of the gradient, which is a kernel."""
    batch = jnp.stack([X, 2 * X])

    def cubed(function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.vmap(jax.grad(lambda x: (function(x) ** 3).sum()))

    assert_close(cubed(softmax.jax)(batch), cubed(lambda x: jax.nn.softmax(x, 1))(batch), "f32", 37)


@pytest.mark.parametrize("extents", [(0, 37), (9, 0)])
def test_nothing_is_scaled_within_a_traced_program(extents: tuple[int, int]) -> None:
    """Rows without elements have sums, which hang on values that are not known while a program is traced."""
    x = jnp.zeros(extents)
    plain, traced = scaled.jax(x, None, 3.0, squared=False), jax.jit(lambda x: scaled.jax(x, None, 3.0))(x)
    mapped = jax.vmap(lambda x: scaled.jax(x, None, 3.0))(jnp.zeros((2, *extents)))
    for y, total in (plain, traced, (each[1] for each in mapped)):
        assert y.shape == extents
        assert_close(total, jnp.zeros(extents[0]), "f32")


def test_a_program_that_is_traced_sees_values_beside_an_empty_dim() -> None:
    x, weight, bias = jnp.zeros((9, 0)), jnp.zeros((37, 0)), jnp.arange(37.0)
    assert_close(jax.jit(linear.jax)(x, weight, bias), jnp.tile(bias, (9, 1)), "f32")
    mapped = jax.vmap(linear.jax, (None, None, 0))(x, weight, jnp.stack([bias, 2 * bias]))
    assert_close(mapped[1], jnp.tile(2 * bias, (9, 1)), "f32")


def test_a_batch_of_nothing() -> None:
    assert jax.vmap(softmax.jax)(jnp.zeros((0, 9, 37))).shape == (0, 9, 37)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: softmax.jax(X, X), "softmax.jax: 2 arguments were given, but it makes its outputs and takes 1: x"),
        (lambda: softmax.jax(X, out=X), "out is .*; it makes its outputs, so give the dtype of out, None or nothing"),
        (lambda: softmax.jax(X, x=X), "softmax.jax: argument 'x' was given twice"),
        (lambda: softmax.jax(X, out=None), "softmax.jax: no output is left to make"),
        (lambda: softmax.jax(np.ones((2, 3))), "softmax.jax: no input is a JAX array"),
        (lambda: softmax.jax(X[0]), r"x has shape \(37,\), but needs 2 dims"),
        (lambda: softmax.jax(X, out="float7"), "dtype 'float7' is not one that kernels can hold"),
        (lambda: jax.grad(lambda x: doubled.jax(x).sum())(X), "has no derivative of its own"),
    ],
)
def test_what_does_not_fit_is_named(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(kd.InputError, match=words):
        call()


def test_generated_functions_say_what_they_take() -> None:
    import inspect

    from kpt_dsl import targets
    from kpt_dsl.instance import Instance
    from kpt_dsl.runtime.pallas import jax_function
    from kpt_dsl.space import space

    dtypes = {"x": "f32", "y": "f32", "total": "f32", "bias": None}
    instance = Instance.of_shapes(scaled, {"M": 8, "N": 128}, dtypes, {"squared": False})
    target = targets.get("tpu-v6e")
    signature = inspect.signature(jax_function(instance, space(instance, target).first, target))
    annotations = {name: p.annotation for name, p in signature.parameters.items()}
    assert annotations == {"x": jax.Array, "factor": float, "interpret": bool}
    assert signature.return_annotation == tuple[jax.Array, jax.Array]
