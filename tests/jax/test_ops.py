"""Every op on JAX arrays, with its gradients, by XLA's operations and by the interpreted kernels, against float64."""

from typing import Any, NoReturn

import ml_dtypes  # noqa: F401 (NumPy's bfloat16)
import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.jax.calls import CASES, Case, cosines, in_float64, loss
from tests.tolerances import assert_close

jax = pytest.importorskip("jax")

import kpt.jax  # noqa: E402
from kpt_dsl.runtime.pallas import INTERPRETING  # noqa: E402

QUICK = {"xla_backend_optimization_level": INTERPRETING["xla_backend_optimization_level"]}
"""Compiling takes most of the time of these tests."""


def on_arrays(case: Case, served: str) -> tuple[tuple[Any, ...], list[Any]]:
    """The outputs, and the gradients of ``loss``, in one program."""
    given = [jax.numpy.asarray(a) if isinstance(a, np.ndarray) else a for a in case.arguments()]

    def run(*graded: Any) -> tuple[Any, Any]:
        arguments = dict(enumerate(given)) | dict(zip(case.graded, graded, strict=True))
        outputs = getattr(kpt.jax, case.op)(*arguments.values(), **case.options)
        return loss(outputs, lambda shape: jax.numpy.asarray(cosines(shape), "float32")), outputs

    places = tuple(range(len(case.graded)))
    program = jax.jit(jax.value_and_grad(run, places, has_aux=True), compiler_options=QUICK)
    graded = [given[p] for p in case.graded]
    with kpt.jax.prefer(served):
        traced = program.trace(*graded)
    assert ("kpt_launch" in str(traced.jaxpr)) == (served == "pallas")
    (_, outputs), gradients = traced.lower().compile()(*graded)
    return outputs if isinstance(outputs, tuple) else (outputs,), gradients


@pytest.mark.parametrize("served", ["reference", "pallas"])
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients(name: str, served: str) -> None:
    case = CASES[name]
    outputs, gradients = on_arrays(case, served)
    expected, wanted = in_float64(case)
    assert len(outputs) == len(expected)
    for got, right in (*zip(outputs, expected, strict=True), *zip(gradients, wanted, strict=True)):
        assert_close(got, right, "f32", case.length)


@pytest.mark.parametrize("served", ["reference", "pallas"])
def test_half_precision(served: str) -> None:
    """Statistics are float32, and each result is rounded once, to the type of what it belongs to."""
    x, w = (np.random.default_rng(s).normal(size=n).astype("bfloat16") for s, n in ((1, (17, 70)), (2, (70,))))
    with kpt.jax.prefer(served):
        y, pull = jax.vjp(lambda x, w: kpt.jax.rms_norm(x, (70,), w, 1e-5), jax.numpy.asarray(x), jax.numpy.asarray(w))
        dx, dw = pull(y)
    assert {y.dtype, dx.dtype, dw.dtype} == {jax.numpy.dtype("bfloat16")}
    wide, weight = (torch.tensor(a.astype(np.float64), requires_grad=True) for a in (x, w))
    expected = torch.nn.functional.rms_norm(wide, (70,), weight, 1e-5)
    expected.backward(torch.tensor(np.asarray(y).astype(np.float64)))
    for got, right in ((y, expected), (dx, wide.grad), (dw, weight.grad)):
        assert_close(got, right, "bf16", 70)


def refuse(_: Any, function: Any, *rest: Any) -> NoReturn:
    raise AssertionError(function)


@pytest.mark.parametrize("mode", [TorchDispatchMode, TorchFunctionMode])
def test_modes_of_the_caller_see_no_tensors(mode: Any) -> None:
    """Those of torchax would make tensors of their own of ours without memory."""
    refuses = type("Refuses", (mode,), dict.fromkeys(("__torch_dispatch__", "__torch_function__"), refuse))
    x = jax.ShapeDtypeStruct((3, 40), "float32")
    with refuses(), kpt.jax.prefer("pallas"):
        jax.eval_shape(jax.grad(lambda x: kpt.jax.rms_norm(x, (40,)).sum()), x)
