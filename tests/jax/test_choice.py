"""Who serves a call on JAX arrays: what is chosen, said, refused, and lowered for a TPU that is not there."""

import logging
from importlib import metadata, reload
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.jax.calls import CASES

jax = pytest.importorskip("jax")

import kpt  # noqa: E402
import kpt.jax  # noqa: E402
from autotune_db import environment, location, lookup  # noqa: E402
from autotune_db.key import key_of  # noqa: E402
from autotune_db.store import Store  # noqa: E402
from kpt.ops.registry import get  # noqa: E402
from kpt_dsl import configs as kd_configs  # noqa: E402
from kpt_dsl import targets  # noqa: E402
from kpt_dsl.errors import InputError, KptError, MissingPackageError  # noqa: E402
from kpt_dsl.runtime.pallas import on_abstract_tpu  # noqa: E402
from kpt_dsl.space import Config, space  # noqa: E402
from tests.jax.kernels import softmax  # noqa: E402

jnp = jax.numpy
X = jnp.ones((16, 256), "bfloat16")
V5E = "TPU v5 lite"


@pytest.mark.parametrize("name", CASES)
def test_ops_lower_for_a_tpu_with_their_gradients(name: str) -> None:
    """By Mosaic, unasked. Some kernels have no text for TPUs in some shapes; the op is then XLA's."""
    case = CASES[name]
    given = [jnp.asarray(a) if isinstance(a, np.ndarray) else a for a in case.arguments()]

    def total(*graded: Any) -> Any:
        arguments = dict(enumerate(given)) | dict(zip(case.graded, graded, strict=True))
        return sum(o.sum() for o in jax.tree.leaves(getattr(kpt.jax, case.op)(*arguments.values(), **case.options)))

    program = jax.jit(jax.grad(total, tuple(range(len(case.graded)))))
    with on_abstract_tpu(V5E, 1):
        text = jax.export.export(program, platforms=["tpu"])(*[given[p] for p in case.graded]).mlir_module()
    assert "tpu_custom_call" in text


def test_explain_says_who_serves() -> None:
    here = kpt.jax.explain("rms_norm", X, (256,))
    assert here.implementation == "reference"
    assert "passed over pallas: serves arrays on TPUs" in str(here)
    with kpt.jax.prefer("pallas"):
        asked = kpt.jax.explain("rms_norm", X, (256,))
    assert asked.implementation == "pallas"
    assert "rms_norm(input=bfloat16[16, 256], normalized_shape=(256,)" in str(asked)
    assert [k.kernel for k in asked.kernels] == ["rms_norm_fwd"]
    with pytest.raises(InputError, match=r"op 'rms' is unknown; kpt\.jax has add_layer_norm"):
        kpt.jax.explain("rms", X)


def test_what_was_tuned_for_a_tpu_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the TPU that a program is traced for, by what ``kpt-tune run --target`` stores; its backward's too."""
    target = targets.get("tpu-v5e")
    monkeypatch.setenv(location.VARIABLE, str(tmp_path / "configs.sqlite"))
    instances = [
        *get("rms_norm").instances({"M": 512, "N": 1024}, "bf16", target),
        *get("rms_norm_backward").instances({"M": 512, "N": 1024}, "bf16", target),
    ]
    configs = {}
    with Store() as store:
        for instance in instances:
            key = key_of(instance, target.name, "pallas", environment.compiler("pallas"))
            first = space(instance, target).first
            other = {name: value // 2 for name, value in first.items() if name == "block_M"}
            configs[instance.kernel.name] = Config(**{**first, **other})
            run = store.start_run(key, "predicted", {"device": target.name}, "2026-01-02T03:04:05+00:00")
            store.add_winner(run, configs[instance.kernel.name], 12.5, 20.0, instance.extents.dims)
    lookup.forget()
    x, w = jax.ShapeDtypeStruct((512, 1024), jnp.bfloat16), jax.ShapeDtypeStruct((1024,), jnp.bfloat16)
    asked: list[tuple[str, str]] = []
    choose = kd_configs.choose
    monkeypatch.setattr(
        kd_configs, "choose", lambda i, t: asked.append((i.kernel.name, choose(i, t)[1])) or choose(i, t)
    )
    with on_abstract_tpu(V5E, 1):
        (kernel,) = kpt.jax.explain("rms_norm", x, (1024,), w).kernels
        jax.eval_shape(jax.grad(lambda x, w: kpt.jax.rms_norm(x, (1024,), w).sum(), (0, 1)), x, w)
    lookup.forget()
    assert (kernel.provenance, kernel.config) == ("predicted", str(configs["rms_norm_fwd"]))
    assert {name: found for name, found in asked if name in configs} == dict.fromkeys(configs, "predicted")


def test_float16_on_a_tpu_goes_to_xla_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with on_abstract_tpu(V5E, 1):
        found = kpt.jax.explain("rms_norm", X.astype("float16"), (256,))
        with caplog.at_level(logging.WARNING, "kpt"):
            jax.eval_shape(lambda x: kpt.jax.gated_act(x, x, "silu"), X.astype("float16"))
        with kpt.jax.prefer("pallas"), pytest.raises(InputError, match="float16: give bfloat16 or float32"):
            jax.eval_shape(lambda x: kpt.jax.rms_norm(x, (256,)), X.astype("float16"))
    assert found.implementation == "reference"
    assert found.passed_over[0].expected
    assert "gated_act falls back to XLA's operations: TPUs do not compute in float16" in caplog.text


def test_a_shape_without_a_kernel_is_named_where_kernels_are_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    """And computed by XLA's operations where they are not, which is logged once."""
    x, target = jax.ShapeDtypeStruct((1300, 3_000_001), jnp.float32), jax.ShapeDtypeStruct((1300,), jnp.int32)
    with on_abstract_tpu(V5E, 1):
        with kpt.jax.prefer("pallas"), pytest.raises(KptError, match=r"no config of cross_entropy_fwd\[M=1300,N=3000001 "):
            jax.eval_shape(kpt.jax.cross_entropy, x, target)
        with caplog.at_level(logging.WARNING, "kpt"):
            for _ in range(2):
                jax.clear_caches()
                jax.eval_shape(kpt.jax.cross_entropy, x, target)
    assert caplog.text.count("cross_entropy falls back to XLA's operations: TargetError: no config of") == 1


@pytest.mark.parametrize("call", [lambda x: kpt.jax.rms_norm(x, (40,)), softmax.jax])
def test_a_length_that_is_left_open_is_named(call: Any) -> None:
    x = jax.ShapeDtypeStruct(jax.export.symbolic_shape("rows, 40"), jnp.float32)
    with pytest.raises(InputError, match=r"an array is traced as .*rows,40.*: export one program for each"):
        jax.export.export(jax.jit(call))(x)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: kpt.jax.rms_norm(torch.ones(2, 3), (3,)), r"was given a tensor, \(2, 3\), which kpt.ops takes"),
        (lambda: kpt.jax.rms_norm(X, (3,)), r"rms_norm: input is of shape \(16, 256\); accepted: a shape that ends with"),
        (lambda: kpt.jax.rms_norm(X.astype("int32"), (256,)), "rms_norm: input is of dtype torch.int32"),
        (lambda: kpt.jax.linear_act(X, X, activation="swoosh"), "swoosh"),
        (
            lambda: kpt.jax.flash_attention(
                jnp.ones((9, 2, 16)), jnp.ones((9, 2, 16)), jnp.ones((9, 2, 16)), cu_seqlens_q=jnp.array([0, 4, 9])
            ),
            "read numbers to do so .* give batches of one length",
        ),
    ],
)
def test_what_does_not_fit_is_named(call: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()


@pytest.mark.parametrize("name", ["triton", "numpy"])
def test_backends_of_tensors_serve_no_arrays(name: Any) -> None:
    with kpt.jax.prefer(name), pytest.raises(InputError, match=f"rms_norm: {name} is preferred, and serves no JAX arrays"):
        kpt.jax.rms_norm(X, (256,))


def test_a_gradient_is_not_differentiated_again_by_kernels() -> None:
    x = jnp.ones(8)

    def slope(x: Any) -> Any:
        return jax.grad(lambda x: kpt.jax.rms_norm(x[None], (8,)).sum())(x).sum()

    jax.grad(slope)(x)
    with kpt.jax.prefer("pallas"), pytest.raises(InputError, match='prefer\\("reference"\\)'):
        jax.grad(slope)(x)


def test_jax_that_is_too_old_or_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "0.9.2")
    with pytest.raises(MissingPackageError, match=r"kpt.jax needs JAX 0.10 or newer: pip install .*; 0.9.2 is installed"):
        reload(kpt.jax)

    def missing(_: str) -> str:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(MissingPackageError, match="it is not installed"):
        reload(kpt.jax)


def test_fp8() -> None:
    """By XLA's operations and by kernels the same numbers; those of PyTorch."""
    x, w = (np.random.default_rng(s).normal(size=(24, 32)).astype(np.float32) for s in (1, 2))
    expected, scale = kpt.ops.quantize_fp8(torch.tensor(x))
    for served in ("reference", "pallas"):
        with kpt.jax.prefer(served):
            a, scale_a = kpt.jax.quantize_fp8(jnp.asarray(x), "tensor", jnp.float8_e4m3fn)
            b, scale_b = kpt.jax.quantize_fp8(jnp.asarray(w))
            y = kpt.jax.fp8_matmul(a, b.T, scale_a, scale_b, out_dtype=jnp.float32)
        assert np.array_equal(np.asarray(a, np.float32), expected.float().numpy())
        assert float(scale_a) == float(scale)
        right = np.asarray(a, np.float64) @ np.asarray(b, np.float64).T * float(scale_a) * float(scale_b)
        assert np.abs(np.asarray(y) - right).max() <= 1e-5 * np.abs(right).max()
