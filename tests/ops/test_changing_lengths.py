"""Compiled once for all lengths: one graph, forward and backward, and what it gives is right at each."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

import kpt.ops
from tests.tolerances import assert_close

LENGTHS = (7, 33, 100, 199, 760)
WIDTH, FEATURES = 24, 40

Function = Callable[..., torch.Tensor]

OPS: dict[str, tuple[Function, Function, tuple[tuple[int | str, ...], ...]]] = {
    "rms_norm": (
        lambda x, w: kpt.ops.rms_norm(x, (WIDTH,), w, 1e-5),
        lambda x, w: F.rms_norm(x, (WIDTH,), w, 1e-5),
        (("S", WIDTH), (WIDTH,)),
    ),
    "layer_norm": (
        lambda x, w, b: kpt.ops.layer_norm(x, (WIDTH,), w, b),
        lambda x, w, b: F.layer_norm(x, (WIDTH,), w, b),
        (("S", WIDTH), (WIDTH,), (WIDTH,)),
    ),
    "linear_act": (
        lambda x, w, b: kpt.ops.linear_act(x, w, b, activation="silu"),
        lambda x, w, b: F.silu(F.linear(x, w, b)),
        (("S", WIDTH), (FEATURES, WIDTH), (FEATURES,)),
    ),
    "flash_attention": (
        lambda q, k, v: kpt.ops.flash_attention(q, k, v, causal=True),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
        ((1, 4, "S", 16), (1, 2, "S", 16), (1, 2, "S", 16)),
    ),
}
"""kpt's, PyTorch's, and the shapes of the inputs."""


def compiled(function: Function) -> Function:
    """Anew: nothing is left of what was compiled before, and graphs are counted from 0."""
    torch._dynamo.reset()
    counters.clear()
    return torch.compile(function, dynamic=True, fullgraph=True, backend="aot_eager")


def graphs() -> int:
    """How many graphs serve what was called."""
    return counters["stats"]["unique_graphs"]


@pytest.fixture(params=["reference", "numpy"])
def serving(request: pytest.FixtureRequest) -> Iterator[str]:
    """PyTorch, and generated code."""
    with kpt.ops.prefer(request.param):
        yield request.param


def inputs(op: str, length: int, grad: bool) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(length)
    shapes = ([length if n == "S" else int(n) for n in shape] for shape in OPS[op][2])
    return [torch.randn(shape, generator=random).requires_grad_(grad) for shape in shapes]


@pytest.mark.parametrize("op", OPS)
def test_one_graph_serves_all_lengths(op: str, serving: str) -> None:
    ours, native, _ = OPS[op]
    fast = compiled(ours)
    for length in LENGTHS:
        given = inputs(op, length, grad=False)
        assert_close(fast(*given), native(*(t.double() for t in given)), "f32", max(length, WIDTH))
        assert graphs() == 1, f"another graph for {length}"


@pytest.mark.parametrize("op", OPS)
def test_one_graph_and_its_gradients_serve_all_lengths(op: str, serving: str) -> None:
    ours, native, _ = OPS[op]
    fast = compiled(ours)
    for length in LENGTHS:
        given = inputs(op, length, grad=True)
        y = fast(*given)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(length))
        exact = [t.detach().double().requires_grad_() for t in given]
        expected = torch.autograd.grad(native(*exact), exact, dy.double())
        for got, wanted in zip(torch.autograd.grad(y, given, dy), expected, strict=True):
            assert_close(got, wanted, "f32", max(length, WIDTH))
        assert graphs() == 1, f"another graph for {length}"


@pytest.mark.parametrize("op", OPS)
def test_lengths_of_none_and_one_have_graphs_of_their_own(op: str) -> None:
    """And the others keep theirs."""
    ours, native, _ = OPS[op]
    fast = compiled(ours)
    made = []
    for length in (33, 1, 0, 100, 1, 0):
        given = inputs(op, length, grad=False)
        assert_close(fast(*given), native(*(t.double() for t in given)), "f32", WIDTH)
        made.append(graphs())
    assert made == [1, 2, 3, 3, 3, 3]
