"""PyTorch's operations by JAX's: the references of activations and their gradients give on arrays what they give on tensors."""

from typing import Any

import numpy as np
import pytest
import torch

from kpt.ops.linear_act.activations import ACTIVATIONS, BACKWARD
from kpt.ops.registry import get
from tests.tolerances import assert_close

jax = pytest.importorskip("jax")

from kpt.jax.interpreter import Interpreter  # noqa: E402
from kpt.jax.serve import serve  # noqa: E402

DY, GATE, UP = (np.random.default_rng(s).normal(size=(5, 33)).astype(np.float32) * 3 for s in range(3))


SOME = 16
"""Operations of an activation's gradient, each of which rounds; which are contracted is XLA's affair."""


def references(dy: Any, gate: Any, up: Any) -> dict[str, Any]:
    """Of every activation, in one program."""
    forward, backward = get("gated_act").reference, get("gated_act_backward").reference
    found = {name: [forward(gate, up, name)] for name in ACTIVATIONS}
    for name in BACKWARD:
        found[name] += backward(dy, gate, up, name, (True, True))
    return found


def test_activations() -> None:
    found = jax.jit(lambda *a: Interpreter(serve).call(references, *a))(DY, GATE, UP)
    right = references(*[torch.tensor(a).double() for a in (DY, GATE, UP)])
    assert found.keys() == right.keys() == set(ACTIVATIONS)
    for name, outputs in right.items():
        for got, expected in zip(found[name], outputs, strict=True):
            assert_close(got, expected, "f32", SOME)


ATTENTION = {
    "mask": {"mask": np.random.default_rng(8).normal(size=(2, 1, 6, 7)).astype(np.float32)},
    "bools": {"mask": np.random.default_rng(8).normal(size=(6, 7)) > -0.5},
    "lengths": {"key_lengths": np.array([3, 0]), "return_lse": True},
    "window": {"window": (2, 1), "softcap": 4.0},
    "slopes": {"alibi_slopes": np.array([0.5, 0.25], np.float32), "sinks": np.array([0.3, -0.2], np.float32)},
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name: str) -> None:
    """Scores of every kind; what ``scaled_dot_product_attention`` of PyTorch does is among it."""
    import kpt
    import kpt.jax

    q, k = (np.random.default_rng(s).normal(size=(2, 2, n, 8)).astype(np.float32) for s, n in ((1, 6), (2, 7)))
    found = kpt.jax.flash_attention(q, k, k, **ATTENTION[name])
    right = kpt.ops.flash_attention(*map(_double, (q, k, k)), **{n: _double(a) for n, a in ATTENTION[name].items()})
    for got, expected in zip(jax.tree.leaves(found), right if isinstance(right, tuple) else [right], strict=True):
        assert_close(got, expected, "f32", 8)


def _double(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    tensor = torch.tensor(value)
    return tensor.double() if tensor.is_floating_point() else tensor
