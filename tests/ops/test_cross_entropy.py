"""Cross-entropy against PyTorch's in float64: shapes, reductions, ignored rows, impossible classes, gradients, compiled.

The kernels' own numbers are held against float64 in ``tests/generated``.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import kpt
import kpt_dsl as kd
from kpt.ops import cross_entropy
from kpt.ops.cross_entropy.backward_kernels import cross_entropy_bwd
from kpt.ops.cross_entropy.kernels import cross_entropy_fwd
from kpt.ops.registry import get
from kpt_dsl.errors import IndexRangeError
from tests.ops.calls import served
from tests.tolerances import assert_close

BACKENDS = ("reference", "numpy", "triton", "pallas")
OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum", "label_smoothing": 0.1},
    {"reduction": "none", "z_loss": 0.3},
    {"label_smoothing": 1.0, "z_loss": 0.01},
    {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 0.7},
]
SHAPES = [(1, 1), (37, 37), (3, 760), (199, 5), (9,), (2, 5, 3), (1, 4, 2, 3)]
"""Of logits; the classes of the last two lie side by side."""


def logits(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    memory = (*shape[:1], *shape[2:], shape[1]) if len(shape) > 2 else shape
    x = torch.randn(memory, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)
    return x.movedim(-1, 1) if len(shape) > 2 else x


def targets(x: torch.Tensor, ignored: int = 3) -> torch.Tensor:
    """Classes, every so many of them -100."""
    shape = (*x.shape[:1], *x.shape[2:]) if x.ndim > 1 else ()
    t = torch.randint(x.shape[min(1, x.ndim - 1)], shape, generator=torch.Generator().manual_seed(3))
    if t.numel() > 1:
        t.view(-1)[1::ignored] = -100
    return t


def exactly(
    x: torch.Tensor, target: torch.Tensor, reduction: str = "mean", label_smoothing: float = 0.0, z_loss: float = 0.0,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The loss and the log-sum-exps as they are defined, in the type of x."""
    if softcap is not None:
        x = softcap * (x / softcap).tanh()
    kept = target != -100
    loss = F.cross_entropy(x, target, reduction="none", label_smoothing=label_smoothing)
    lse = x.logsumexp(min(1, x.ndim - 1))
    loss = torch.where(kept, loss + z_loss * lse**2, 0.0)
    if reduction == "none":
        return loss, lse
    return loss.sum() / (kept.sum() if reduction == "mean" else 1), lse


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_losses_and_gradients(options: dict[str, Any], backend: Any) -> None:
    slow = backend in ("triton", "pallas")  # interpreters, which see one or two shapes with each of the options
    for shape in SHAPES[OPTIONS.index(options) :: len(OPTIONS)] if slow else SHAPES:
        x = logits(*shape).requires_grad_()
        wide = x.detach().double().requires_grad_()
        target = targets(x)
        with kpt.ops.prefer(backend):
            got = cross_entropy(x, target.int(), return_lse=True, **options)
            alone = cross_entropy(x, target, **options)
        wanted = exactly(wide, target, **options)
        assert torch.equal(alone, got[0])
        slopes = [torch.randn(t.shape, generator=torch.Generator().manual_seed(5)) for t in got]
        for some in (slice(0, 1), slice(1, 2), slice(0, 2)):  # of the loss, of lse, of both
            (g,) = torch.autograd.grad(got[some], x, slopes[some], retain_graph=True)
            wide_slopes = [s.double() for s in slopes[some]]
            (w,) = torch.autograd.grad(wanted[some], wide, wide_slopes, retain_graph=True)
            assert_close(g, w, "f32", 760, scale=max(1.0, float(w.abs().max())))
        for g, w in zip(got, wanted, strict=True):
            assert g.dtype == torch.float32
            assert_close(g.detach(), w.detach(), "f32", 760, scale=10.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mean_of_nothing_is_not_a_number_and_moves_nothing(backend: Any) -> None:
    x = logits(3, 5).requires_grad_()
    with kpt.ops.prefer(backend):
        loss = cross_entropy(x, torch.full((3,), 4), ignore_index=4, label_smoothing=0.1, z_loss=0.1)
    loss.backward()
    assert loss.isnan()
    assert torch.equal(x.grad, torch.zeros(3, 5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_that_are_not_finite(backend: Any) -> None:
    """Impossible classes are as if they were not there; NaN and infinity make a row's loss NaN."""
    x = logits(7, 300)
    x[0, :200], x[1, 100:], x[2, :-1] = -torch.inf, -torch.inf, -torch.inf
    x[3], x[4, 250], x[5, 3] = -torch.inf, torch.nan, torch.inf
    x.requires_grad_()
    target = torch.tensor([250, 50, 299, 3, 4, 5, 6])
    with kpt.ops.prefer(backend):
        loss = cross_entropy(x, target, reduction="none")
    native = F.cross_entropy(x, target, reduction="none")
    assert_close(loss.detach(), native.detach(), "f32", 300)
    assert loss[2] == 0
    found, wanted = (torch.autograd.grad(t[:3].sum(), x)[0][:3] for t in (loss, native))
    assert_close(found, wanted, "f32", 300)
    with kpt.ops.prefer(backend):
        smooth = cross_entropy(x, target, reduction="none", label_smoothing=0.1)
    native = F.cross_entropy(x, target, reduction="none", label_smoothing=0.1)
    assert_close(smooth.detach(), native.detach(), "f32", 300)


@pytest.mark.parametrize("backend", ["numpy", "triton"])
@pytest.mark.parametrize("wrong", [5, -1, 2**40])
def test_a_target_that_is_no_class_is_an_error(backend: Any, wrong: int) -> None:
    x, target = logits(3, 5), torch.tensor([0, wrong, 1])
    with kpt.ops.prefer(backend), pytest.raises(IndexRangeError, match="cross_entropy_fwd indexes"):
        cross_entropy(x, target)
    with pytest.raises(IndexError, match="out of bounds"):
        cross_entropy(x, target)


def test_what_pytorch_has_and_kernels_do_not() -> None:
    x = logits(6, 5)
    weight, probabilities, channels = torch.rand(5), torch.rand(6, 5).softmax(1), torch.randn(2, 5, 3)
    target = targets(x)
    for options in ({}, {"reduction": "sum", "label_smoothing": 0.1}, {"reduction": "none"}):
        for given in ((x, target, weight), (x, probabilities), (x, probabilities, weight), (channels, targets(channels))):
            assert torch.equal(cross_entropy(*given, **options), F.cross_entropy(*given, **options))
    kept = (target != -100).sum()
    lse = torch.where(target != -100, x.logsumexp(1), 0.0)
    weighted = F.cross_entropy(x, target, weight) + 0.1 * lse.square().sum() / kept
    assert_close(cross_entropy(x, target, weight, z_loss=0.1), weighted, "f32", 5)


@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_half_precision_is_not_rounded_to_before_the_gradient(backend: Any) -> None:
    x = (logits(37, 199) * 5).bfloat16().requires_grad_()
    wide, target = x.detach().double().requires_grad_(), targets(x)
    with kpt.ops.prefer(backend):
        loss = cross_entropy(x, target)
    assert loss.dtype == torch.float32
    assert_close(loss.detach(), exactly(wide, target)[0].detach(), "f32", 199)
    loss.backward()
    (wanted,) = torch.autograd.grad(exactly(wide, target)[0], wide)
    off = x.grad != wanted.to(torch.bfloat16)
    assert off.sum() <= 2  # where float32 and float64 round to two sides of a tie


def test_gradients_against_finite_differences() -> None:
    x = logits(4, 5).double().requires_grad_()
    target = targets(x)
    for options in OPTIONS:
        torch.autograd.gradcheck(lambda x, o=options: cross_entropy(x, target, **o, return_lse=True), (x,), fast_mode=True)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_one_graph_serves_all_lengths(backend: str) -> None:
    def loss(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return cross_entropy(x * 2, target, label_smoothing=0.1, z_loss=1e-3)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=backend)
    with kpt.ops.prefer("numpy"):
        for rows in (7, 37, 199):
            x = logits(rows, 24).requires_grad_()
            target = targets(x)
            found, wanted = (torch.autograd.grad(f(x, target), x)[0] for f in (compiled, loss))
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_autocast_does_what_it_does_to_pytorchs(backend: Any) -> None:
    """Which casts logits to float32 and gives that; kernels read them as they are, and give the same."""
    x = logits(37, 199).bfloat16().requires_grad_()
    target = targets(x)
    with torch.autocast("cpu", dtype=torch.bfloat16), kpt.ops.prefer(backend):
        loss = cross_entropy(x, target)
    native = F.cross_entropy(x.float(), target)
    assert loss.dtype == native.dtype
    assert_close(loss.detach(), native.detach(), "f32", 199)
    found, wanted = (torch.autograd.grad(t, x)[0] for t in (loss, native))
    assert found.dtype == torch.bfloat16
    assert_close(found, wanted, "bf16")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_gradients_op_by_pytorchs_operations(options: dict[str, Any]) -> None:
    options = {name: value for name, value in options.items() if name != "reduction"}
    x = logits(7, 24).double().requires_grad_()
    target, dloss = targets(x), logits(7).double()
    loss, lse = exactly(x, target, "none", **options)
    found = get("cross_entropy_backward").public(dloss, x.detach(), target, lse.detach(), **options)
    assert_close(found, torch.autograd.grad(loss, x, dloss)[0], "f32", 24)


def test_the_gradient_is_served_as_the_loss_was() -> None:
    x = logits(3, 5).requires_grad_()
    before = served("cross_entropy_backward").get("numpy", 0)
    with kpt.ops.prefer("numpy"):
        loss = cross_entropy(x, targets(x))
    loss.backward()
    assert served("cross_entropy_backward")["numpy"] == before + 1


def test_a_loss_that_is_nearly_nothing_does_not_cancel() -> None:
    """Of large logits, where their log-sum-exp minus the target's leaves roundings of the former."""
    x = torch.full((5, 17), 100.0)
    x[:, 3] += torch.linspace(9.0, 11.0, 5)
    target = torch.full((5,), 3)
    with kpt.ops.prefer("numpy"):
        found = cross_entropy(x, target, reduction="none")
    exact = F.cross_entropy(x.double(), target, reduction="none")
    assert isinstance(found, torch.Tensor)
    assert (found.double() - exact).abs().max() < 5e-7


@pytest.mark.parametrize("target", ["nvidia-h200", "tpu-v6e", "cpu"])
@pytest.mark.parametrize("kernel", [cross_entropy_fwd, cross_entropy_bwd])
def test_without_a_cap_kernels_have_no_trace_of_it(kernel: kd.Kernel, target: str) -> None:
    dtypes = {name: "i32" if name == "target" else "bf16" if name in ("x", "dx") else "f32" for name in kernel.tensors}
    plain, capped = (kd.source(kernel, target, dtypes=dtypes, softcap=cap) for cap in (None, 1.0))
    for word in ("softcap", "tanh"):
        assert word not in plain
        assert word in capped
