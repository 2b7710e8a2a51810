"""How autograd follows generated kernels: what is computed and saved, who serves it, and what is refused.

Linear layers stand for all ops that have one output, attention for those that have several. On the CPU a kernel serves where it
is preferred, or where the fixture ``at_home`` lets it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import kpt
from kpt.ops import backends, flash_attention, linear_act, prefer
from kpt.ops.autograd import followed
from kpt.ops.linear_act import backward as linear_backward
from kpt.ops.registry import Gradient, get
from kpt_dsl import targets
from kpt_dsl.errors import KptError
from tests.ops.calls import served
from tests.ops.gradients import assert_all_close, gelu, gradients, in_float64, leaves, linear_leaves
from tests.tolerances import assert_close


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that are launched."""
    names: list[str] = []
    launch = backends.Launches.__call__

    def noting(self: backends.Launches, kernel: Any, *arguments: Any) -> None:
        names.append(kernel.name)
        launch(self, kernel, *arguments)

    monkeypatch.setattr(backends.Launches, "__call__", noting)
    return names


# ------------------------------------------------------------------ what is computed and saved
@pytest.mark.parametrize(
    ("needs", "activation", "kernels"),
    [
        ("xwb", "gelu", ["linear_act_bwd_dz_sums", "linear_act_bwd_dx", "linear_act_bwd_dw", "column_sums"]),
        ("xw", "gelu", ["linear_act_bwd_dz", "linear_act_bwd_dx", "linear_act_bwd_dw"]),
        ("x", "gelu", ["linear_act_bwd_dz", "linear_act_bwd_dx"]),
        ("w", "relu", ["linear_act_bwd_dz", "linear_act_bwd_dw"]),
        ("b", "silu", ["linear_act_bwd_dz_sums", "column_sums"]),
        ("x", "none", ["linear_act_bwd_dx"]),
        ("wb", "none", ["linear_act_bwd_dw", "partial_column_sums", "column_sums"]),
    ],
)
def test_only_what_is_needed_is_computed(needs: str, activation: str, kernels: list[str], launched: list[str]) -> None:
    given = linear_leaves()
    for t, letter in zip(given, "xwb", strict=True):
        t.requires_grad_(letter in needs)
    with prefer("numpy"):
        y = linear_act(*given, activation=activation)
    forward = "linear_act_fwd" if activation in ("none", "relu") else "linear_act_fwd_saving"
    assert launched == [forward]
    y.square().sum().backward()
    assert launched[1:] == kernels
    for t, letter in zip(given, "xwb", strict=True):
        assert (t.grad is not None) == (letter in needs)


@pytest.mark.parametrize(
    ("features", "inner", "rows", "transposed", "own"),
    [
        (3072, 768, 16384, False, False),
        (3072, 768, 16384, True, False),
        (768, 3072, 25216, False, False),
        (3072, 768, 512, False, True),
        (2816, 1024, 16384, False, True),
        (4096, 4096, 4096, False, True),
        (4096, 1024, 8192, True, True),
    ],
)
def test_pytorch_sums_where_tiles_leave_a_gpu_idle(
    features: int, inner: int, rows: int, transposed: bool, own: bool
) -> None:
    """Of what is recorded for an H200, as a call there would launch it."""
    gradient = get("linear_act_backward").instances(
        {"M": rows, "N": features, "K": inner},
        "bf16",
        targets.get("nvidia-h200"),
        activation="gelu",
        transposed=transposed,
    )
    assert ("linear_act_bwd_dw" in {p.kernel.name for p in gradient}) == own


@pytest.mark.parametrize("transposed", [False, True])
def test_pytorchs_sums_are_the_gradient(transposed: bool, monkeypatch: pytest.MonkeyPatch, launched: list[str]) -> None:
    monkeypatch.setattr(linear_backward, "leaves_idle", lambda *_: True)
    x, weight, bias = linear_leaves()
    if transposed:
        weight = weight.detach().mT.contiguous().mT.requires_grad_()
    expected = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    wanted = torch.autograd.grad(gelu(*expected).square().sum(), expected)
    with prefer("numpy"):
        found = torch.autograd.grad(linear_act(x, weight, bias, activation="gelu").square().sum(), (x, weight, bias))
    assert "linear_act_bwd_dw" not in launched
    assert found[1].stride() == weight.stride()
    assert_all_close(found, wanted)


@pytest.mark.parametrize(
    ("activation", "recompute", "frozen", "kept"),
    [
        ("gelu", False, "", {"x", "weight", "z"}),
        ("gelu", True, "", {"x", "weight", "bias"}),
        ("gelu", True, "weight", {"x", "weight", "bias"}),
        ("gelu", False, "weight", {"weight", "z"}),
        ("gelu", False, "x", {"x", "z"}),
        ("relu", True, "", {"x", "weight", "y"}),
        ("none", False, "", {"x", "weight"}),
        ("none", False, "weight", {"weight"}),
    ],
)
def test_only_what_the_gradients_take_is_saved(activation: str, recompute: bool, frozen: str, kept: set[str]) -> None:
    x, weight, bias = linear_leaves()
    if frozen:
        {"x": x, "weight": weight}[frozen].requires_grad_(False)
    with prefer("numpy"):
        y = linear_act(x, weight, bias, activation=activation, recompute=recompute)
    named = {x.data_ptr(): "x", weight.data_ptr(): "weight", bias.data_ptr(): "bias", y.data_ptr(): "y"}
    saved = y.grad_fn.saved_tensors  # type: ignore[union-attr]
    assert {named.get(t.data_ptr(), "z") for t in saved if t is not None} == kept


@pytest.mark.parametrize("backend", ["numpy", "triton", "pallas"])
def test_gradients_with_ugly_strides(backend: Any) -> None:
    """Those of a sum are one number seen through stride 0; those of a transpose lie across."""
    given = linear_leaves()
    weights = torch.randn(7, 5, 2, generator=torch.Generator().manual_seed(0))
    for loss in (lambda y: y.sum(), lambda y: (y.permute(2, 1, 0) * weights.to(y.dtype)).sum()):
        expected = [t.detach().double().requires_grad_() for t in given]
        wanted = torch.autograd.grad(loss(gelu(*expected)), expected)
        with prefer(backend):
            assert_all_close(torch.autograd.grad(loss(gelu(*given)), given), wanted)


@pytest.mark.parametrize("used", ["o", "lse", "both"])
def test_outputs_that_nothing_depends_on(used: str) -> None:
    given = leaves((1, 4, 5, 16), (1, 2, 7, 16), (1, 2, 7, 16))

    def loss(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        o, lse = flash_attention(q, k, v, causal=True, return_lse=True)
        return {"o": o, "lse": lse[..., None], "both": o + lse[..., None]}[used]

    expected = [t.detach().double().requires_grad_() for t in given]
    wanted = torch.autograd.grad(loss(*expected).square().sum(), expected, allow_unused=True)
    with prefer("numpy"):
        got = torch.autograd.grad(loss(*given).square().sum(), given, allow_unused=True)
    for g, w in zip(got, wanted, strict=True):
        assert_close(torch.zeros(()) if g is None else g, torch.zeros_like(g) if w is None else w, "f32", 100)


def test_what_a_gradient_is_told() -> None:
    """An op with a list of outputs that are views, and something to remember: what arrives is what its record promises."""
    told: list[Any] = []

    def forward(dispatch: Callable[..., Any], needed: tuple[bool, ...], *given: Any) -> Any:
        told.append((needed, given[1:]))
        return dispatch(*given), (given[0], 3, None, "name")

    def backward(saved: tuple[Any, ...], needed: tuple[bool, ...], *arriving: Any) -> list[torch.Tensor]:
        told.append((needed, saved[1:], arriving[1]))
        return [arriving[0].reshape(-1)]

    def dispatch(x: torch.Tensor, *_: Any) -> list[torch.Tensor]:
        return [x.clone().view(2, 3), x.clone()]

    op = replace(get("layer_norm"), gradient=Gradient(("input", "weight"), forward, backward))
    (x,) = leaves((6,))
    first, second = followed(op, dispatch)(x, (6,), None, None, 1e-5)
    assert not first._is_view()
    first.mul_(2).sum().backward()
    assert torch.equal(x.grad, torch.full((6,), 2.0))  # type: ignore[arg-type]
    assert second.requires_grad
    assert told == [((True, False), ((6,), None, None, 1e-5)), ((True, False), (3, None, "name"), None)]


def test_the_backward_in_float64_is_the_derivative_of_the_forward() -> None:
    """Against finite differences: the function that autograd sees, on PyTorch's implementations of both passes."""
    given = linear_leaves(torch.float64)
    for activation in ("none", "relu", "gelu", "gelu_tanh", "silu"):
        for recompute in (False, True):
            call = followed(get("linear_act"), get("linear_act").reference)
            torch.autograd.gradcheck(lambda *t, a=activation, r=recompute, f=call: f(*t, a, r), given, fast_mode=True)


# ------------------------------------------------------------------ what autograd does with any function
def test_gradients_accumulate_and_hooks_see_them() -> None:
    given, seen = linear_leaves(), []
    wanted = in_float64(gelu, given)
    with prefer("numpy"):
        y = gelu(*given)
    given[0].register_hook(lambda g: seen.append("input"))
    y.register_hook(lambda g: seen.append("output"))
    y.grad_fn.register_hook(lambda *_: seen.append("node"))  # type: ignore[union-attr]
    loss = y.square().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert seen == ["output", "node", "input"] * 2
    for t, w in zip(given, wanted, strict=True):
        assert_close(t.grad, 2 * w, "f32", 100)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed(use_reentrant: bool, launched: list[str]) -> None:
    given, again = linear_leaves(), linear_leaves()
    with prefer("numpy"):
        checkpoint(gelu, *given, use_reentrant=use_reentrant).sum().backward()
        assert sum(name.startswith("linear_act_fwd") for name in launched) == 2
        gelu(*again).sum().backward()
    for t, other in zip(given, again, strict=True):
        assert torch.equal(t.grad, other.grad)  # type: ignore[arg-type]


def test_what_is_modified_in_place_is_noticed() -> None:
    for activation, which in (("gelu", "x"), ("gelu", "weight"), ("relu", "y")):
        x, weight, bias = linear_leaves()
        with prefer("numpy"):
            y = linear_act(x, weight, bias, activation=activation)
        with torch.no_grad():
            {"x": x, "weight": weight, "y": y}[which].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_outputs_may_be_modified_in_place() -> None:
    """As PyTorch's own may, where the gradient does not take them: outputs are no views of what a kernel wrote."""
    given = linear_leaves()
    with prefer("numpy"):
        got = gradients(lambda *t: gelu(*t).mul_(2).add_(t[0].sum()), given)
    assert_all_close(got, in_float64(lambda *t: gelu(*t) * 2 + t[0].sum(), given))
    q = leaves((2, 5, 4, 16))[0].transpose(1, 2)
    with prefer("numpy"):
        o, lse = flash_attention(q, q, q, return_lse=True)
    assert not o._is_view()
    assert not lse._is_view()


def test_the_same_bits_every_time() -> None:
    given = leaves((300, 40), (70, 40), (70,))
    with prefer("triton"):
        first, second = (gradients(gelu, given) for _ in range(2))
    assert all(map(torch.equal, first, second))


# ------------------------------------------------------------------ twice
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
def test_a_second_derivative_is_refused(activation: str, recompute: bool, frozen: bool) -> None:
    x, weight, bias = linear_leaves()
    if frozen:
        weight, bias = weight.detach(), bias.detach()
    with prefer("numpy"):
        y = linear_act(x, weight, bias, activation=activation, recompute=recompute)
    (plain,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert torch.equal(gradient, plain)
    assert gradient.requires_grad
    with pytest.raises(KptError, match=r"linear_act: .*double backward is not offered.*prefer\(\"reference\"\)"):
        torch.autograd.grad(gradient.sum(), x, retain_graph=True)
    with pytest.raises(KptError, match="double backward"):
        (gradient.square().sum() + x.sum()).backward()  # a gradient penalty


def test_the_reference_has_a_second_derivative() -> None:
    x, weight, bias = linear_leaves(torch.float64)
    with prefer("reference"):
        torch.autograd.gradgradcheck(lambda t: gelu(t, weight, bias), x, fast_mode=True)


def test_a_gradient_that_depends_on_nothing_is_a_constant() -> None:
    x, weight, _ = linear_leaves()
    with prefer("numpy"):
        (gradient,) = torch.autograd.grad(linear_act(x, weight.detach()).sum(), x, create_graph=True)
    assert not gradient.requires_grad


# ------------------------------------------------------------------ who serves
def test_the_preference_of_the_forward_holds_in_the_backward() -> None:
    given = linear_leaves()
    with prefer("numpy"):
        y = gelu(*given)
    before = served("linear_act_backward")
    with prefer("triton"):
        y.sum().backward()
        assert kpt.ops.explain("linear_act", given[0], given[1]).implementation == "triton"
    assert served("linear_act_backward") == before | {"numpy": before.get("numpy", 0) + 1}


@pytest.mark.usefixtures("at_home")
def test_a_preference_at_the_backward_changes_nothing() -> None:
    given = linear_leaves()
    y = gelu(*given)
    before = served("linear_act_backward").get("numpy", 0)
    with prefer("reference"):
        y.sum().backward()
    assert served("linear_act_backward")["numpy"] == before + 1
    assert kpt.ops.explain("linear_act", *given).implementation == "reference"  # of the table, which no test changes


@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize("broken", ["linear_act_fwd_saving", "linear_act_bwd_dw"])
def test_a_kernel_that_fails_falls_back(
    broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    launch = backends.Launches.__call__

    def failing(self: backends.Launches, kernel: Any, *arguments: Any) -> None:
        if kernel.name == broken:
            raise kpt.CompileError("out of shared memory")
        launch(self, kernel, *arguments)

    monkeypatch.setattr(backends.Launches, "__call__", failing)
    given = linear_leaves()
    wanted = in_float64(gelu, given)
    for _ in range(2):
        assert_all_close(gradients(gelu, given), wanted)
    op = "linear_act_saving" if "saving" in broken else "linear_act_backward"
    (said,) = (r.getMessage() for r in caplog.records if "shared memory" in r.getMessage())
    assert said == f"{op} falls back to PyTorch: numpy: CompileError: out of shared memory"


@pytest.mark.usefixtures("at_home")
def test_what_the_kernels_do_not_serve_pytorch_differentiates() -> None:
    x, weight, bias = leaves((0, 9), (7, 9), (7,))
    gelu(x, weight, bias).sum().backward()
    assert x.grad is not None
    assert torch.equal(weight.grad, torch.zeros_like(weight))  # type: ignore[arg-type]
    given = linear_leaves(torch.float64)
    assert all(map(torch.equal, gradients(gelu, given), gradients(lambda x, w, b: F.gelu(F.linear(x, w, b)), given)))
