"""A head and its cross-entropy, a chunk at a time: PyTorch's numbers in float64, and no tensor as large as the logits."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import kpt
from kpt.ops import linear_cross_entropy
from kpt.ops.devices import of_target
from kpt.ops.linear_cross_entropy import chunks
from kpt.ops.registry import get
from kpt_dsl.targets import get as target_named
from tests.ops.calls import served
from tests.ops.test_cross_entropy import exactly
from tests.tolerances import assert_close

OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum", "label_smoothing": 0.1},
    {"reduction": "none", "z_loss": 0.3},
    {"label_smoothing": 0.2, "z_loss": 0.01},
    {"reduction": "sum", "z_loss": 0.01, "softcap": 5.0},
]
ROWS, CLASSES, FEATURES = 199, 760, 37


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """Chunks of at most so many logits: several of rows, and several of classes, the last ones shorter."""
    monkeypatch.setattr(chunks, "MOST_LOGITS", 128 * CLASSES)
    return 128 * CLASSES


def made(*rows: int, classes: int = CLASSES, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """x, weight and bias with gradients, and targets, some of them ignored."""
    random = torch.Generator().manual_seed(20)
    shapes = ((*rows, FEATURES), (classes, FEATURES), (classes,))
    x, w, b = (torch.randn(s, generator=random).to(dtype).requires_grad_() for s in shapes)
    target = torch.randint(classes, rows, generator=random)
    target.view(-1)[1::3] = -100
    return [x, w, b, target]


def expected(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, target: torch.Tensor, **options: Any) -> torch.Tensor:
    logits = F.linear(x, w, b).reshape(-1, w.shape[0])
    loss, _ = exactly(logits, target.reshape(-1), **options)
    return loss.view(target.shape) if options.get("reduction") == "none" else loss


@pytest.mark.parametrize("backend", ["reference", "numpy", "triton"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.usefixtures("few")
def test_losses_and_gradients(options: dict[str, Any], backend: Any) -> None:
    shapes = [((2, 37), 37), ((1,), 1), ((ROWS,), CLASSES)]
    for rows, classes in shapes if backend != "triton" else shapes[:1]:
        x, w, b, target = made(*rows, classes=classes)
        wide = [t.detach().double().requires_grad_() for t in (x, w, b)]
        with kpt.ops.prefer(backend):
            got = linear_cross_entropy(x, w, target, b, **options)
        wanted = expected(*wide, target, **options)
        assert got.dtype == torch.float32
        assert_close(got.detach(), wanted.detach(), "f32", CLASSES, scale=float(wanted.detach().abs().max()) + 10)
        dy = torch.randn(got.shape, generator=torch.Generator().manual_seed(5))
        found = torch.autograd.grad(got, (x, w, b), dy)
        for g, e in zip(found, torch.autograd.grad(wanted, wide, dy.double()), strict=True):
            assert g.dtype == torch.float32
            assert_close(g, e, "f32", CLASSES, scale=1.0 if classes == 1 else None)  # all of one class cancels


class Sizes(TorchDispatchMode):
    """Sees how many elements each tensor has that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        for made in given if isinstance(given, list | tuple) else (given,):
            if isinstance(made, torch.Tensor):
                self.largest = max(self.largest, made.numel())
        return given


def test_the_logits_are_never_held(few: int) -> None:
    """Neither forward nor backward; PyTorch's does, which shows that this sees it."""
    rows = 2 * CLASSES
    x, w, b, target = (t.detach() for t in made(rows))
    forward = (x, w, target, b, -100, "mean", 0.1, 1e-4, 30.0, True)
    saved = get("linear_cross_entropy").reference(*forward)[1:]
    backward = (torch.ones(()).expand(rows), x, w, target, b, *saved, -100, 0.1, 1e-4, 30.0, (True, True, True))
    for op, given in (("linear_cross_entropy", forward), ("linear_cross_entropy_backward", backward)):
        largest = {}
        for implementation in get(op).implementations:
            if implementation.name in ("numpy", "reference"):
                with kpt.ops.prefer("numpy"), Sizes() as sizes:
                    implementation.prepare(given, ())(*given)
                largest[implementation.name] = sizes.largest
        assert largest["numpy"] <= max(few, w.numel(), x.numel()) < rows * CLASSES
        assert largest["reference"] == rows * CLASSES


def test_half_precision_is_rounded_as_by_two_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no gradient is made of sums that were rounded: many chunks make none worse."""
    monkeypatch.setattr(chunks, "MOST_LOGITS", 1)
    x, w, _, target = made(ROWS, dtype=torch.bfloat16)
    with kpt.ops.prefer("numpy"):
        loss = linear_cross_entropy(x, w, target)
    two = F.cross_entropy(F.linear(x, w).float(), target)
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    exact = expected(*wide, None, target)
    assert_close(loss.detach(), two.detach(), "f32", CLASSES)
    gradients = [torch.autograd.grad(t, of) for t, of in ((loss, (x, w)), (two, (x, w)), (exact, wide))]
    for ours, theirs, right in zip(*gradients, strict=True):
        assert ours.dtype == torch.bfloat16
        errors = [float((g.double() - right).norm()) for g in (ours, theirs)]
        assert errors[0] <= 1.03 * errors[1]  # 1.07 if those of x were added up in bfloat16


@pytest.mark.parametrize("extent", [1, 37, 63, 64, 65, 202, 760, 1024, 50257])
@pytest.mark.parametrize("across", [1, 1000, 1 << 16, 1 << 20])
def test_level_chunks_hold_each_once(extent: int, across: int) -> None:
    """But for what the last ones have again, and say so; all of them level where there is so much, and none too large."""
    seen: list[int] = []
    for part, known in chunks.level_chunks(torch.empty(extent, 1, dtype=torch.bfloat16, device="meta"), across):
        size = part.stop - part.start
        assert size % chunks.LEVEL == 0 or extent < chunks.LEVEL or extent % 8 == 0
        assert size <= max(chunks.LEVEL, chunks.MOST_LOGITS // across)
        assert seen[len(seen) - known :] == list(range(part.start, part.start + known))
        seen += range(part.start + known, part.stop)
    assert seen == list(range(extent))


def test_chunks_of_other_types_and_on_tpus_come_once() -> None:
    """Their products are as quick as they are: a part that is made again would only take longer."""
    weight = torch.empty(50257, 1, dtype=torch.bfloat16, device="meta")
    with of_target(target_named("tpu-v5e")):
        assert list(chunks.level_chunks(weight, 8)) == [(slice(0, 50257), 0)]
    assert list(chunks.level_chunks(weight.float(), 8)) == [(slice(0, 50257), 0)]
    assert list(chunks.level_chunks(weight, 8)) == [(slice(0, 50240), 0), (slice(50193, 50257), 47)]


class Products(TorchDispatchMode):
    """Sees the extents of products."""

    def __init__(self) -> None:
        super().__init__()
        self.extents: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in ("aten::mm", "aten::addmm", "aten::linear"):
            self.extents |= {n for t in args if isinstance(t, torch.Tensor) for n in t.shape}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_of_an_odd_number_of_classes_are_level(dtype: torch.dtype, bias: bool, few: int) -> None:
    """In half precision, where PyTorch's would be slow."""
    x, w, b, target = made(ROWS, classes=CLASSES + 1, dtype=dtype)
    x = (x.detach() / 8).requires_grad_()
    given = [x, w, *([b] if bias else [])]
    forward = (x, w, target, b if bias else None, -100, "mean", 0.0, 0.0, None, True)
    forward = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in forward)
    with kpt.ops.prefer("numpy"):
        op = next(i for i in get("linear_cross_entropy").implementations if i.name == "numpy")
        with torch.no_grad(), Products() as seen:
            loss, lse, count = op.prepare(forward, ())(*forward)
        op = next(i for i in get("linear_cross_entropy_backward").implementations if i.name == "numpy")
        backward = (torch.ones(()).expand(ROWS), *forward[:4], lse, count, *forward[4:5], *forward[6:9], (True, True, bias))
        with Products() as seen_backward:
            found = op.prepare(backward, ())(*backward)
    classes = (seen.extents | seen_backward.extents) - {FEATURES, *range(ROWS + 1)}
    assert classes and {n % 64 for n in classes} == ({0} if dtype is not torch.float32 else {0, (CLASSES + 1) % 64})
    wide = [t.detach().double().requires_grad_() for t in given]
    exact = expected(wide[0], wide[1], wide[2] if bias else None, target)
    name = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}[dtype]
    assert_close(loss, exact.detach(), name, FEATURES)
    for got, wanted in zip(found, torch.autograd.grad(exact, wide), strict=True):
        assert got.dtype is dtype
        assert_close(got, wanted, name, CLASSES)


def test_the_kernel_of_an_odd_head_is_told_how_its_logits_lie() -> None:
    dims = {"M": 8192, "N": 50257, "K": 768}
    for dtype, name, row in (("bf16", "", 50304), ("f32", "", 50257), ("bf16", "tpu-v5e", 50257)):
        named = target_named(name) if name else None
        (instance, *_) = get("linear_cross_entropy").instances(dims, dtype, named)
        assert [strides[0] for strides in dict(instance.extents.strides).values() if len(strides) == 2] == [row]


def test_only_what_is_needed() -> None:
    x, w, _, target = made(5)
    w.requires_grad_(False)
    with FlopCounterMode(display=False) as counter, kpt.ops.prefer("numpy"):
        linear_cross_entropy(x, w, target).backward()
    assert counter.get_total_flops() == 3 * 2 * 5 * CLASSES * FEATURES  # the logits twice, and once their gradient
    assert x.grad is not None
    assert w.grad is None


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.usefixtures("few")
def test_one_graph_serves_all_lengths(backend: str) -> None:
    def loss(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy(x * 2, w, target, b, label_smoothing=0.1, z_loss=1e-3, softcap=3.0)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=backend)
    with kpt.ops.prefer("numpy"):
        for rows in (7, 199):
            *given, target = made(rows)
            found, wanted = (torch.autograd.grad(f(*given, target), given) for f in (compiled, loss))
            for f, w in zip(found, wanted, strict=True):
                assert torch.equal(f, w)


def test_autocast_lowers_the_product() -> None:
    x, w, b, target = made(5)
    with torch.autocast("cpu", dtype=torch.bfloat16), kpt.ops.prefer("numpy"):
        loss = linear_cross_entropy(x, w, target, b)
        logits = F.linear(x, w, b)
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert_close(loss.detach(), F.cross_entropy(logits.float(), target).detach(), "f32", CLASSES)


def test_what_serves_it_is_told() -> None:
    x, w, b, target = made(5)
    before = [served(op).get("numpy", 0) for op in ("cross_entropy", "cross_entropy_backward")]
    with kpt.ops.prefer("numpy"):
        explained = kpt.ops.explain("linear_cross_entropy", x, w, target, b)
        linear_cross_entropy(x, w, target, b).backward()
    assert [kernel.kernel for kernel in explained.kernels] == ["cross_entropy_fwd"]
    assert [served(op)["numpy"] for op in ("cross_entropy", "cross_entropy_backward")] == [n + 1 for n in before]
    kernels = [i.kernel.name for op in ("", "_backward")
               for i in get(f"linear_cross_entropy{op}").instances({"M": 8192, "N": 128256, "K": 64}, "bf16")]  # fmt: skip
    assert kernels == ["cross_entropy_fwd", "cross_entropy_bwd"]
