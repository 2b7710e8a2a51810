"""Attention that calls a rotary function: that is exchanged for the op where it was shown to be it, for this module only."""

import copy
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import kpt
from kpt.ops import prefer
from kpt.ops.replace import functions
from tests.ops.calls import served
from tests.tolerances import assert_close

Turn = Callable[..., Any]


def far(x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((-b, a), -1)


def beside(x: torch.Tensor) -> torch.Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


def of_first_half(t: torch.Tensor) -> torch.Tensor:
    return t[..., : t.shape[-1] // 2].repeat_interleave(2, -1)


def llamas(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return q * cos + far(q) * sin, k * cos + far(k) * sin


def neoxs(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
    n = cos.shape[-1]
    y, z = llamas(q[..., :n], k[..., :n], cos, sin, unsqueeze_dim)
    return torch.cat((y, q[..., n:]), -1), torch.cat((z, k[..., n:]), -1)


def lasts(q: Any, k: Any, cos: Any, sin: Any) -> Any:
    n = cos.shape[-1]
    y, z = llamas(q[..., -n:], k[..., -n:], cos, sin)
    return torch.cat((q[..., :-n], y), -1), torch.cat((k[..., :-n], z), -1)


def coheres(q: Any, k: Any, cos: Any, sin: Any) -> Any:
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return tuple((x.float() * cos + beside(x.float()) * sin).to(x.dtype) for x in (q, k))


def glms(q: Any, k: Any, cos: Any, sin: Any, position_ids: Any = None, unsqueeze_dim: int = 1) -> Any:
    cos, sin = (of_first_half(t).unsqueeze(unsqueeze_dim) for t in (cos, sin))
    return q * cos + beside(q) * sin, k * cos + beside(k) * sin


def oss(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    halves = [x.chunk(2, -1) for x in (q, k)]
    return tuple(torch.cat((a * cos - b * sin, b * cos + a * sin), -1) for a, b in halves)


def visions(q: Any, k: Any, cos: Any, sin: Any) -> Any:
    cos, sin = cos.unsqueeze(-2).float(), sin.unsqueeze(-2).float()
    return tuple((x.float() * cos + far(x.float()) * sin).to(x.dtype) for x in (q, k))


class Attention(nn.Module):
    """As much of one as turns."""

    columns = 16

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(20)
        self.qkv = nn.Linear(32, 96)

    def project(self, x: torch.Tensor) -> Any:
        return [t.unflatten(-1, (-1, 16)).transpose(1, 2) for t in self.qkv(x).split((64, 32), -1)]

    def forward(self, x: torch.Tensor, angles: Any) -> Any:
        q, k = self.project(x)
        q, k = turn(q, k, *angles)
        return torch.cat([q, k], 1)


def turn(q: Any, k: Any, cos: Any, sin: Any) -> Any:
    raise AssertionError("each class below brings its own")


def calling(function: Turn, name: str = "Attending", columns: int = 16) -> Any:
    """A class of modules whose forward looks ``turn`` up, in globals of its own."""
    space = {**globals(), "turn": function, "__name__": __name__}
    exec(
        f"class {name}(Attention):\n"
        f"    columns = {columns}\n"
        "    def forward(self, x, angles):\n"
        "        q, k = self.project(x)\n"
        "        q, k = turn(q, k, *angles)\n"
        "        return torch.cat([q, k], 1)\n",
        space,
    )
    return space[name]


class Llama(Attention):
    def forward(self, x: torch.Tensor, angles: Any) -> Any:
        q, k = self.project(x)
        q, k = llamas(q, k, *angles)
        return torch.cat([q, k], 1)


class Neox(Attention):
    columns = 12

    def forward(self, x: torch.Tensor, angles: Any) -> Any:
        q, k = self.project(x)
        q, k = neoxs(q.transpose(1, 2), k.transpose(1, 2), *angles, unsqueeze_dim=2)
        return torch.cat([q, k], 2)


RIGHT: dict[str, tuple[Any, dict[str, Any]]] = {
    "halves": (Llama, {"interleaved": False, "angles": "each", "dims": (1, 2), "partial": False, "wide": False}),
    "some columns": (Neox, {"interleaved": False, "partial": True}),
    "neighbours": (calling(coheres), {"interleaved": True, "angles": "each", "dims": (1,), "wide": True}),
    "neighbours, half of the angles": (calling(glms), {"interleaved": True, "angles": "first half"}),
    "one angle a pair": (calling(oss, columns=8), {"interleaved": False, "angles": "one a pair"}),
}
X = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(20))


def angles(columns: int, dtype: torch.dtype = torch.float32, batch: int = 2) -> tuple[torch.Tensor, ...]:
    """All unlike: which column is read for which shows."""
    return tuple(torch.randn(2, batch, 5, columns, generator=torch.Generator().manual_seed(columns)).to(dtype))


@pytest.mark.parametrize("name", RIGHT)
def test_rotary_functions_are_exchanged(name: str) -> None:
    kind, parts = RIGHT[name]
    own, module, given = kind(), kind(), angles(kind.columns)
    before, expected = sum(served("rotary").values()), own(X, given)
    report = kpt.replace_modules(module)
    assert [(c.path, c.kind, c.before) for c in report.changes] == [("(model)", "rotary", kind.__name__)]
    ((_, found),) = module.served.exchanges
    assert {part: getattr(found, part) for part in parts} == parts
    with prefer("numpy"):
        got = module(X, given)
        got.square().sum().backward()
    assert served("rotary").get("numpy", 0)
    assert sum(served("rotary").values()) == before + 1
    assert_close(got.detach(), expected.detach(), "f32", scale=4.0)
    expected.square().sum().backward()
    for a, b in zip(module.parameters(), own.parameters(), strict=True):
        assert_close(a.grad, b.grad, "f32", 96, scale=float(b.grad.abs().max()))
    assert torch.equal(own(X, given), expected)  # nobody else's is
    kpt.restore_modules(module)
    assert type(module) is kind
    assert torch.equal(module(X, given), expected)


def finished(x: torch.Tensor) -> torch.Tensor:
    return x


class Finishing(Llama):
    """Calls another function of its file, which somebody may patch."""

    def forward(self, x: torch.Tensor, angles: Any) -> Any:
        q, k = self.project(x)
        return finished(torch.cat(llamas(q, k, *angles), 1))


def test_what_is_patched_between_two_replacements_is_seen_by_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Finishing(), Finishing()
    given = angles(Finishing.columns)
    kpt.replace_modules(first)
    monkeypatch.setattr(sys.modules[__name__], "finished", torch.neg)
    expected = second(X, given)
    assert kpt.replace_modules(second).changes
    assert type(second) is not type(first)
    assert_close(second(X, given).detach(), expected.detach(), "f32", scale=4.0)
    third = Finishing()
    kpt.replace_modules(third)
    assert type(third) is type(second)


@pytest.mark.parametrize("name", ["finished", "llamas"])
def test_what_is_patched_after_replacing_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, module, given = Finishing(), Finishing(), angles(Finishing.columns)
    kpt.replace_modules(module)
    module(X, given)
    before = sum(served("rotary").values())
    with monkeypatch.context() as patched:
        patched.setattr(sys.modules[__name__], name, {"finished": torch.neg, "llamas": glms}[name])
        assert torch.equal(module(X, given), own(X, given))
        assert sum(served("rotary").values()) == before
        compiled = torch.compile(module, backend="eager", fullgraph=True)
        assert_close(compiled(X, given).detach(), own(X, given).detach(), "f32", scale=4.0)
    module(X, given)
    assert sum(served("rotary").values()) == before + 1


WRONG: dict[str, Turn] = {
    "another sign": lambda q, k, cos, sin: llamas(q, k, cos, -sin),
    "another pairing": lambda q, k, cos, sin: glms(q, far(k), cos, sin),
    "pairs of one kind, angles of the other": lambda q, k, cos, sin: llamas(q, k, of_first_half(cos), of_first_half(sin)),
    "the last half of the angles": lambda q, k, cos, sin: glms(q, k, cos.flip(-1), sin.flip(-1)),
    "neighbours in, halves out": lambda q, k, cos, sin: tuple(
        x.unflatten(-1, (-1, 2)).mT.flatten(-2) for x in glms(q, k, cos, sin)
    ),
    "queries only": lambda q, k, cos, sin: (llamas(q, k, cos, sin)[0], k),
    "keys first": lambda q, k, cos, sin: llamas(k, q, cos, sin),
    "cosines for sines": lambda q, k, cos, sin: llamas(q, k, sin, cos),
    "positions backwards": lambda q, k, cos, sin: llamas(q, k, cos.flip(1), sin.flip(1)),
    "a scale": lambda q, k, cos, sin: llamas(q * 1.001, k, cos, sin),
    "one batch entry's": lambda q, k, cos, sin: llamas(q, k, cos[:1], sin[:1]),
    "float32 given": lambda q, k, cos, sin: llamas(q.float(), k.float(), cos, sin),
    "no gradient": lambda q, k, cos, sin: llamas(q.detach(), k, cos, sin),
    "no tensors": lambda q, k, cos, sin: None,
}


@pytest.mark.parametrize("name", WRONG)
def test_what_only_looks_like_one_is_left_alone(name: str) -> None:
    kind = calling(WRONG[name], "Wrong")
    module = kind()
    report = kpt.replace_modules(module)
    assert type(module) is kind
    ((path, what, reason),) = [(s.path, s.kind, s.reason) for s in report.skipped]
    assert (path, what) == ("(model)", "rotary")
    assert reason.startswith("Wrong calls turn, which is none of kpt's: ")


def test_of_several_all_are_to_be_shown() -> None:
    """Which of them runs is a setting's affair: DeepSeek's."""

    class Two(Attention):
        def forward(self, x: torch.Tensor, angles: Any) -> Any:
            return llamas(*self.project(x), *angles) if self.columns else never(*self.project(x), *angles)

    module = Two()
    assert [s.kind for s in kpt.replace_modules(module).skipped] == ["rotary"]
    assert type(module) is Two


def never(q: Any, k: Any, cos: Any, sin: Any) -> Any:
    return q, k


def fickle(q: Any, k: Any, cos: Any, sin: Any) -> Any:
    """Gives queries of cos' type, and keys of their own."""
    y, z = llamas(q, k, cos, sin)
    return y, z.to(k.dtype)


CALLS: dict[str, tuple[Any, Callable[[], tuple[Any, ...]], dict[str, Any], bool]] = {
    "as shown": (llamas, lambda: (*heads(), *angles(16)), {}, True),
    "heads last": (llamas, lambda: (*heads(True), *angles(16)), {"unsqueeze_dim": 2}, True),
    "one batch entry's": (llamas, lambda: (*heads(), *angles(16, batch=1)), {}, True),
    "by name": (glms, lambda: (*heads(), *angles(16)), {"position_ids": None}, False),
    "by place": (llamas, lambda: (*heads(), *angles(16), 1), {}, False),
    "without a batch": (llamas, lambda: (*(t[0] for t in heads()), *(t[0] for t in angles(16))), {"unsqueeze_dim": 0}, False),
    "angles of two dims": (llamas, lambda: (*heads(), *(t[0] for t in angles(16))), {"unsqueeze_dim": 0}, False),
    "vision's, without a batch": (visions, lambda: (*(t[0] for t in heads(True)), *(t[0] for t in angles(16))), {}, True),
    "without a batch, where that was not shown": (
        llamas, lambda: (*torch.randn(2, 5, 5, 16, generator=torch.Generator().manual_seed(1)), *(t[0] for t in angles(16))),
        {}, False,
    ),
    "vision's, with one": (visions, lambda: (*heads(True, torch.bfloat16), *angles(16)), {}, True),
    "float32 angles, and the result": (llamas, lambda: (*heads(dtype=torch.bfloat16), *angles(16)), {}, True),
    "float32 angles, and one of the results": (
        fickle, lambda: (*heads(dtype=torch.bfloat16), *angles(16)), {}, False,
    ),
    "float32 angles where that was shown": (coheres, lambda: (*heads(dtype=torch.bfloat16), *angles(16)), {}, True),
    "unlike types": (llamas, lambda: (heads()[0], heads(dtype=torch.bfloat16)[1], *angles(16)), {}, False),
    "one position for all": (llamas, lambda: (*heads(), *(t[:, :1] for t in angles(16))), {}, False),
    "one query": (llamas, lambda: (heads()[0][:, :, :1], heads()[1], *(t[:, :1] for t in angles(16))), {}, False),
    "some columns where that was shown": (neoxs, lambda: (*heads(), *angles(6)), {}, True),
    "the last columns": (lasts, lambda: (*heads(), *angles(6)), {}, False),
    "all of the last columns": (lasts, lambda: (*heads(), *angles(16)), {}, True),
}


def heads(last: bool = False, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    tensors = (torch.randn(2, 5, n, 16, generator=torch.Generator().manual_seed(n)).to(dtype) for n in (4, 2))
    return tuple(t if last else t.transpose(1, 2) for t in tensors)


@pytest.mark.parametrize("name", CALLS)
def test_calls_that_were_not_shown_run_the_function(name: str) -> None:
    own, make, keywords, by_kpt = CALLS[name]
    found = functions.rotary.prove("turn", own)
    instead, given = found.instead_of(own), make()
    before = sum(served("rotary").values())
    for got, expected in zip(instead(*given, **keywords), own(*given, **keywords), strict=True):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert_close(got, expected, "f32" if got.dtype == torch.float32 else "bf16", scale=4.0)
    assert sum(served("rotary").values()) - before == by_kpt


def test_a_replaced_module_compiles_is_copied_and_checkpointed() -> None:
    torch._dynamo.reset()
    for kind in (Llama, Neox):
        module, given = kind(), angles(kind.columns)
        kpt.replace_modules(module)
        expected = module(X, given)
        for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
            assert type(other) is type(module)
            assert torch.equal(other(X, given), expected)
        x = X.clone().requires_grad_()
        checkpoint(module, x, given, use_reentrant=False).sum().backward()
        assert_close(x.grad, torch.autograd.grad(kind()(y := X.clone().requires_grad_(), given).sum(), y)[0], "f32", 96)
        assert_close(torch.compile(module, fullgraph=True, backend="eager")(X, given), expected, "f32")
        alike = nn.ModuleList([module, kind()])
        compiled = torch.compile(lambda x, alike=alike, given=given: sum(m(x, given) for m in alike),
                                 fullgraph=True, backend="eager")  # fmt: skip
        assert_close(compiled(X), 2 * expected, "f32", scale=4.0)  # inlined beside one that is not replaced


def test_only_some_kinds() -> None:
    module = Llama()
    assert not kpt.replace_modules(module, only=["rms_norm"]).changes
    assert kpt.replace_modules(module, only=["rotary"]).changes
    assert not kpt.replace_modules(module).changes
    assert "1  Llama -> KptLlama  kpt.ops.rotary  (model)" in str(kpt.replace_modules(Llama()))


@pytest.mark.parametrize("name", ["llama", "glm4"])
def test_in_models(name: str) -> None:
    from tests.architectures import build

    model, ids = build(name).eval(), torch.arange(3, 21).view(2, 9)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        kpt.replace_modules(model, only=["rotary"])
        before = sum(served("rotary").values())
        assert torch.equal(model(input_ids=ids).logits, expected)
    assert sum(served("rotary").values()) - before == 2
