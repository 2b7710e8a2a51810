"""Tensors of torchax, by rules that kpt.jax gives the ops. ``make torch-xla`` runs this: torchax needs an older PyTorch."""

import sys
from typing import Any

import pytest
import torch

from kpt_dsl.errors import MissingPackageError
from tests.tolerances import assert_close

jax = pytest.importorskip("jax")

import kpt  # noqa: E402 (JAX is there)
import kpt.jax  # noqa: E402


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = torch.nn.LayerNorm(24), torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.GELU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.up(self.norm(x)).unflatten(-1, (5, 8)).swapaxes(0, 1)[None]
        return kpt.ops.flash_attention(q, q, q, causal=True)


@pytest.mark.parametrize("served", ["reference", "pallas"])
def test_a_replaced_model_is_differentiated_by_jax(served: Any) -> None:
    torchax = pytest.importorskip("torchax", reason="needs torchax: make torch-xla")
    torch.manual_seed(3)
    model, x = Net(), torch.randn(9, 24)
    exact = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    expected = (torch.func.functional_call(model.double(), exact, x.double()) ** 2).sum()
    expected.backward()
    kpt.jax.serve_torchax()
    with torchax.default_env(), kpt.jax.prefer(served):
        kpt.replace_modules(model.float().to("jax"))
        given, x = {name: p.detach() for name, p in model.named_parameters()}, x.to("jax")

        def loss(parameters: Any, x: Any) -> Any:
            return (torch.func.functional_call(model, parameters, x) ** 2).sum()

        value, slopes = torchax.interop.jax_jit(torchax.interop.jax_value_and_grad(loss))(given, x)
        program = str(jax.make_jaxpr(torchax.interop.jax_view(loss))(*torchax.interop.jax_view((given, x))))
    assert program.count("kpt_launch[") == (3 if served == "pallas" else 0)
    assert_close(value.torch(), expected.detach(), "f32", 9 * 40)
    for name, slope in slopes.items():
        assert_close(slope.torch(), exact[name].grad, "f32", 9 * 40)


def test_torchax_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchax.interop", None)
    kpt.jax.serve_torchax.cache_clear()
    with pytest.raises(MissingPackageError, match="needs the package torchax: pip install torchax"):
        kpt.jax.serve_torchax()
