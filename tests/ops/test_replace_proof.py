"""Norms of classes of one's own: replaced where they compute what an op does, and left alone, with the reason, where not."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kpt
from kpt.ops.replace import attention, proof
from kpt.ops.replace.proven import Proven
from tests.ops.calls import served
from tests.ops.test_replace import Hook
from tests.tolerances import assert_close, tolerance

X = torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(20))

Forward = Callable[[Any, torch.Tensor], torch.Tensor]


class Norm(nn.Module):
    """As Llama's."""

    def __init__(self, width: int = 48, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, width))
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        wide = hidden_states.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * wide.to(hidden_states.dtype)


class OnePlus(Norm):
    """As Gemma's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (wide * (1.0 + self.weight.float())).type_as(x)


class Centred(Norm):
    """As Cohere's: a layer norm without a bias."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide - wide.mean(-1, keepdim=True)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.weight.float() * wide).to(x.dtype)


class Bare(nn.Module):
    """As Llama 4's between queries and keys: without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = 1e-5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x)


class Biased(nn.Module):
    """As wav2vec's and others' that spell out PyTorch's."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.linspace(a, 1.0, 48)) for a in (0.5, -1.0))
        self.norm_eps = 1e-5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        mean, squares = wide.mean(-1, keepdim=True), wide.var(-1, keepdim=True, correction=0)
        return ((wide - mean) / torch.sqrt(squares + self.norm_eps) * self.gamma.float() + self.beta.float()).to(x.dtype)


class Written(nn.Module):
    """As nanoGPT's: eps stands in the code alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 48))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, None, 1e-3)


class Unwritten(Written):
    """With PyTorch's own eps."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (48,), self.weight)


class Scaled(Written):
    """As ConvNeXt's scale of a layer, which is no norm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class Ordered(nn.LayerNorm):
    """As ConvNeXt's: what it computes hangs on an attribute."""

    def __init__(self, order: str) -> None:
        super().__init__(48)
        self.order = order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.mT).mT if self.order == "first" else super().forward(x)


RIGHT = {
    Norm: ("rms_norm", {"offset": 0.0}),
    OnePlus: ("rms_norm", {"offset": 1.0}),
    Centred: ("layer_norm", {}),
    Bare: ("rms_norm", {"offset": 0.0}),
    Biased: ("layer_norm", {}),
    Written: ("layer_norm", {}),
    Unwritten: ("layer_norm", {}),
}


@pytest.mark.parametrize("kind", RIGHT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_of_ones_own_are_replaced(kind: type[nn.Module], dtype: torch.dtype) -> None:
    own, module = kind().to(dtype), kind().to(dtype)
    report = kpt.replace_modules(module)
    op, more = RIGHT[kind]
    assert [(c.path, c.kind, c.before, c.after) for c in report.changes] == [
        ("(model)", op, kind.__name__, f"Kpt{kind.__name__}")
    ]
    assert isinstance(module, kind)
    assert isinstance(module, Proven)
    assert {name: getattr(module.served, name) for name in more} == more
    before = sum(served(op).values())
    x, y = (X.to(dtype).requires_grad_() for _ in range(2))
    got, expected = module(x), own(y)
    assert sum(served(op).values()) == before + 1
    narrow = "f32" if dtype == torch.float32 else "bf16"
    assert got.dtype == dtype
    assert_close(got, expected.double(), narrow, 48)
    for a, b in zip(
        torch.autograd.grad(got.sum(), [x, *module.parameters()]),
        torch.autograd.grad(expected.sum(), [y, *own.parameters()]),
        strict=True,
    ):
        assert_close(a, b.double(), narrow, 48, scale=max(float(b.abs().max()), 6.0))
    assert [c.after for c in kpt.restore_modules(module).changes] == [kind.__name__]
    assert type(module) is kind
    assert torch.equal(module(x), expected)


def test_what_has_a_weight_and_no_eps_is_not_called_a_norm() -> None:
    report = kpt.replace_modules(nn.Sequential(Norm(), Scaled()))
    assert [c.path for c in report.changes] == ["0"]
    assert report.skipped == ()


# ------------------------------------------------------------------ planted ones
def squares(x: torch.Tensor) -> torch.Tensor:
    return x.pow(2).mean(-1, keepdim=True)


def normal(s: Any, x: torch.Tensor) -> torch.Tensor:
    """Rows over their root mean square, in the type that they have."""
    return x * torch.rsqrt(squares(x) + s.variance_epsilon)


def wide(run: Forward) -> Forward:
    """A forward in float32, rounded at the end."""
    return lambda self, x: run(self, x.float()).to(x.dtype)


class Constant(torch.autograd.Function):
    """``normal`` with a gradient that takes the root mean square for a constant."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, eps: float) -> torch.Tensor:
        ctx.scale = torch.rsqrt(squares(x) + eps)
        return x * ctx.scale  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, None]:
        return dy * ctx.scale, None


OFF, FEW = "is not rms_norm: its output is off by", "inputs around 0.001"
WRONG: dict[str, tuple[Forward, str]] = {
    "eps outside of the root": (wide(lambda s, x: s.weight * x / (squares(x).sqrt() + s.variance_epsilon)), OFF),
    "eps at the end": (wide(lambda s, x: s.weight * (x * torch.rsqrt(squares(x)) + s.variance_epsilon)), FEW),
    "eps squared": (wide(lambda s, x: s.weight * x * torch.rsqrt(squares(x) + s.variance_epsilon**2)), FEW),
    "eps as a floor": (wide(lambda s, x: s.weight * x * torch.rsqrt(squares(x).clamp_min(s.variance_epsilon))), FEW),
    "eps above one": (wide(lambda s, x: normal(s, x) * s.weight * (1 + s.variance_epsilon) ** 100), OFF),
    "sums for means": (wide(lambda s, x: s.weight * x * torch.rsqrt(squares(x) * 48 + s.variance_epsilon)), OFF),
    "mean taken off": (wide(lambda s, x: s.weight * normal(s, x - x.mean(-1, keepdim=True))), OFF),
    "mean taken off above": (wide(lambda s, x: s.weight * (normal(s, x) - x.mean(-1, keepdim=True))), OFF),
    "mean taken off below": (wide(lambda s, x: s.weight * x * torch.rsqrt(x.var(-1, keepdim=True) + s.variance_epsilon)), OFF),
    "weight before": (wide(lambda s, x: normal(s, s.weight * x)), OFF),
    "weight twice": (wide(lambda s, x: s.weight * normal(s, s.weight * x)), OFF),
    "2 + weight": (wide(lambda s, x: (2 + s.weight) * normal(s, x)), OFF),
    "no float32": (lambda s, x: s.weight * normal(s, x), "float16"),
    "float32 given": (lambda s, x: s.weight.float() * normal(s, x.float()), "its output is torch.float32"),
    "another gradient": (
        wide(lambda s, x: s.weight * Constant.apply(x, s.variance_epsilon)), "its gradient of input is off by",
    ),
    "no gradient": (wide(lambda s, x: s.weight.detach() * normal(s, x)), "no gradient of weight"),
    "noise while training": (wide(lambda s, x: s.weight * normal(s, x) + s.training * torch.rand(())), OFF),
    "large values cut": (wide(lambda s, x: s.weight * normal(s, x.clamp(-500, 500))), "inputs around 1e+03"),
    "all rows at once": (wide(lambda s, x: s.weight * x * torch.rsqrt(squares(x).mean() + s.variance_epsilon)), OFF),
    "other rows": (wide(lambda s, x: s.weight * normal(s, x if x.ndim == 3 else x.flip(0))), OFF),
    "channels": (wide(lambda s, x: (s.weight * normal(s, x)).view(x.shape if x.ndim < 4 else (48, -1))), "has shape"),
    "two outputs": (lambda s, x: (x, x), "its output is a tuple"),
    "in place": (lambda s, x: x.mul_(torch.rsqrt(squares(x) + s.variance_epsilon)).mul_(s.weight), "its forward fails"),
    "what it was given is kept": (
        wide(lambda s, x: setattr(s, "last", x) or s.weight * normal(s, x)), "it leaves something in last",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_only_looks_like_rms_norm_is_left_alone(name: str) -> None:
    forward, reason = WRONG[name]
    kind = type("Wrong", (Norm,), {"forward": forward})
    module = kind().eval()
    report = kpt.replace_modules(module, only=["rms_norm"])
    assert type(module) is kind
    assert report.changes == ()
    assert [s.kind for s in report.skipped] == ["rms_norm"]
    assert reason in report.skipped[0].reason


@pytest.mark.parametrize("eps", [1e-12, 1e-2])
def test_the_place_of_an_eps_of_any_size_is_seen(eps: float) -> None:
    kind = type("Wrong", (Norm,), {"forward": WRONG["eps outside of the root"][0]})
    report = kpt.replace_modules(nn.Sequential(kind(eps=eps), Norm(eps=eps)))
    assert ([c.path for c in report.changes], [s.path for s in report.skipped]) == (["1"], ["0"])


def test_what_takes_more_than_its_input_is_left_alone() -> None:
    gated = type("Gated", (Norm,), {"forward": lambda self, x, gate=None: x})
    assert "Gated takes x, gate" in str(kpt.replace_modules(gated()))


def test_attributes_tell_modules_of_a_class_apart() -> None:
    model = nn.Sequential(Ordered("last"), Ordered("first"), Ordered("last"), Norm(eps=1e-6), Norm(eps=1e-2))
    report = kpt.replace_modules(model)
    assert [c.path for c in report.changes] == ["0", "2", "3", "4"]
    assert [s.path for s in report.skipped] == ["1"]
    assert_close(model[4](X), F.rms_norm(X, (48,), model[4].weight, 1e-2), "f32", 48)


def test_modules_that_are_alike_are_proven_once(monkeypatch: pytest.MonkeyPatch) -> None:
    proofs = []
    prove = proof.difference
    monkeypatch.setattr(proof, "difference", lambda *given: proofs.append(given) or prove(*given))
    model = nn.Sequential(*[Norm() for _ in range(5)], Norm(32))
    kpt.replace_modules(model)
    assert len(proofs) == 2
    assert len({type(module) for module in model}) == 1


def test_tolerances_are_those_of_the_table() -> None:
    for dtype, name in ((torch.float32, "f32"), (torch.bfloat16, "bf16"), (torch.float16, "f16")):
        for length in (1, 4096):
            assert proof.ROUNDINGS[dtype] + proof.SUMMING * length**0.5 == tolerance(name, length)


# ------------------------------------------------------------------ what proving leaves alone
class Counting(Norm):
    """Notes its calls, in ways that a twin shares with it unless it is made with care."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.seen = 0, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen.append(x)
        return super().forward(x)


class Drawing(Norm):
    """Draws a number at each call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.rand(())
        return super().forward(x)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_proving_leaves_no_trace(around: Any) -> None:
    counting, drawing = model = nn.Sequential(Counting(), Drawing()).train()
    called = []
    for module in model:
        module.register_forward_hook(lambda *_: called.append(1))
    weights, state = [p.clone() for p in model.parameters()], torch.get_rng_state()
    with around():
        report = kpt.replace_modules(model)
    assert [c.path for c in report.changes] == ["1"]
    assert (counting.calls, counting.seen, called, drawing.training) == (0, [], [], True)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, weight) and p.grad is None for p, weight in zip(model.parameters(), weights, strict=True))
    model(X)
    assert called == [1, 1]


def test_an_exception_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.LayerNorm(48), Norm(), nn.Sequential(nn.Linear(48, 48), nn.ReLU()))
    Hook().attach(model[1])
    forwards = [module.forward for module in model]
    kinds = [type(module) for module in model.modules()]

    def interrupted(*_: Any, **__: Any) -> None:
        assert [type(module).__name__ for module in model] == ["KptLayerNorm", "KptNorm", "KptSequential"]
        raise KeyboardInterrupt

    monkeypatch.setattr(attention, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kpt.replace_modules(model)
    assert [type(module) for module in model.modules()] == kinds
    assert [module.forward for module in model] == forwards


def test_a_forward_that_is_patched_is_left_alone() -> None:
    module = Norm()
    module.forward = lambda x: x
    assert "patched on the instance" in str(kpt.replace_modules(module))
    assert type(module) is Norm
    hooked = Norm()
    Hook().attach(hooked)
    kpt.replace_modules(hooked)
    before = sum(served("rms_norm").values())
    assert_close(hooked(X), Norm()(X), "f32", 48)
    assert sum(served("rms_norm").values()) == before + 1
    assert len(kpt.restore_modules(hooked).changes) == 1
    assert torch.equal(hooked(X), Norm()(X))


def test_on_meta_the_class_is_proven() -> None:
    with torch.device("meta"):
        module = nn.Sequential(Norm())
        report = kpt.replace_modules(module)
    assert len(report.changes) == 1
    assert module[0].weight.device.type == "meta"
    module.to_empty(device="cpu").load_state_dict(nn.Sequential(Norm()).state_dict())
    assert_close(module(X), Norm()(X), "f32", 48)


# ------------------------------------------------------------------ a replaced module
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_and_copies(protocol: int) -> None:
    module = Norm()
    kpt.replace_modules(module)
    module.note = "kept"
    for other in (pickle.loads(pickle.dumps(module, protocol)), copy.deepcopy(module), copy.copy(module)):
        assert type(other) is type(module)
        assert other.note == "kept"
        assert torch.equal(other(X), module(X))
        kpt.restore_modules(other)
        assert type(other) is Norm
    assert isinstance(module, Proven)


def test_calls_by_name_and_modules_that_need_their_own_names() -> None:
    module = Norm()
    kpt.replace_modules(module)
    assert torch.equal(module(hidden_states=X), module(X))
    with pytest.raises(TypeError, match="unexpected keyword argument 'x'"):
        module(x=X)


@pytest.mark.parametrize("kind", [Norm, OnePlus, Bare, Centred])
def test_types_that_were_not_proven_run_the_modules_own_code(kind: type[nn.Module]) -> None:
    """Llama's gives float32 for a half input and a float32 weight; what autocast does to halves hangs on the device."""
    module, own = kind(), kind()
    kpt.replace_modules(module)
    half = X.bfloat16()
    op = "layer_norm" if kind is Centred else "rms_norm"

    def check(x: torch.Tensor, by_kpt: bool) -> None:
        before = sum(served(op).values())
        got, expected = module(x), own(x)
        assert got.dtype == expected.dtype
        assert_close(got, expected, "f32" if by_kpt else "bf16", 48)
        assert by_kpt or torch.equal(got, expected)
        assert sum(served(op).values()) - before == by_kpt

    if kind is not Bare:
        check(half, False)
    with torch.autocast("cpu", torch.bfloat16):
        check(half, False)
        check(X, True)
        module, own = module.bfloat16(), own.bfloat16()
        check(half, False)


def test_a_replaced_norm_compiles_into_one_graph() -> None:
    torch._dynamo.reset()
    for kind in (Norm, OnePlus, Bare):
        module = kind()
        kpt.replace_modules(module)
        compiled = torch.compile(module, fullgraph=True, backend="eager", dynamic=False)
        assert_close(compiled(X), kind()(X), "f32", 48)
        assert_close(compiled(X.bfloat16()), kind()(X.bfloat16()).double(), "bf16", 48)
        with torch.autocast("cpu", torch.bfloat16):
            assert compiled(X.bfloat16()).dtype == kind()(X.bfloat16()).dtype
