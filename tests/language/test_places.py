"""kd.argmax and kd.argmin: torch's answers, ties and NaN included, along whole dims and tiles, whatever lies in the padding."""

import pytest
import torch

import kpt_dsl as kd
from tests.language.backends import BACKENDS, run

NAN, INF = float("nan"), float("inf")


@kd.kernel(x="M N", high="M", low="M", sure="M")
def places(x: kd.In, high: kd.Out, low: kd.Out, sure: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        high[m] = kd.argmax(x[m, :], axis=1)
        low[m] = kd.argmin(x[m, :] * 1.0, axis=-1) + 1
        row = kd.where(x[m, :] == x[m, :], x[m, :], -kd.inf)
        sure[m] = kd.argmax(row, axis=1)


@kd.kernel(x="M N", down="N")
def columns(x: kd.In, down: kd.Out) -> None:
    for n in kd.parallel(kd.tile("N")):
        down[n] = kd.argmin(x[:, n], axis=0)


@kd.kernel(x="M N", high="M")
def online(x: kd.In, high: kd.Out) -> None:
    for m in kd.parallel(kd.tile("M")):
        top, at = kd.full([m], -kd.inf), kd.full([m], 0, kd.i32)
        for n in kd.sequential(kd.tile("N")):
            here = kd.max(x[m, n], axis=1)
            at = kd.where(here > top, kd.argmax(x[m, n], axis=1), at)
            top = kd.maximum(top, here)
        high[m] = at


def ugly(rows: int, extent: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows with ties, of one number, of infinities, of negative ones, with NaN in one or two places."""
    x = torch.randint(-3, 3, (rows, extent)).float()
    x[0], x[1], x[2], x[3] = -7.0, -INF, INF, -1.0 - torch.arange(extent) % 3
    x[4, extent // 2 :] = NAN
    x[5, -1], x[6, 0] = NAN, NAN
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("extent", [1, 37, 128])
@pytest.mark.parametrize("backend", BACKENDS)
def test_of_rows_and_columns(backend: str, extent: int, dtype: torch.dtype) -> None:
    x = ugly(19, extent, dtype)
    high, low, sure = torch.full((3, 19), -1, dtype=torch.int32)
    run(places, backend, x, high, low, sure)
    assert high.tolist() == x.argmax(1).tolist()
    assert low.tolist() == (x.argmin(1) + 1).tolist()
    assert sure.tolist() == x.nan_to_num(-INF, INF, -INF).argmax(1).tolist()
    down = torch.full((19,), -1, dtype=torch.int32)
    run(columns, backend, x.T.contiguous(), down)
    assert down.tolist() == x.argmin(1).tolist()


@pytest.mark.parametrize("block", [16, 128])
@pytest.mark.parametrize("backend", BACKENDS)
def test_in_a_loop_it_is_the_index_in_the_dim(backend: str, block: int) -> None:
    x, high = ugly(19, 300)[[0, 1, 2, 3, 7, 8, 9, 10]], torch.empty(8, dtype=torch.int32)
    run(online, backend, x, high, block_N=128 if backend == "pallas" else block)
    assert high.tolist() == x.argmax(1).tolist()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
@pytest.mark.parametrize("backend", BACKENDS)
def test_of_whole_numbers(backend: str, dtype: torch.dtype) -> None:
    if backend == "pallas" and dtype == torch.int64:
        pytest.skip("a TPU computes with no int64")
    x = torch.randint(0, 9, (37, 19)).to(dtype)
    if dtype != torch.uint8:
        x[0], x[1, 3] = torch.iinfo(dtype).min, torch.iinfo(dtype).min
    down = torch.empty(19, dtype=torch.int32)
    run(columns, backend, x, down)
    assert down.tolist() == x.argmin(0).tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_no_elements(backend: str) -> None:
    high, low, sure = torch.zeros(3, 5, dtype=torch.int32)
    run(places, backend, torch.empty(5, 0), high, low, sure)
    assert high.tolist() == [2**31 - 1] * 5
