"""Gated MLPs whose product of gate and up is made anew in the backward: as ``loss=True`` has it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

import kpt
from kpt.ops import gated_act
from kpt.ops.replace.anew import fed_anew
from tests.ops.test_replace_gates import MLP, Joined, X

ACTIVATION = "silu"


class Watched(nn.Module):
    """A layer that knows whether what it was given is still held."""

    def __init__(self, layer: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer, self.given = layer, list[StorageWeakRef]()

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        self.given.append(StorageWeakRef(y.untyped_storage()))
        return self.layer(y)

    @property
    def held(self) -> bool:
        return not self.given[-1].expired()


def leaves() -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.randn(2, 3, 5, 12, generator=torch.Generator().manual_seed(20))
    return drawn[0].clone().requires_grad_(), drawn[1].clone().requires_grad_()


def layer() -> nn.Linear:
    torch.manual_seed(21)
    return nn.Linear(12, 8)


def gradients(of: Callable[[torch.Tensor, torch.Tensor, nn.Linear], torch.Tensor]) -> list[torch.Tensor]:
    gate, up = leaves()
    given = layer()
    of(gate, up, given).square().sum().backward()
    found = [t.grad for t in (gate, up, given.weight, given.bias)]
    assert all(t is not None for t in found)
    return [t for t in found if t is not None]


def kept(gate: torch.Tensor, up: torch.Tensor, given: Any) -> Any:
    return given(gated_act(gate, up, ACTIVATION))


def anew(gate: torch.Tensor, up: torch.Tensor, given: Any) -> Any:
    return fed_anew(given, gate, up, ACTIVATION)


def test_gradients_are_the_same_to_the_last_bit_and_the_product_is_not_held() -> None:
    for expected, got in zip(gradients(kept), gradients(anew), strict=True):
        assert torch.equal(expected, got)
    for way, held in ((kept, True), (anew, False)):
        watched = Watched(layer())
        y = way(*leaves(), watched)
        assert watched.held is held
        y.sum().backward()
        assert not watched.held


def test_second_derivatives() -> None:
    found = []
    for way in (kept, anew):
        gate, up = leaves()
        given = layer()
        (first,) = torch.autograd.grad(way(gate, up, given).square().sum(), [given.weight], create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [gate, up, given.weight]))
    for expected, got in zip(*found, strict=True):
        assert torch.equal(expected, got)


def test_what_a_layer_writes_into_is_kept() -> None:
    def doubled(gate: torch.Tensor, up: torch.Tensor, given: nn.Linear, way: Any) -> torch.Tensor:
        result: torch.Tensor = way(gate, up, lambda y: given(y.mul_(2.0)))
        return result

    expected, got = (gradients(lambda g, u, layer, way=way: doubled(g, u, layer, way)) for way in (kept, anew))  # type: ignore[misc]
    for one, other in zip(expected, got, strict=True):
        assert torch.equal(one, other)


def test_what_was_changed_in_place_meanwhile_raises_as_ever() -> None:
    gate, up = leaves()
    shifted = gate + 1
    y = fed_anew(layer(), shifted, up, ACTIVATION)
    with torch.no_grad():
        shifted.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("way", ["frozen", "no_grad", "checkpoint", "hooks", "func"])
def test_where_others_decide_it_is_kept(way: str) -> None:
    gate, up = leaves()
    watched = Watched(layer())
    match way:
        case "frozen":
            y = fed_anew(watched, gate.detach(), up, ACTIVATION)
            assert watched.held
            y.sum().backward()
        case "no_grad":
            with torch.no_grad():
                assert not fed_anew(watched, gate, up, ACTIVATION).requires_grad
        case "checkpoint":
            y = checkpoint(lambda *given: fed_anew(watched, *given, ACTIVATION), gate, up, use_reentrant=False)
            assert not watched.held, "checkpointing holds nothing at all"
            y.sum().backward()
            assert len(watched.given) == 2
        case "hooks":
            with torch.autograd.graph.save_on_cpu():
                y = fed_anew(watched, gate, up, ACTIVATION)
            y.sum().backward()
        case "func":
            torch.func.grad(lambda g: fed_anew(layer(), g, up, ACTIVATION).sum())(gate)
    if way not in ("no_grad", "func"):
        given = layer()
        expected = torch.autograd.grad(kept(gate, up, given).sum(), [up])
        assert up.grad is not None
        assert torch.equal(up.grad, expected[0])


@pytest.mark.parametrize("build", [MLP, Joined])
def test_optimize_has_it_where_logits_are_not_held(build: Callable[[], Any]) -> None:
    found = []
    for loss in (False, True):
        subject = build()
        kpt.optimize(subject, loss=loss)
        down = "down_proj" if build is MLP else "down"
        watched = Watched(getattr(subject, down))
        setattr(subject, down, watched)
        x = X.clone().requires_grad_()
        y = subject(x)
        assert watched.held is not loss
        y.square().sum().backward()
        found.append([x.grad, *(p.grad for p in subject.parameters())])
        kpt.restore_modules(subject)
    for expected, got in zip(*found, strict=True):
        assert torch.equal(expected, got)


def test_a_compiled_model_is_one_graph() -> None:
    subject = MLP()
    expected = copy.deepcopy(subject)
    kpt.optimize(subject, loss=True)
    torch.compile(subject, backend="aot_eager", fullgraph=True)(X).sum().backward()
    expected(X).sum().backward()
    assert torch.allclose(subject.gate_proj.weight.grad, expected.gate_proj.weight.grad, atol=1e-6)
