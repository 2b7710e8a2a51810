"""Replacing modules and restoring them: same outputs, same state dicts, same objects back."""

import copy
import functools
import io
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import kpt
from kpt.ops.replace.modules import KptLayerNorm, KptRMSNorm, KptSequential
from tests.ops.calls import served
from tests.tolerances import assert_close

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(20))


class Doubled(nn.LayerNorm):
    """A subclass that computes something else."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (PyTorch's name)
        return super().forward(input) * 2


class Model(nn.Module):
    """Every kind of thing that is replaced, and some that only look so."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(20)
        self.norm = nn.LayerNorm(8, eps=1e-3)
        self.scale = nn.RMSNorm(8)
        self.bare = nn.LayerNorm(8, elementwise_affine=False)
        self.mlp = nn.Sequential(
            OrderedDict(
                up=nn.Linear(8, 16), act=nn.GELU(), mid=nn.Linear(16, 16, bias=False), tanh=nn.Tanh(),
                gate=nn.Linear(16, 16), silu=nn.SiLU(), drop=nn.Dropout(0.5), down=nn.Linear(16, 8),
            )
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 8)), nn.GELU("tanh"))
        self.own = Doubled(8)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.own(self.mlp(self.bare(self.scale(self.norm(x))))))


def classes(model: nn.Module) -> dict[str, type]:
    return {path: type(module) for path, module in model.named_modules()}


def test_outputs_agree_and_go_through_kpt() -> None:
    model = Model()
    expected = model(X)
    report = kpt.replace_modules(model)
    assert {c.path: c.kind for c in report.changes} == {
        "norm": "layer_norm", "scale": "rms_norm", "bare": "layer_norm", "mlp": "linear_act",
    }  # fmt: skip
    before = {op: served(op).get("reference", 0) for op in ("layer_norm", "rms_norm", "linear_act")}
    assert_close(model(X), expected, "f32", 16)
    made = {op: served(op).get("reference", 0) - count for op, count in before.items()}
    assert made == {"layer_norm": 2, "rms_norm": 1, "linear_act": 2}


def test_the_report_reads_well() -> None:
    text = str(kpt.replace_modules(Model()))
    assert text.splitlines() == [
        "replaced 4 of 5",
        "    2  LayerNorm -> KptLayerNorm    kpt.ops.layer_norm  norm, bare",
        "    1  RMSNorm -> KptRMSNorm        kpt.ops.rms_norm    scale",
        "    1  Sequential -> KptSequential  kpt.ops.linear_act  mlp",
        (
            "    1  left alone, own: Doubled is not layer_norm: its output is off by 3.4 of 3.4, allowed 1.1e-05 "
            "(float32, inputs around 1, parameters around 1)"
        ),
        "       on cpu PyTorch serves layer_norm, rms_norm, linear_act, unless kernels are preferred",
    ]


def test_restoring_is_exact() -> None:
    model = Model()
    before, objects, parameters = classes(model), dict(model.named_modules()), dict(model.named_parameters())
    expected = model(X)
    kpt.replace_modules(model)
    report = kpt.restore_modules(model)
    assert len(report.changes) == 4
    assert classes(model) == before
    assert all(module is objects[path] for path, module in model.named_modules())
    assert all(p is parameters[path] for path, p in model.named_parameters())
    assert torch.equal(model(X), expected)
    assert kpt.restore_modules(model).changes == ()


def test_state_stays_as_it_is() -> None:
    model = Model().double()
    model.norm.train()
    model.norm.weight.requires_grad_(False)
    expected = {name: (value.data_ptr(), value.dtype) for name, value in model.state_dict().items()}
    objects = dict(model.named_modules())
    kpt.replace_modules(model)
    assert {name: (value.data_ptr(), value.dtype) for name, value in model.state_dict().items()} == expected
    assert all(module is objects[path] for path, module in model.named_modules())
    assert model.norm.training
    assert not model.norm.weight.requires_grad
    assert isinstance(model.norm, nn.LayerNorm)
    assert model(X.double()).dtype == torch.float64
    model.load_state_dict(Model().state_dict())


def test_replacing_twice_changes_nothing_more() -> None:
    model = Model()
    kpt.replace_modules(model)
    assert kpt.replace_modules(model).changes == ()


def test_copies_and_pickles_stay_replaced_and_can_be_restored() -> None:
    model = Model()
    expected = model(X)
    kpt.replace_modules(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert type(other.norm) is KptLayerNorm
        kpt.restore_modules(other)
        assert type(other.norm) is nn.LayerNorm
        assert torch.equal(other(X), expected)
    assert type(model.norm) is KptLayerNorm


def test_hooks_see_what_they_saw() -> None:
    model = Model()
    seen: dict[str, torch.Tensor] = {}
    for name in ("norm", "mlp.up", "mlp.act", "mlp.gate"):
        model.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out))
    model(X)
    expected = dict(seen)
    kpt.replace_modules(model)
    model(X)
    for name, value in expected.items():
        assert_close(seen[name], value, "f32", 16)


def test_a_global_hook_sees_every_module() -> None:
    model = Model()
    kpt.replace_modules(model)
    seen: list[str] = []
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, _, __: seen.append(type(module).__name__)
    )
    try:
        model.mlp(X)
    finally:
        handle.remove()
    assert seen.count("Linear") == 4


def test_pairs_that_are_no_plain_pairs_are_left_alone() -> None:
    class Odd(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -super().forward(x)

    odd = nn.Sequential(Odd(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    expected = odd(X)
    kpt.replace_modules(odd)
    assert type(odd) is KptSequential
    assert_close(odd(X), expected, "f32", 8)
    patched = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    patched[0].forward = lambda x: x * 0 - 1
    kpt.replace_modules(patched)
    assert torch.equal(patched(X), torch.zeros(5, 8))
    instance = nn.LayerNorm(8)
    instance.forward = lambda x: x
    assert "patched" in kpt.replace_modules(instance).skipped[0].reason


def test_a_class_changed_afterwards_is_left_alone() -> None:
    norm = nn.LayerNorm(8)
    kpt.replace_modules(norm)
    parametrize.register_parametrization(norm, "weight", nn.Identity())
    report = kpt.restore_modules(norm)
    assert report.changes == ()
    assert "after it was replaced" in report.skipped[0].reason


def test_only_some_kinds() -> None:
    model = Model()
    report = kpt.replace_modules(model, only=["rms_norm"])
    assert [c.path for c in report.changes] == ["scale"]
    assert type(model.scale) is KptRMSNorm
    assert type(model.norm) is nn.LayerNorm


def test_a_root_that_is_replaced_itself() -> None:
    norm = nn.LayerNorm(8)
    assert kpt.replace_modules(norm).changes[0].path == "(model)"
    assert type(norm) is KptLayerNorm


@pytest.mark.parametrize(
    ("model", "only", "message"),
    [
        (print, None, "model is builtin_function_or_method; accepted: a torch.nn.Module"),
        (
            nn.ReLU(),
            ["norm"],
            "only is ['norm']; accepted: a collection out of layer_norm, rms_norm, linear_act, scaled_dot_product_attention",
        ),
        (nn.ReLU(), "rms_norm", "only is 'rms_norm'; accepted: a collection"),
    ],
)
def test_bad_input(model: object, only: object, message: str) -> None:
    with pytest.raises(kpt.InputError) as caught:
        kpt.replace_modules(model, only=only)
    assert message in str(caught.value)


def test_training_and_compiling_a_replaced_model() -> None:
    plain, replaced = Model(), Model()
    kpt.replace_modules(replaced)
    torch._dynamo.reset()
    for model in (plain, replaced):
        model(X).square().sum().backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), replaced.named_parameters(), strict=True):
        assert_close(b.grad, a.grad, "f32", 64)
        assert a.grad is not None, name
    with torch.no_grad():
        assert_close(torch.compile(replaced, fullgraph=True, backend="aot_eager")(X), plain(X), "f32", 16)


class Hook:
    """What accelerate hangs on a module, by its protocol: ``_hf_hook``, ``_old_forward``, and a ``forward`` of the instance."""

    def __init__(self) -> None:
        self.calls = 0

    def attach(self, module: nn.Module) -> None:
        def new_forward(module: nn.Module, *args: object, **kwargs: object) -> object:
            module._hf_hook.calls += 1
            return module._old_forward(*args, **kwargs)

        module._old_forward = module.forward
        module._hf_hook = self
        module.forward = functools.update_wrapper(functools.partial(new_forward, module), module._old_forward)

    @staticmethod
    def detach(module: nn.Module) -> None:
        del module._hf_hook
        module.forward = module._old_forward
        del module._old_forward


HOOKED = ("norm", "scale", "bare", "mlp", "head")


def calls_of_kpt(model: nn.Module) -> int:
    before = sum(sum(served(op).values()) for op in ("layer_norm", "rms_norm", "linear_act"))
    model(X)
    return sum(sum(served(op).values()) for op in ("layer_norm", "rms_norm", "linear_act")) - before


@pytest.mark.parametrize("hooked", ["before", "after"])
@pytest.mark.parametrize("detached", [False, True])
def test_hooks_of_accelerate_are_replaced_under_and_restored(hooked: str, detached: bool) -> None:
    model = Model()
    expected, hook = model(X), Hook()
    if hooked == "after":
        kpt.replace_modules(model)
    for path in HOOKED:
        hook.attach(model.get_submodule(path))
    if hooked == "before":
        assert {c.path for c in kpt.replace_modules(model).changes} == {"norm", "scale", "bare", "mlp"}
    assert calls_of_kpt(model) == 5
    assert hook.calls == len(HOOKED)
    if detached:
        for path in HOOKED:
            Hook.detach(model.get_submodule(path))
    report = kpt.restore_modules(model)
    assert (len(report.changes), report.skipped) == (4, ())
    assert calls_of_kpt(model) == 0
    assert torch.equal(model(X), expected)
    assert hook.calls == (1 if detached else 3) * len(HOOKED)


def test_a_forward_patched_after_replacing_is_named() -> None:
    model = Model()
    kpt.replace_modules(model)
    theirs = model.scale.forward
    model.scale.forward = lambda x: theirs(x) * 1.0
    report = kpt.restore_modules(model)
    assert [(s.path, s.kind) for s in report.skipped] == [("scale", "rms_norm")]
    assert "patched on the instance after it was replaced" in str(report)
    del model.scale.forward
    assert [c.path for c in kpt.restore_modules(model).changes] == ["scale"]
