"""``F.cross_entropy`` called by a module's own code: for that module it is kpt's, in all that PyTorch's takes."""

import copy
import inspect
import pickle
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.functional import cross_entropy as loss_of

import kpt
from benchmarks.nano_gpt import NanoGPT
from kpt.ops import counters, prefer
from kpt.ops.flash_attention.sdpa import scaled_dot_product_attention
from kpt.ops.replace.functions.cross_entropy import cross_entropy, why_not
from tests.ops.calls import served
from tests.tolerances import assert_close

CLASSES = 37
DRAWN = torch.Generator().manual_seed(14)
LOGITS = 3 * torch.randn(2, 9, CLASSES, generator=DRAWN)
TARGETS = torch.randint(CLASSES, (2, 9), generator=DRAWN)


class Model(nn.Module):
    """As nanoGPT ends, with its ``ignore_index``, and attention by the same name."""

    def forward(self, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen = F.scaled_dot_product_attention(x[None], x[None], x[None])[0]
        return F.cross_entropy((x + seen).view(-1, x.size(-1)), targets.view(-1), ignore_index=-1)


class ByTorch(nn.Module):
    def forward(self, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(x.flatten(0, 1), targets.flatten())


class ByName(nn.Module):
    def forward(self, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return loss_of(x.flatten(0, 1), targets.flatten(), reduction="sum")


class Other(nn.Module):
    """Calls another loss by the same module."""

    def forward(self, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.nll_loss(x.flatten(0, 1), targets.flatten())


@pytest.mark.parametrize("kind", [Model, ByTorch, ByName])
def test_a_modules_loss_and_its_gradient_are_kpts(kind: type[nn.Module]) -> None:
    model, targets = kind(), TARGETS.clone()
    targets[0, :3] = -1 if kind is Model else 5
    wanted = LOGITS.double().requires_grad_()
    model(wanted, targets).backward()
    report = kpt.replace_modules(model)
    assert ["cross_entropy" in c.kind for c in report.changes] == [True]
    before = sum(served("cross_entropy").values())
    given = LOGITS.clone().requires_grad_()
    with prefer("numpy"):
        loss = model(given, targets)
        loss.backward()
    assert sum(served("cross_entropy").values()) == before + 1
    assert_close(loss, kind()(LOGITS.double(), targets), "f32", CLASSES)
    assert given.grad is not None and wanted.grad is not None
    assert_close(given.grad, wanted.grad, "f32", CLASSES)


def meaning_of(name: str, module: nn.Module) -> Any:
    """Of a name in the code of a module that was replaced."""
    return inspect.getclosurevars(type(module).forward).nonlocals["made"].__globals__[name]


def test_of_two_functions_by_one_name_both_are_exchanged() -> None:
    model = Model()
    (change,) = kpt.replace_modules(model).changes
    assert change.kind == "scaled_dot_product_attention, cross_entropy"
    meant = meaning_of("F", model)
    assert meant.cross_entropy is cross_entropy
    assert meant.scaled_dot_product_attention is scaled_dot_product_attention
    assert meant.nll_loss is F.nll_loss
    assert_close(model(LOGITS, TARGETS), Model()(LOGITS.double(), TARGETS), "f32", CLASSES)
    other = Model()
    kpt.replace_modules(other, only=["cross_entropy"])
    assert meaning_of("F", other).scaled_dot_product_attention is F.scaled_dot_product_attention
    assert_close(other(LOGITS, TARGETS), Model()(LOGITS.double(), TARGETS), "f32", CLASSES)


def test_what_is_no_cross_entropy_stays() -> None:
    assert not kpt.replace_modules(Other()).changes


def test_it_is_undone_copied_and_pickled() -> None:
    model = ByTorch()
    kpt.replace_modules(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin) is type(model) is not ByTorch
        assert torch.equal(twin(LOGITS, TARGETS), model(LOGITS, TARGETS))
    kpt.restore_modules(model)
    assert type(model) is ByTorch


def test_nanogpt_keeps_its_logits_and_compiles() -> None:
    torch.manual_seed(0)
    model, tokens = NanoGPT(1, 2, 32, 9, CLASSES), TARGETS
    own = copy.deepcopy(model)
    assert "cross_entropy" in {c.kind for c in kpt.optimize(model).changes}
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for run in (model, compiled):
        for ours, theirs in zip(run(tokens, tokens), own(tokens, tokens), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert model(tokens)[1] is None


def test_a_compiled_program_has_pytorchs() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def kept(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = ByTorch()
    kpt.replace_modules(model)
    torch.compile(model, backend=kept, fullgraph=True)(LOGITS, TARGETS)
    assert F.cross_entropy in {node.target for graph in graphs for node in graph.graph.nodes}


class Smoothed(nn.CrossEntropyLoss):
    """PyTorch's code, by a class of somebody's own."""


@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, Smoothed])
@pytest.mark.parametrize(
    "options", [{}, {"ignore_index": 5, "reduction": "sum"}, {"label_smoothing": 0.1, "reduction": "none"}]
)
def test_a_loss_that_is_a_module(kind: Any, options: dict[str, Any]) -> None:
    own, loss = kind(**options), kind(**options)
    (change,) = kpt.replace_modules(loss).changes
    assert (change.path, change.kind) == ("(model)", "cross_entropy")
    assert isinstance(loss, kind)
    targets, given = TARGETS[0].clone(), LOGITS[0].clone().requires_grad_()
    targets[:3] = 5
    before = served("cross_entropy").get("numpy", 0)
    wide = LOGITS[0].double().requires_grad_()
    with prefer("numpy"):
        found, wanted = loss(given, targets), own(wide, targets)
        for each in (found, wanted):
            each.sum().backward()
    assert served("cross_entropy")["numpy"] == before + 1
    assert_close(found, wanted, "f32", CLASSES)
    assert given.grad is not None and wide.grad is not None
    assert_close(given.grad, wide.grad, "f32", CLASSES)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert type(twin) is type(loss)
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    assert_close(compiled(LOGITS[0], targets), wanted, "f32", CLASSES)
    kpt.restore_modules(loss)
    assert type(loss) is kind


def test_a_loss_that_weighs_classes_stays() -> None:
    (skipped,) = kpt.replace_modules(nn.CrossEntropyLoss(torch.ones(CLASSES))).skipped
    assert skipped.reason == "its classes have weights"


@pytest.mark.parametrize(
    ("dtype", "rows", "few"),
    [
        (torch.bfloat16, 2048, True),
        (torch.bfloat16, 4096, False),
        (torch.float32, 512, True),
        (torch.float32, 2048, False),
    ],
)
def test_few_logits_on_a_gpu_stay_pytorchs(dtype: torch.dtype, rows: int, few: bool) -> None:
    with FakeTensorMode():
        x = torch.empty(rows, 32000, device="cuda", dtype=dtype)
        reason = why_not(x, torch.empty(rows, device="cuda", dtype=torch.int64), None, -100, "mean", 0.0)
    assert (reason is not None and "logits are so few" in reason) == few


# ------------------------------------------------------------------ every way that PyTorch's is called
CASES: tuple[tuple[Any, Any, dict[str, Any]], ...] = (
    (LOGITS[0], TARGETS[0], {}),
    (LOGITS[0], TARGETS[0], {"reduction": "none", "label_smoothing": 0.1}),
    (LOGITS[0], TARGETS[0], {"reduction": "sum", "ignore_index": int(TARGETS[0, 0])}),
    (LOGITS[0], TARGETS[0], {"weight": torch.rand(CLASSES)}),
    (LOGITS[0], TARGETS[0], {"size_average": False}),
    (LOGITS[0], TARGETS[0], {"reduce": False}),
    (LOGITS[0], LOGITS[1].softmax(-1), {}),
    (LOGITS[0], torch.full((9,), -100), {}),
    (LOGITS[0, 0], TARGETS[0, 0], {}),
    (LOGITS.mT, TARGETS, {}),
    (LOGITS.mT.contiguous(), TARGETS, {"reduction": "none"}),
    (LOGITS[0, :0], TARGETS[0, :0], {"reduction": "sum"}),
    (LOGITS[0], TARGETS[0].to(torch.uint8), {}),
    (LOGITS[0], TARGETS[0], {"label_smoothing": torch.tensor(0.1), "ignore_index": torch.tensor(5)}),
)


TOLERANCES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16", torch.float64: "f32"}

KERNELS = (0, 1, 2, 7, 8, 9)
"""Which of them kernels serve, but for float64."""

EMPTY = 11
"""The one that goes to the op, which leaves it to PyTorch; all others PyTorch serves at once, in their own type."""


def left_to_pytorch() -> int:
    """Calls that did not get as far as the op."""
    fallbacks = counters()["cross_entropy"]["fallbacks"].items()
    return sum(n for reason, n in fallbacks if reason.startswith("torch.nn.functional.cross_entropy: "))


@pytest.mark.filterwarnings("ignore:size_average and reduce")
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("number", range(len(CASES)))
def test_it_is_called_as_pytorchs(number: int, dtype: torch.dtype) -> None:
    x, target, options = CASES[number]
    cast = {k: v.to(dtype) if k == "weight" else v for k, v in options.items()}
    target = target.to(dtype) if target.is_floating_point() else target
    theirs = F.cross_entropy(x.to(dtype), target, **cast)
    wide = {k: v.to(dtype).double() if k == "weight" else v for k, v in options.items()}
    wanted = F.cross_entropy(x.to(dtype).double(), target.double() if target.is_floating_point() else target, **wide)
    by_kernels, by_op = (some and dtype != torch.float64 for some in (number in KERNELS, number in (*KERNELS, EMPTY)))
    before = served("cross_entropy"), left_to_pytorch()
    with prefer("numpy") if by_kernels else nullcontext():
        ours = cross_entropy(x.to(dtype), target, **cast)
    assert served("cross_entropy").get("numpy", 0) == before[0].get("numpy", 0) + by_kernels
    assert left_to_pytorch() == before[1] + (not by_op)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    if wanted.isnan().all() and wanted.numel():
        assert ours.isnan().all()
    else:
        assert_close(ours, wanted, TOLERANCES[dtype], CLASSES)


@pytest.mark.parametrize(
    ("x", "target", "options"),
    [
        (LOGITS[0], TARGETS[0, :4], {}),
        (LOGITS[0], TARGETS[0].float(), {}),
        (LOGITS[0], TARGETS[0].bool(), {}),
        (LOGITS[0], TARGETS[0], {"reduction": "median"}),
        (LOGITS[0], TARGETS[0], {"label_smoothing": 2.0}),
        (LOGITS[0].long(), TARGETS[0], {}),
        (LOGITS[0], None, {}),
        (LOGITS[0], TARGETS[0], {"label_smoothing": None}),
        (LOGITS[0], TARGETS[0], {"ignore_index": None}),
        (LOGITS[0], TARGETS[0], {"ignore_index": 3.0}),
    ],
)
def test_what_pytorchs_refuses_is_refused_in_its_words(x: Any, target: Any, options: dict[str, Any]) -> None:
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        F.cross_entropy(x, target, **options)
    with pytest.raises(type(theirs.value)) as ours:
        cross_entropy(x, target, **options)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_under_autocast_the_loss_has_pytorchs_dtype(dtype: torch.dtype) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        theirs = F.cross_entropy(LOGITS[0].to(dtype), TARGETS[0])
        ours = cross_entropy(LOGITS[0].to(dtype), TARGETS[0])
    assert ours.dtype == theirs.dtype
    assert_close(ours, theirs.double(), "bf16", CLASSES)
