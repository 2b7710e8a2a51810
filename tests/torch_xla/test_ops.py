"""Ops, modules and kernels of one's own on tensors of PyTorch/XLA, with their gradients, against float64."""

from collections import Counter
from contextlib import nullcontext
from copy import deepcopy
from typing import Any, Literal

import numpy as np
import pytest
import torch

import kpt
from kpt_dsl.runtime import pallas, xla
from kpt_dsl.runtime.pallas import on_abstract_tpu, specs
from tests.jax.calls import CASES, cosines, in_float64, loss
from tests.jax.kernels import softmax
from tests.tolerances import assert_close
from tests.torch_xla.conftest import IS_REAL

IN_CI = ("rms_norm", "linear_act", "flash_attention", "cross_entropy")
"""Interpreted kernels take seconds each; ``make torch-xla`` runs all."""

TORCH = {"f32": "float32", "bf16": "bfloat16", "i32": "int32", "bool": "bool"}


def served() -> Counter[str]:
    """How many calls each implementation served so far, of all ops."""
    found: Counter[str] = Counter()
    for counted in kpt.ops.counters().values():
        found.update(counted["served"])
    return found


def cosines_at(place: str) -> Any:
    """Weights of the elements of an output, on a device."""
    return lambda shape: torch.tensor(cosines(shape), dtype=torch.float32).to(place)


@pytest.mark.parametrize("name", CASES if IS_REAL else IN_CI)
def test_outputs_and_gradients(name: str, place: str) -> None:
    case, before = CASES[name], served()
    given = [torch.tensor(a).to(place) if isinstance(a, np.ndarray) else a for a in case.arguments()]
    for position in case.graded:
        given[position].requires_grad_()
    outputs = getattr(kpt.ops, case.op)(*given, **case.options)
    loss(outputs, cosines_at(place)).backward()
    assert set(served() - before) == {"pallas"}
    expected, slopes = in_float64(case)
    for output, exact in zip(outputs if isinstance(outputs, tuple) else (outputs,), expected, strict=True):
        assert_close(output.detach().cpu(), exact.detach(), "f32", case.length)
    for position, slope in zip(case.graded, slopes, strict=True):
        assert_close(given[position].grad.cpu(), slope, "f32", 70 * case.length)


@pytest.mark.parametrize("name", CASES)
def test_calls_lower_for_a_tpu(name: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward, by the JAX that is installed; nothing runs."""
    from torch_xla.core import xla_builder

    lowered: list[str] = []

    def call_jax(function: Any, args: tuple[Any, ...], override_hash: Any) -> Any:
        source, interpret = override_hash
        assert not interpret
        inputs = specs([(a.shape, a.dtype) for a in source.abi.inputs])
        program = jax.jit(lambda *arrays: function(*arrays, *args[len(inputs) :]))
        lowered.append(jax.export.export(program, platforms=["tpu"])(*inputs).mlir_module())
        made = [torch.zeros(a.shape, dtype=getattr(torch, TORCH[a.dtype])).to(place) for a in source.abi.outputs]
        return made if len(made) > 1 else made[0]

    jax = pallas.jax_package()
    monkeypatch.setattr(xla, "_kind", lambda _: "TPU v5 lite")
    monkeypatch.setattr(xla_builder, "call_jax", call_jax)
    case, before = CASES[name], served()
    given = [torch.tensor(a).to(place) if isinstance(a, np.ndarray) else a for a in case.arguments()]
    for position in case.graded:
        given[position].requires_grad_()
    with on_abstract_tpu("TPU v5 lite", 1) if hasattr(jax.sharding, "AbstractDevice") else nullcontext():
        outputs = getattr(kpt.ops, case.op)(*given, **case.options)
        loss(outputs, cosines_at(place)).backward()
    assert len(lowered) > 1 and all("tpu_custom_call" in text for text in lowered)
    assert set(served() - before) == {"pallas"}


def test_half_precision_and_views(place: str) -> None:
    """A transposed slice of a larger tensor, which PyTorch/XLA holds as what to do to the tensor."""
    whole = torch.randn(70, 3, 40, generator=torch.Generator().manual_seed(3), dtype=torch.float64).bfloat16()
    x = whole.to(place)[:, 1, 4:37].t()
    y = kpt.ops.rms_norm(x, (70,))
    exact = torch.nn.functional.rms_norm(whole[:, 1, 4:37].t().double(), (70,))
    assert_close(y.float().cpu(), exact, "bf16", 70)


@pytest.mark.parametrize("granularity", ["tensor", "row"])
def test_fp8(granularity: Literal["tensor", "row"], real: str) -> None:
    x = torch.randn(8, 128, generator=torch.Generator().manual_seed(4))
    y, scale = kpt.ops.quantize_fp8(x.to(real), granularity)
    exact, exact_scale = kpt.ops.quantize_fp8(x, granularity)
    assert_close(scale.cpu(), exact_scale, "f32")
    assert (y.cpu().float() == exact.float()).all()


def test_a_known_length_is_not_traced_again(place: str) -> None:
    """Whoever calls, and whatever else was called between."""
    from torch_xla.core.xla_builder import _jax_to_xla_computation_cache_elements as traced

    def call(rows: int, eps: float = 1e-5) -> None:
        kpt.ops.rms_norm(torch.ones(rows, 24).to(place), (24,), None, eps).cpu()

    call(5)
    before = traced()
    call(7)
    assert traced() == before + 1
    call(5), call(7)
    assert traced() == before + 1
    call(7, eps=1e-3)
    assert traced() == before + 2


def test_texts_of_one_name_are_told_apart(place: str) -> None:
    """Of the same shapes, too: what is traced for one activation is not the other's."""
    x, w = torch.randn(6, 24, generator=torch.Generator().manual_seed(8)), torch.eye(24)
    for activation, exact in (("relu", x.double().relu()), ("silu", torch.nn.functional.silu(x.double()))):
        y = kpt.ops.linear_act(x.to(place), w.to(place), activation=activation)
        assert_close(y.cpu(), exact, "f32", 24)


def test_modules_are_replaced(place: str) -> None:
    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.LayerNorm(24), torch.nn.Linear(24, 40), torch.nn.GELU(), torch.nn.RMSNorm(40))
    x = torch.randn(9, 24)
    exact = model.double()(x.double())
    model = model.float()
    kpt.replace_modules(model.to(place))
    before = served()
    y = model(x.to(place))
    y.sum().backward()
    assert set(served() - before) == {"pallas"}
    assert_close(y.detach().cpu(), exact.detach(), "f32", 40)
    assert all(p.grad is not None for p in model.parameters())


def test_a_language_model_trains_by_kernels(real: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(6)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=97, num_hidden_layers=1, **sizes))
    tokens = torch.randint(0, 97, (2, 11))
    exact = deepcopy(model).double()
    kpt.optimize(model.to(real), "balanced")
    before = served()
    found = model(tokens.to(real), labels=tokens.to(real)).loss
    found.backward()
    expected = exact(tokens, labels=tokens).loss
    expected.backward()
    assert_close(found.detach().cpu(), expected.detach(), "f32", 97)
    assert served() - before == {"pallas": 2 * 3 + 2 + 2}  # norms, attention, the gate, and their gradients
    for p, right in zip(model.parameters(), exact.parameters(), strict=True):
        assert_close(p.grad.cpu(), right.grad, "f32", 97)


def test_kernels_of_ones_own(real: str) -> None:
    x = torch.randn(20, 50, generator=torch.Generator().manual_seed(1))
    exact = x.double().requires_grad_()
    (exact.softmax(1) ** 2).sum().backward()
    out = torch.empty(20, 50, device=real)
    softmax(x.to(real), out)
    assert_close(out.cpu(), exact.detach().softmax(1), "f32", 50)
    given = x.to(real).requires_grad_()
    (softmax.torch(given) ** 2).sum().backward()
    assert given.grad is not None and exact.grad is not None
    assert_close(given.grad.cpu(), exact.grad, "f32", 50)


def test_nothing_runs_before_it_is_asked_for(real: str) -> None:
    import torch_xla
    from torch_xla.debug import metrics

    x = torch.randn(8, 24).to(real).requires_grad_()
    torch_xla.sync()

    def runs() -> int:
        data = metrics.metric_data("ExecuteTime")
        return data[0] if data else 0

    before = runs()
    kpt.ops.rms_norm(x, (24,)).sum().backward()
    assert runs() == before
    torch_xla.sync()
    torch_xla._XLAC._xla_wait_device_ops([])
    assert runs() > before


def test_what_comes_through_pytorchs_dispatcher(real: str) -> None:
    """It takes the wrappers of tensors off: under modes, autocast, torch.compile."""
    from torch.utils.flop_counter import FlopCounterMode

    generator = torch.Generator().manual_seed(2)
    x, w = torch.randn(20, 50, generator=generator), torch.randn(8, 50, generator=generator)
    given = x.to(real).requires_grad_()
    before = served()
    with FlopCounterMode(display=False) as counter:
        kpt.ops.linear_act(given, w.to(real), activation="gelu").sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 20 * 8 * 50
    exact = x.double().requires_grad_()
    torch.nn.functional.gelu(exact @ w.double().t()).sum().backward()
    assert given.grad is not None and exact.grad is not None
    assert_close(given.grad.cpu(), exact.grad, "f32", 50)
    with torch.autocast("xla", dtype=torch.bfloat16):
        assert kpt.ops.linear_act(given, w.to(real)).dtype == torch.bfloat16
    compiled = torch.compile(lambda x: kpt.ops.rms_norm(x, (50,)) * 2, backend="openxla", fullgraph=True)
    assert_close(compiled(x.to(real)).cpu(), torch.nn.functional.rms_norm(x.double(), (50,)) * 2, "f32", 50)
    assert set(served() - before) == {"pallas"}
