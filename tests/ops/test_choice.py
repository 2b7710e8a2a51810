"""Who serves a call: explain, prefer, counters, falling back. A bug planted in the fallback turns this red."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import kpt
from kpt.ops import dispatch
from kpt.ops.dispatch import DISPATCHERS, Dispatcher
from kpt.ops.registry import Implementation, KernelChoice, get
from kpt_dsl import targets
from tests.ops.calls import OPS, arguments, served

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(20))
CALL = (X, (8,), None, None, 1e-5)


def dispatcher(**fields: Any) -> tuple[Dispatcher, list[str]]:
    """Layer norm without a gradient, one made-up implementation for CPU tensors before its reference; and the calls of that."""
    calls: list[str] = []

    def run(*given: Any) -> torch.Tensor:
        calls.append("run")
        return F.layer_norm(given[0], given[1])

    fields = {"prepare": lambda *_: run, "devices": frozenset({"cpu", "meta"}), **fields}
    made_up = Implementation("triton", **fields)
    return Dispatcher(replace(get("layer_norm"), kernels=(made_up,), gradient=None)), calls


def raising(error: Exception) -> Callable[..., Any]:
    def run(*_: Any) -> Any:
        raise error

    return run


def test_the_first_that_supports_a_call_serves_it() -> None:
    serves, calls = dispatcher()
    assert torch.equal(serves(*CALL), F.layer_norm(X, (8,)))
    assert calls == ["run"]
    assert serves.counters() == {"served": {"triton": 1}, "fallbacks": {}}


def test_falling_back_is_right_logged_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    serves, calls = dispatcher(why_not=lambda *_: "rows are too short")
    with caplog.at_level(logging.WARNING, "kpt"):
        for rows in (1, 2, 3, 3):
            assert torch.equal(serves(X[:rows], *CALL[1:]), F.layer_norm(X[:rows], (8,)))
    assert not calls
    assert [r.getMessage() for r in caplog.records] == ["layer_norm falls back to PyTorch: triton: rows are too short"]
    assert serves.counters() == {"served": {"reference": 4}, "fallbacks": {"triton: rows are too short": 4}}


def test_gradients_fall_back_and_count(caplog: pytest.LogCaptureFixture) -> None:
    serves, calls = dispatcher()
    x = X.clone().requires_grad_()
    with caplog.at_level(logging.WARNING, "kpt"):
        y = serves(x, *CALL[1:])
    (got,) = torch.autograd.grad(y.square().sum(), x)
    (wanted,) = torch.autograd.grad(F.layer_norm(x, (8,)).square().sum(), x)
    assert torch.equal(got, wanted)
    assert not calls
    assert list(serves.counters()["fallbacks"].values()) == [1]
    assert "needs grad" in caplog.text
    with torch.no_grad():
        serves(x, *CALL[1:])
    assert calls == ["run"]


@pytest.mark.parametrize(
    "error", [kpt.CompileError("out of shared memory\nptxas: …"), kpt.ConfigError("no legal config")]
)
def test_a_refused_launch_falls_back(error: kpt.KptError, caplog: pytest.LogCaptureFixture) -> None:
    serves, _ = dispatcher(prepare=lambda *_: raising(error))
    with caplog.at_level(logging.WARNING, "kpt"):
        for _ in range(3):
            assert torch.equal(serves(*CALL), F.layer_norm(X, (8,)))
    assert len(caplog.records) == 1
    assert str(error).splitlines()[0] in caplog.text
    counted = serves.counters()
    assert counted["served"]["reference"] == 3
    assert sum(counted["fallbacks"].values()) == 3


def test_a_refused_preparation_falls_back() -> None:
    serves, _ = dispatcher(prepare=raising(kpt.CompileError("no compiler")))
    assert torch.equal(serves(*CALL), F.layer_norm(X, (8,)))
    assert serves.counters()["served"] == {"reference": 1}


def test_a_programming_error_is_not_hidden() -> None:
    serves, _ = dispatcher(prepare=lambda *_: raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        serves(*CALL)


def test_a_preferred_implementation_must_serve() -> None:
    serves, _ = dispatcher(why_not=lambda *_: "rows are too short")
    with (
        kpt.ops.prefer("triton"),
        pytest.raises(kpt.InputError, match=r"triton is preferred but cannot serve.*rows are too short"),
    ):
        serves(*CALL)
    serves, _ = dispatcher(prepare=lambda *_: raising(kpt.CompileError("out of shared memory")))
    with kpt.ops.prefer("triton"), pytest.raises(kpt.CompileError, match="out of shared memory"):
        serves(*CALL)
    serves, _ = dispatcher(package="a_package_that_nobody_has")
    with (
        kpt.ops.prefer("triton"),
        pytest.raises(kpt.MissingPackageError, match="pip install a_package_that_nobody_has"),
    ):
        serves(*CALL)
    assert torch.equal(serves(*CALL), F.layer_norm(X, (8,)))


def test_prefer_ends_with_its_block_and_nests() -> None:
    serves, calls = dispatcher()
    with kpt.ops.prefer("triton"):
        with kpt.ops.prefer("reference"):
            serves(*CALL)
        assert not calls
        serves(*CALL)
    serves(*CALL)
    assert len(calls) == 2
    assert serves.counters() == {"served": {"reference": 1, "triton": 2}, "fallbacks": {}}


@pytest.mark.parametrize("op", OPS)
def test_cpu_tensors_are_served_by_pytorch_without_a_word(op: str, caplog: pytest.LogCaptureFixture) -> None:
    before = served(op).get("reference", 0)
    with caplog.at_level(logging.WARNING, "kpt"):
        DISPATCHERS[op](*arguments(op))
    assert not caplog.records
    assert served(op)["reference"] == before + 1


def test_a_decision_is_made_once_for_a_kind_of_call() -> None:
    prepared: list[int] = []

    def prepare(given: tuple[Any, ...], _: Any) -> Any:
        prepared.append(len(given))
        return lambda x, *_: x

    serves, _ = dispatcher(prepare=prepare)
    same = (X, torch.zeros(3, 8), X.clone())
    misaligned = torch.zeros(25)[1:].view(3, 8)
    apart = (X.half(), X[:2], X.T.contiguous().T, misaligned, torch.nn.Parameter(X), torch.zeros(3, 8, device="meta"))
    with torch.no_grad():
        for x in same:
            serves(x, *CALL[1:])
        assert len(prepared) == 1
        for number, x in enumerate(apart, 2):
            serves(x, *CALL[1:])
            assert len(prepared) == number, f"{x.dtype} {x.shape} {x.stride()} {x.device} is another kind of call"


def test_memory_of_decisions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "DECISIONS_KEPT", 8)
    serves, calls = dispatcher()
    for number in range(20):
        serves(*CALL[:4], float(number))
        assert len(serves._decisions) <= 8
    assert serves.counters()["served"] == {"triton": 20}
    assert len(calls) == 20


def test_calls_that_repeat_are_not_forgotten_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program whose lengths change must not pay anew for what stays."""
    monkeypatch.setattr(dispatch, "DECISIONS_KEPT", 8)
    serves, _ = dispatcher()
    serves(*CALL)
    (kept,) = serves._decisions.values()
    for number in range(30):
        serves(*CALL)
        serves(*CALL[:4], 2.0 + number)
    assert kept in serves._decisions.values()
    assert kept.calls == 31
    assert serves.counters()["served"] == {"triton": 61}


def test_explain_says_who_and_why() -> None:
    q = torch.zeros(1, 2, 4, 8)
    explained = kpt.ops.explain("flash_attention", q, q, q, causal=True)
    assert explained.implementation == "reference"
    assert [p.name for p in explained.passed_over] == ["triton", "pallas", "numpy"]
    assert str(explained).splitlines()[:3] == [
        f"flash_attention({', '.join(f'{name}=float32[1, 2, 4, 8]@cpu' for name in 'qkv')}, causal=True, return_lse=False)",
        "  served by   reference",
        "  passed over triton: serves cuda tensors, and cpu tensors only when preferred",
    ]


def test_explain_names_the_class_and_the_binary() -> None:
    """Two lengths of a class have one config and one binary; a third class has a text of its own."""

    def kernel(length: int) -> KernelChoice:
        with kpt.ops.prefer("triton"):
            (found,) = kpt.ops.explain("rms_norm", torch.zeros(length, 64), (64,)).kernels
        return found

    assert kernel(70) == kernel(99)
    assert kernel(70).extents == "M=65..128 N=64"
    assert kernel(5000).binary != kernel(70).binary
    with kpt.ops.prefer("triton"):
        shown = str(kpt.ops.explain("rms_norm", torch.zeros(70, 64), (64,)))
    assert f"M=65..128 N=64: binary {kernel(70).binary}" in shown


def test_explain_shows_the_config_and_where_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = Implementation(
        "triton",
        prepare=lambda *_: None,
        describe=lambda _: (KernelChoice("layer_norm_fwd", "block_M=4 num_warps=8", "shipped"),),
    )
    monkeypatch.setitem(kpt.ops.registry.OPS, "layer_norm", replace(get("layer_norm"), kernels=(made_up,)))
    text = str(kpt.ops.explain("layer_norm", X, [8]))
    assert "served by   triton" in text
    assert "kernel      layer_norm_fwd: block_M=4 num_warps=8 (shipped)" in text
    assert "passed over reference: comes after triton" in text


def test_explain_under_prefer_and_with_gradients() -> None:
    with kpt.ops.prefer("reference"):
        explained = kpt.ops.explain("layer_norm", X, (8,))
    assert explained.passed_over[0].reason == "reference is preferred"
    with kpt.ops.prefer("triton"), pytest.raises(kpt.InputError, match="needs grad"):
        kpt.ops.explain("quantize_fp8", X.clone().requires_grad_())


def test_instances_are_those_of_a_call() -> None:
    (instance,) = get("flash_attention").instances(
        {"B": 1, "H": 4, "G": 2, "M": 8, "N": 16, "D": 32}, "bf16", causal=True, window=4
    )
    assert str(instance) == (
        "flash_attention_fwd[B=1,H=4,M=8,D=32,G=2,N=16,E=32 bf16,f32 "
        "causal=True own_end=None scaled=None page=None left=None right=None softcap=None]"
    )
    assert [p.kernel.name for p in get("quantize_fp8").instances({"M": 8, "N": 16}, "bf16")] == [
        "row_amax",
        "quantize_with_scale",
    ]
    (rows,) = get("fp8_matmul").instances({"M": 8, "N": 16, "K": 32}, "f8e4m3", granularity="row")
    (whole,) = get("fp8_matmul").instances({"M": 8, "N": 16, "K": 32}, "f8e4m3")
    assert rows.extents.stride("scale_a") == (1,)
    assert whole.extents.stride("scale_a") == (0,)


def test_attention_scales_queries_in_bfloat16_on_tpus_alone() -> None:
    """In all kernels that make scores."""

    def scaled(dtype: str, target: str, queries: int) -> set[Any]:
        dims = {"B": 1, "H": 4, "G": 2, "M": queries, "N": 1024, "D": 32}
        ops = get("flash_attention"), get("flash_attention_backward")
        found = [p for op in ops for p in op.instances(dims, dtype, targets.get(target))]
        return {flags["scaled"] for p in found if "causal" in (flags := dict(p.specialisation.statics))}

    for queries in (1, 64):
        assert scaled("bf16", "tpu-v6e", queries) == {True}
        assert scaled("f32", "tpu-v6e", queries) == scaled("bf16", "nvidia-h200", queries) == {None}


@pytest.mark.parametrize("op", OPS)
def test_named_shapes_are_instances(op: str) -> None:
    spec = get(op)
    assert spec.shapes
    for shape in spec.shapes:
        assert spec.instances(shape.dims, shape.dtype, **shape.flags)
