"""Who serves calls on tensors of PyTorch/XLA: what is explained, refused, counted; and in which order JAX is imported."""

import re
import sys
from importlib import metadata
from types import ModuleType
from typing import Any

import pytest
import torch

import kpt
from kpt.ops.norms import TPU_ROWS, shares
from kpt_dsl.errors import InputError, KptError
from kpt_dsl.runtime import xla

V5E = "TPU v5 lite"


def test_explain_names_the_kernels(place: str) -> None:
    found = kpt.ops.explain("rms_norm", torch.ones(16, 256).to(place), (256,))
    assert found.implementation == "pallas"
    assert [kernel.kernel for kernel in found.kernels] == ["rms_norm_fwd"]
    with kpt.ops.prefer("reference"):
        assert kpt.ops.explain("rms_norm", torch.ones(16, 256).to(place), (256,)).implementation == "reference"


@pytest.mark.parametrize(
    ("kind", "dtype", "words"),
    [
        ("TPU v99", torch.float32, "no target describes the TPU 'TPU v99'; known are tpu-v4"),
        ("NVIDIA H200", torch.float32, "no target describes the TPU 'NVIDIA H200'"),
        (V5E, torch.float16, "TPUs do not compute in float16: give bfloat16 or float32"),
    ],
)
def test_where_no_kernel_runs_is_named(
    kind: str, dtype: torch.dtype, words: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And PyTorch serves, which is counted."""
    monkeypatch.setattr(xla, "_kind", lambda _: kind)
    x = torch.ones(3, 31, dtype=dtype).to(place)
    kpt.ops.rms_norm(x, (31,)).cpu()
    assert any(words in reason for reason in kpt.ops.counters()["rms_norm"]["fallbacks"])
    with kpt.ops.prefer("pallas"), pytest.raises(InputError, match="rms_norm: pallas is preferred but cannot serve"):
        kpt.ops.rms_norm(x, (31,))


def packed(place: str) -> None:
    x = torch.ones(9, 2, 16).to(place)
    kpt.ops.flash_attention(x, x, x, cu_seqlens_q=torch.tensor([0, 4, 9], dtype=torch.int32).to(place))


def wide(place: str) -> None:
    kpt.ops.cross_entropy(torch.ones(2, 3_000_001).to(place), torch.tensor([1, 2]).to(place))


@pytest.mark.parametrize(
    ("call", "op", "words"),
    [
        (packed, "flash_attention", "tiles .* begin where query_ends says, but blocks of a TPU at multiples of their size"),
        (wide, "cross_entropy", r"no config of cross_entropy_fwd\[M=2,N=3000001 .* is legal on tpu-v6e"),
    ],
)
def test_a_shape_that_no_text_serves_is_named(call: Any, op: str, words: str, place: str) -> None:
    """And PyTorch serves it. The CPU stands for a v6e."""
    call(place)
    assert any(re.search(words, reason) for reason in kpt.ops.counters()[op]["fallbacks"])
    with kpt.ops.prefer("pallas"), pytest.raises(KptError, match=words):
        call(place)


@pytest.mark.parametrize(
    ("found", "through", "words"),
    [
        ("0.6.2", (), "tensors on .* need JAX 0.7 or newer: pip install 'torch_xla.pallas.' flax; 0.6.2 is installed"),
        (None, (), "flax; it is not installed"),
        ("0.7.1", ("torchax_of_nobody",), "torchax_of_nobody is not installed"),
    ],
)
def test_jax_that_cannot_be_called_is_named(
    found: str | None, through: Any, words: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(xla, "CALLED_THROUGH", through)
    with kpt.ops.prefer("pallas"), pytest.raises(InputError, match=words):
        kpt.ops.rms_norm(torch.ones(3, 33).to(place), (33,))


def test_rows_are_shared_out_as_on_a_tpu(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many shares as its cores have programs, of a tile of half precision or more."""
    monkeypatch.setattr(xla, "is_xla", lambda array: isinstance(array, torch.Tensor))
    kinds = []
    for kind in (V5E, "TPU v4"):
        monkeypatch.setattr(xla, "_kind", lambda _, kind=kind: kind)
        kinds.append(shares(torch.empty(4096, 1024, device="meta"), held=True))
        assert shares(torch.empty(3 * TPU_ROWS - 1, 1024, device="meta"), held=True) <= 2
    one, two = kinds
    assert two == 2 * one > 0


def test_a_whole_number_of_64_bits_is_the_nearest_of_32() -> None:
    given = torch.tensor([-(2**40), -1, 0, 2**31 - 1, 2**31, 2**63 - 1])
    assert xla._narrowed(given).tolist() == [-(2**31), -1, 0, 2**31 - 1, 2**31 - 1, 2**31 - 1]
    assert xla._narrowed(given).dtype == torch.int32


def test_pytorch_xla_takes_the_device_before_jax_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bool] = []
    workarounds = ModuleType("torch_xla._internal.jax_workarounds")
    workarounds.jax_import_guard = lambda: taken.append("jax" in sys.modules)  # type: ignore[attr-defined]
    for name in ("torch_xla", "torch_xla._internal"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, workarounds.__name__, workarounds)
    monkeypatch.setitem(sys.modules, "jax", ModuleType("jax"))
    xla.guard_import()
    assert not taken
    monkeypatch.delitem(sys.modules, "jax")
    xla.guard_import()
    assert taken == [False]
