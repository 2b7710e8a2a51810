"""Norms and gates become PyTorch's own operations in a graph that Inductor compiles, and stay operators in all others."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch._inductor.lowering
from functorch.compile import make_boxed_func
from torch import fx
from torch._dynamo.backends.common import aot_autograd

import kpt
from kpt.ops.registry import OPS
from kpt_dsl.errors import InputError
from tests.ops.calls import served
from tests.tolerances import assert_close

WIDTH = 24
WRITTEN = {"rms_norm", "layer_norm", "gated_act"}
Graphs = list[set[str]]

torch._inductor.decomposition.select_decomp_table()  # of which Inductor keeps a copy: somebody compiled before


def block(x: torch.Tensor, weight: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    y = x + kpt.ops.linear_act(kpt.ops.rms_norm(x, (WIDTH,), weight, 1e-6), matrix, None, activation="relu")
    return kpt.ops.gated_act(kpt.ops.layer_norm(y, (WIDTH,), weight), x, "silu")


def inputs(*batch: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(20)
    shapes = ((*batch, WIDTH), (WIDTH,), (WIDTH, WIDTH))
    return [torch.randn(*shape, generator=generator, requires_grad=True) for shape in shapes]


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels serve tensors of the CPU unasked: NumPy's."""
    for op in OPS.values():
        here = [i for i in op.implementations if i.name in ("numpy", "reference")]
        monkeypatch.setitem(op.__dict__, "implementations", tuple([replace(i, devices=None) for i in here]))


@pytest.fixture
def graphs() -> Iterator[Graphs]:
    """The ops of kpt's in what is compiled, forward and backward apart."""
    torch._dynamo.reset()
    yield []
    torch._dynamo.reset()


def compiled(function: Any, graphs: Graphs, written: bool = True) -> Any:
    """As Inductor would, or a backend that decomposes nothing."""

    def compiler(graph: fx.GraphModule, _: Any) -> Any:
        targets = [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]
        graphs.append({t.split(".")[1] for t in targets if t.startswith("kpt.")})
        return make_boxed_func(graph.forward)

    def backend(graph: fx.GraphModule, given: Any) -> Any:
        table = torch._inductor.decomposition.select_decomp_table() if written else {}
        return aot_autograd(fw_compiler=compiler, bw_compiler=compiler, decompositions=table)(graph, given)

    return torch.compile(function, backend=backend, fullgraph=True, dynamic=True)


def gradients(function: Any, given: list[torch.Tensor]) -> list[torch.Tensor]:
    out = function(*given)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), given)]


def test_inductor_writes_them(graphs: Graphs) -> None:
    with torch.no_grad():
        got, expected = (f(*inputs(2, 5)) for f in (compiled(block, graphs), block))
    assert graphs == [{"linear_act"}]
    assert_close(got, expected, "f32", WIDTH)


def test_inference_mode(graphs: Graphs) -> None:
    with torch.inference_mode():
        compiled(block, graphs)(*inputs(2, 5))
    assert graphs == [{"linear_act"}]


@pytest.mark.usefixtures("kernels")
def test_their_gradients_are_written_too(graphs: Graphs) -> None:
    written = compiled(block, graphs)
    for batch in ((2, 5), (3, 7)):
        exact = gradients(block, [t.detach().double().requires_grad_() for t in inputs(*batch)])
        for got, expected in zip(gradients(written, inputs(*batch)), exact, strict=True):
            assert_close(got, expected, "f32", WIDTH * batch[0] * batch[1])
    assert graphs == [{"linear_act"}, {"linear_act_backward"}]


@pytest.mark.usefixtures("kernels")
def test_other_backends_have_operators(graphs: Graphs) -> None:
    gradients(compiled(block, graphs, written=False), inputs(2, 5))
    assert graphs[0] == WRITTEN | {"linear_act"}
    assert graphs[1] == {"rms_norm_backward", "layer_norm_backward", "gated_act_backward", "linear_act_backward"}


def test_a_preference_keeps_operators(graphs: Graphs) -> None:
    with kpt.ops.prefer("numpy"):
        gradients(compiled(block, graphs), inputs(2, 5))
    assert graphs[0] == WRITTEN | {"linear_act"}


@pytest.mark.usefixtures("graphs")
def test_inductor_calls_what_a_preference_keeps() -> None:
    x = inputs(2, 5)[0].detach()
    alone = torch.compile(lambda x: kpt.ops.rms_norm(x, (WIDTH,)), fullgraph=True)
    before = served("rms_norm").get("numpy", 0)
    with kpt.ops.prefer("numpy"), torch._inductor.config.patch(force_disable_caches=True):
        assert_close(alone(x), kpt.ops.rms_norm(x, (WIDTH,)), "f32", WIDTH)
    assert served("rms_norm")["numpy"] == before + 2


def test_sums_with_their_norms_stay_kernels(graphs: Graphs) -> None:
    with torch.no_grad():
        compiled(lambda x, weight, _: kpt.ops.add_rms_norm(x, x, (WIDTH,), weight), graphs)(*inputs(2, 5))
    assert graphs == [{"add_rms_norm"}]


def test_bad_input_is_named_in_the_words_of_an_eager_call(graphs: Graphs) -> None:
    with pytest.raises((InputError, torch._dynamo.exc.TorchRuntimeError), match="a shape that ends with normalized_shape"):
        compiled(lambda x, *_: kpt.ops.rms_norm(x, (WIDTH + 1,)), graphs)(*inputs(2, 5))
    assert not graphs
