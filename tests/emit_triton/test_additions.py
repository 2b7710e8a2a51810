"""``out[...] += value``: programs that add to one place, on every backend that has them, and what those without say."""

from typing import Any

import numpy as np
import pytest
import torch

import kpt_dsl as kd
from kpt_dsl import ir, runtime, targets
from kpt_dsl.emit import emit
from kpt_dsl.instance import Instance
from kpt_dsl.passes import padding, pipeline
from kpt_dsl.printer import format_kernel
from kpt_dsl.runtime.numpy import run as run_numpy
from kpt_dsl.space import Config, space
from tests.tolerances import assert_close

H200 = targets.get("nvidia-h200")


@kd.kernel(x="M K", y="N K", sums="M K", total="K", diagonal="M N")
def both_ways(x: kd.In, y: kd.In, sums: kd.Out, total: kd.Out, diagonal: kd.Out) -> None:
    """Rows that every tile of N adds to, a vector that all programs add to, and a part of a loop below a diagonal."""
    for n in kd.parallel(kd.tile("N")):
        for m in kd.sequential(kd.tile("M"), start=n.start):
            s = kd.where(m.index[:, None] >= n.index[None, :], kd.dot(x[m, :], y[n, :].T), 0.0)
            sums[m, :] += kd.dot(s, y[n, :])
            diagonal[m, n] += s
        total[:] += kd.sum(y[n, :].to(kd.f32), axis=0)


def arguments(M: int, N: int, K: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(M + N)
    x, y = (torch.randn(n, K, generator=generator) for n in (M, N))
    held = {"sums": torch.full((M, K), 2.0), "total": torch.full((K,), -1.0), "diagonal": torch.zeros(M, N)}
    return {"x": x, "y": y} | held


def expected(given: dict[str, Any]) -> dict[str, torch.Tensor]:
    x, y = given["x"].double(), given["y"].double()
    s = torch.tril(x @ y.T)
    return {"sums": 2 + s @ y, "total": -1 + y.sum(0), "diagonal": s}


SHAPES = [(1, 1, 16), (37, 50, 16), (130, 70, 40), (64, 64, 32)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", ["numpy", "triton"])
@pytest.mark.parametrize("blocks", [(16, 16), (32, 64)])
def test_what_is_there_is_added_to(backend: str, shape: tuple[int, int, int], blocks: tuple[int, int]) -> None:
    given = arguments(*shape)
    wanted = expected(given)
    config = Config(block_M=blocks[0], block_N=blocks[1], num_warps=4, num_stages=1, descriptors=True)
    runtime.run(Instance.bind(both_ways, given), given, config, backend)
    for name, want in wanted.items():
        assert_close(given[name], want, "f32", shape[1] * shape[2])


def test_float64() -> None:
    given = arguments(37, 50, 16)
    outputs = {name: given[name].double().numpy().copy() for name in ("sums", "total", "diagonal")}
    run_numpy(Instance.bind(both_ways, given), given | outputs, Config(block_M=7, block_N=11), precision="f64")
    for name, want in expected(given).items():
        np.testing.assert_allclose(outputs[name], want.numpy(), rtol=1e-12, atol=1e-12)


def instance(M: int = 64, N: int = 64) -> Instance:
    dtypes = dict.fromkeys(both_ways.tensors, "f32") | {"x": "bf16", "y": "bf16"}
    return Instance.of_shapes(both_ways, {"M": M, "N": N, "K": 64}, dtypes)


def test_the_text_of_an_addition() -> None:
    assert "sums[m, :] += dot(bf16(s), y[n, :])" in format_kernel(instance().lower())
    assert "sums[m, :] += " in emit(instance(), targets.get("cpu"), Config(block_M=16, block_N=16)).text
    text = emit(instance(), H200, space(instance(), H200).first).text
    assert text.count("tl.atomic_add(") >= 3
    assert 'sem="relaxed"' in text
    assert "_desc.store" not in text  # a descriptor would write over what is there
    ragged = emit(instance(M=37), H200, Config(block_M=16, block_N=16, num_warps=4, num_stages=2, descriptors=True)).text
    assert "mask=m_valid[:, None]" in ragged


@pytest.mark.parametrize("target", ["nvidia-a100", "nvidia-h200", "nvidia-b200", "amd-mi300x"])
def test_it_compiles(target: str) -> None:
    from kpt_dsl import build

    chip = targets.get(target)
    report = build.compile(instance(256, 256), chip, space(instance(256, 256), chip).first)
    assert report.registers


def test_a_tpu_has_no_such_thing() -> None:
    v6e = targets.get("tpu-v6e")
    with pytest.raises(kd.TargetError, match=r"both_ways adds to sums \(line \d+\); on a TPU an output has one writer"):
        emit(instance(), v6e, Config(block_M=64, block_N=64))
    reason = space(instance(), v6e).why_illegal({"block_M": 64, "block_N": 64, "unroll_M": 1})
    assert reason == "several programs add to sums, diagonal, total; on tpu-v6e an output has one writer"
    with pytest.raises(kd.TargetError, match="no config of both_ways"):
        _ = space(instance(), v6e).first


def test_it_is_not_shared_out_among_warps() -> None:
    assert pipeline.why_not(padding.guard(instance().lower(), lambda axis: False)) == "it adds to an output"


def test_passes_keep_additions() -> None:
    from kpt_dsl.passes.split import split_masks

    kernel = split_masks(padding.guard(instance().lower(), lambda axis: True))
    stores = [s for s in ir.statements(kernel.body) if isinstance(s, ir.Store)]
    assert len(stores) > 3
    assert all(s.add for s in stores)
    along_m = [any(axis.tile == "m" for axis in s.masked) for s in stores if s.tensor == "sums"]
    assert set(along_m) == {True, False}  # at the edges, and inside
