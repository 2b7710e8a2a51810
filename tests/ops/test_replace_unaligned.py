"""Linear layers whose rows begin at no multiples of 16 bytes: products by kpt, and their gradients."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import kpt
from kpt.ops import counters, prefer
from kpt.ops.linear_act import alignment
from kpt.ops.replace import linear as replaced
from tests.ops.gradients import leaves
from tests.ops.test_replace_linears import BACKENDS, SERVED_BY_PYTORCH, F, gradients, sums
from tests.tolerances import assert_close


def products(op: str = "linear_act") -> int:
    """Calls of the op that were served by kernels so far."""
    return sum(n for who, n in counters()[op]["served"].items() if who != "reference")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(5, 9), (2, 5, 9), (37, 9), (1, 9)])
@pytest.mark.parametrize("dtype", replaced.HALVES)
@pytest.mark.parametrize("bias", [True, False])
def test_products_and_their_gradients(shape: tuple[int, ...], bias: bool, dtype: torch.dtype, backend: Any) -> None:
    given = leaves(shape, (7, 9), (7,), dtype=dtype)[: 2 + bias]
    before = products(), sums()
    with prefer(backend):
        y = replaced.unaligned_linear(*given)
        got = torch.autograd.grad(y.float().square().sum(), given)
        with torch.no_grad():
            again = replaced.unaligned_linear(*given)
    assert (products(), sums()) == (before[0] + 2, before[1] + 1)
    assert y.is_contiguous() and torch.equal(y, again)
    wide = tuple(t.detach().double().requires_grad_() for t in given)
    exact = F.linear(*wide)
    name = "bf16" if dtype is torch.bfloat16 else "f16"
    assert_close(y.detach(), exact.detach(), name, 9)
    for found, wanted in zip(got, torch.autograd.grad(exact.square().sum(), wide), strict=True):
        assert found.dtype is dtype
        assert_close(found, wanted, name, 9 * 37)


SUMS_ALONE = {"no bias", "a bias without gradient", "strides that are none of a matrix"}


@pytest.mark.parametrize("case", [case for case in SERVED_BY_PYTORCH if case not in SUMS_ALONE])
def test_products_that_are_pytorchs_stay_so(case: str) -> None:
    found, expected, before = [], [], products()
    for linear, grads in ((replaced.unaligned_linear, found), (F.linear, expected)):
        given = leaves((5, 9), (7, 9), (7,), dtype=torch.bfloat16)
        with prefer("numpy"):
            try:
                y = SERVED_BY_PYTORCH[case](linear, *given)
            except RuntimeError as error:  # complex numbers of half precision, say
                grads.append(str(error))
            else:
                y.square().sum().backward()
                grads += [y.detach(), *[t.grad for t in given]]
    assert products() == before
    for got, wanted in zip(found, expected, strict=True):
        assert got is wanted is None or got == wanted if isinstance(got, str) else got is wanted or torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_types_have_pytorchs_product(dtype: torch.dtype) -> None:
    given, before = leaves((5, 9), (7, 9), (7,), dtype=dtype), products()
    with prefer("numpy"):
        assert torch.equal(replaced.unaligned_linear(*given), F.linear(*given))
    assert products() == before


def test_products_under_autocast() -> None:
    given, before = leaves((5, 9), (7, 9), (7,)), products()
    with prefer("numpy"), torch.autocast("cpu", torch.bfloat16):
        y = replaced.unaligned_linear(*given)
        got = torch.autograd.grad(y.float().square().sum(), given)
        own = F.linear(*given)
    assert products() == before + 1
    assert y.dtype is own.dtype
    for found, expected in zip(got, torch.autograd.grad(own.float().square().sum(), given), strict=True):
        assert found.dtype is expected.dtype
        assert_close(found, expected, "bf16", 10)


def test_mixed_types_are_refused_in_pytorchs_words() -> None:
    x, w, b = leaves((5, 9), (7, 9), (7,))
    for given in ((x.half(), w, b), (x.half(), w.half(), b), (x.bfloat16(), w.half(), None)):
        with prefer("numpy"), pytest.raises(RuntimeError, match="type"):
            replaced.unaligned_linear(*given)


def test_gradients_are_made_by_what_was_preferred_for_the_product() -> None:
    given, before = leaves((5, 9), (7, 9), (7,), dtype=torch.bfloat16), sums()
    with prefer("numpy"):
        y = replaced.unaligned_linear(*given)
    torch.autograd.grad(y.float().square().sum(), given)
    assert sums() == before + 1


def test_products_are_differentiated_again() -> None:
    given = leaves((5, 9), (7, 9), (7,), dtype=torch.bfloat16)
    found = []
    for linear in (replaced.unaligned_linear, F.linear):
        with prefer("numpy"):
            once = torch.autograd.grad(linear(*given).float().pow(3).sum(), given, create_graph=True)
            found.append(torch.autograd.grad(sum(g.float().sum() for g in once), given))
    for got, wanted in zip(*found, strict=True):
        assert_close(got, wanted, "bf16", 100, scale=float(wanted.abs().max()))


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2)])
def test_only_gradients_that_are_wanted(frozen: tuple[int, ...]) -> None:
    given = leaves((5, 9), (7, 9), (7,), dtype=torch.bfloat16)
    for i in frozen:
        given[i].requires_grad_(False)
    wanted = [t for t in given if t.requires_grad]
    with prefer("numpy"):
        got = torch.autograd.grad(replaced.unaligned_linear(*given).float().square().sum(), wanted)
    for found, expected in zip(got, torch.autograd.grad(F.linear(*given).float().square().sum(), wanted), strict=True):
        assert_close(found, expected, "bf16", 10)


def test_products_in_strides_of_others_and_modified_in_place() -> None:
    x, w, b = leaves((9, 2, 5), (14, 9), (7,), dtype=torch.bfloat16)
    for linear, grads in ((replaced.unaligned_linear, found := []), (F.linear, expected := [])):
        with prefer("numpy"):
            y = linear(x.permute(2, 1, 0), w[::2], b).mul_(2)
        grads += [y.detach(), *torch.autograd.grad(y.float().square().sum(), (x, w, b))]
    for got, wanted in zip(found, expected, strict=True):
        assert got.shape == wanted.shape
        assert_close(got, wanted, "bf16", 10)


def test_short_products_with_gradients_are_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: copies for their gradients would take longer than they gain."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    given = leaves((16, 8), (1001, 8), (1001,), dtype=torch.bfloat16)

    def asked() -> list[int]:
        return [counters()[name]["served"].get("reference", 0) for name in ("linear_act", "linear_act_backward")]

    before = asked()
    for short, long, more in ((1 << 30, 1 << 30, (0, 0)), (1, 1 << 30, (1, 0)), (1, 1, (3, 1))):
        monkeypatch.setattr(alignment, "SHORT", short)
        monkeypatch.setattr(alignment, "LONG", long)
        monkeypatch.setattr(alignment, "WIDE", 8)
        gradients(replaced.unaligned_linear, given)
        with torch.no_grad():
            replaced.unaligned_linear(*given)
        assert asked() == [n + m for n, m in zip(before, more, strict=True)]


def test_layers_with_odd_numbers_of_features() -> None:
    layers = {
        "classes": nn.Linear(16, 9, bias=False), "features": nn.Linear(9, 16), "level": nn.Linear(16, 24, bias=False),
        "both even": nn.Linear(10, 10, bias=False),
        "one": nn.Linear(16, 1, bias=False), "frozen": nn.Linear(16, 10).requires_grad_(False),
        "pair": nn.Sequential(nn.Linear(16, 9), nn.GELU()), "lazy": nn.LazyLinear(9), "biased": nn.Linear(16, 4),
    }  # fmt: skip
    model = nn.ModuleDict(layers)
    report = kpt.optimize(model)
    changed = {c.path: c.kind for c in report.changes if c.kind != "linear_act"}
    unaligned = dict.fromkeys(("classes", "features", "frozen"), "unaligned_linear")
    assert changed == unaligned | {"biased": "bias_gradient"}
    assert "Linear -> KptUnalignedLinear  kpt.ops.linear_act " in str(report)
    assert "stays PyTorch's: products in float32, and short ones" in str(report)
    again = copy.deepcopy(model)
    for module in (model, again):
        kpt.restore_modules(module)
        assert not [m for m in module.modules() if "Kpt" in type(m).__name__]
    changes = kpt.replace_modules(model, only=["unaligned_linear"]).changes
    assert [(c.path, c.kind) for c in changes] == [(path, "unaligned_linear") for path in (*unaligned, "pair.0")]


def test_a_layer_with_odd_features_runs_so() -> None:
    layer, x = nn.Linear(16, 9).bfloat16(), torch.randn(3, 16).bfloat16()
    own = copy.deepcopy(layer)
    kpt.optimize(layer)
    before = products()
    with prefer("numpy"):
        layer(x).float().square().sum().backward()
    own(x).float().square().sum().backward()
    assert products() == before + 1
    for found, wanted in zip(layer.parameters(), own.parameters(), strict=True):
        assert_close(found.grad, wanted.grad, "bf16", 16)
