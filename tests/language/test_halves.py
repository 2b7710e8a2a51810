"""kd.split and kd.join, and stores to parts of one output: rotations of pairs, in either order of memory, on every backend."""

from pathlib import Path

import pytest
import torch

import kpt_dsl as kd
from kpt_dsl import targets
from kpt_dsl.emit import emit
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config
from tests.language.backends import BACKENDS, run
from tests.language.snippets import lower


@kd.function
def turned(a: kd.Value, b: kd.Value, cosine: kd.Value, sine: kd.Value) -> kd.Value:
    return a * cosine - b * sine, b * cosine + a * sine


@kd.kernel(x="T H P R", sine="T P", cosine="T P", y="T H P R")
def interleaved(x: kd.In, sine: kd.In, cosine: kd.In, y: kd.Out) -> None:
    for h, t in kd.parallel("H", kd.tile("T")):
        a, b = kd.split(x[t, h, :, :])
        low, high = turned(a, b, cosine[t, :], sine[t, :])
        y[t, h, :, :] = kd.join(low, high, "R")


@kd.kernel(x="T H R P", sine="T P", cosine="T P", y="T H R P")
def in_halves(x: kd.In, sine: kd.In, cosine: kd.In, y: kd.Out) -> None:
    for h, t in kd.parallel("H", kd.tile("T")):
        low, high = turned(x[t, h, 0, :], x[t, h, 1, :], cosine[t, :], sine[t, :])
        y[t, h, 0, :] = low
        y[t, h, 1, :] = high


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pairs", [1, 19, 64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rotations(backend: str, pairs: int, dtype: torch.dtype) -> None:
    x, angle = torch.randn(37, 3, pairs, 2).to(dtype), torch.randn(37, pairs)
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]
    expected = torch.view_as_real(torch.view_as_complex(x.float()) * turn).to(dtype)
    sine, cosine = angle.sin(), angle.cos()
    y = torch.full_like(x, torch.nan)
    run(interleaved, backend, x, sine, cosine, y)
    torch.testing.assert_close(y, expected)
    halves, z = x.transpose(2, 3).contiguous(), torch.full_like(x.transpose(2, 3), torch.nan).contiguous()
    run(in_halves, backend, halves, sine, cosine, z)
    torch.testing.assert_close(z, expected.transpose(2, 3))


@kd.kernel(x="M N R", y="M N", z="M N R", total="M R", sums="M R", span="M")
def computed(x: kd.In, y: kd.Out, z: kd.Out, total: kd.Out, sums: kd.Out, span: kd.Out) -> None:
    """Halves of what is computed with whole tiles, by axes that broadcast, and of joined ones; sums beside both."""
    for m in kd.parallel(kd.tile("M")):
        whole = x[m, :, :] * 2.0 + kd.index("R")[None, None, :]
        first, second = kd.split(kd.where(whole > 1.0, whole, kd.index("N")[None, :, None].to(kd.f32)))
        y[m, :] = first - second
        both = kd.join(second, kd.maximum(first, 0.0), "R")
        z[m, :, :] = both + 1.0
        low, high = kd.split(both * 3.0)
        total[m, 0] = kd.sum(low, axis=1)
        total[m, 1] = kd.max(high, axis=1)
        sums[m, :] = kd.sum(kd.join(x[m, :, 0], x[m, :, 1] + 1.0, "R"), axis=1)
        least, most = kd.split(kd.min(x[m, :, :], axis=1))
        span[m] = most - least


@pytest.mark.parametrize("backend", BACKENDS)
def test_around_them(backend: str) -> None:
    x = torch.randn(21, 37, 2)
    y, z, total, sums, span = torch.empty(21, 37), torch.empty_like(x), torch.empty(21, 2), torch.empty(21, 2), torch.empty(21)
    run(computed, backend, x, y, z, total, sums, span)
    whole = x * 2 + torch.arange(2)
    whole = torch.where(whole > 1, whole, torch.arange(37.0)[:, None])
    both = torch.stack([whole[..., 1], whole[..., 0].clamp(min=0)], -1)
    torch.testing.assert_close(y, whole[..., 0] - whole[..., 1])
    torch.testing.assert_close(z, both + 1)
    torch.testing.assert_close(sums, x.sum(1) + torch.tensor([0, 37]), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(span, x[..., 1].amin(1) - x[..., 0].amin(1))
    torch.testing.assert_close(total, torch.stack([both[..., 0].sum(1) * 3, both[..., 1].amax(1) * 3], -1))


@kd.kernel(q="B N R", y="B N R", total="B R")
def in_a_loop(q: kd.In, y: kd.Out, total: kd.Out) -> None:
    """Whole numbers, in tiles with one axis beside that of two."""
    for b in kd.parallel("B"):
        most, least = kd.full([], 0, kd.i32), kd.full([], 99, kd.i32)
        for n in kd.sequential(kd.tile("N")):
            low, high = kd.split(q[b, n, :])
            most, least = kd.maximum(most, kd.max(high, axis=0)), kd.minimum(least, kd.min(low, axis=0))
            y[b, n, :] = kd.join(high, low + 1, "R")
        total[b, 0] = least
        total[b, 1] = most


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_a_loop(backend: str) -> None:
    q = torch.randint(1, 99, (3, 300, 2)).to(torch.uint8)
    y, total = torch.zeros(3, 300, 2, dtype=torch.int32), torch.zeros(3, 2, dtype=torch.int32)
    run(in_a_loop, backend, q, y, total, block_N=128)
    assert torch.equal(y, q.flip(2).int() + torch.tensor([0, 1]))
    assert total.tolist() == [[int(row[:, 0].min()), int(row[:, 1].max())] for row in q]


def test_one_load_and_one_store() -> None:
    dtypes = dict.fromkeys(interleaved.tensors, "bf16")
    text = kd.source(interleaved, "nvidia-h200", shapes={"T": 4096, "H": 32, "P": 64, "R": 2}, dtypes=dtypes)
    assert text.count("x_base +") == text.count("tl.store(") == text.count("tl.join(") == 1


@pytest.mark.parametrize("kernel", [interleaved, in_halves])
@pytest.mark.parametrize("target", ["nvidia-h200", "amd-mi300x", "tpu-v6e"])
def test_they_compile(target: str, kernel: kd.Kernel) -> None:
    dtypes = dict.fromkeys(kernel.tensors, "bf16") | {"sine": "f32", "cosine": "f32"}
    report = kd.compile(kernel, target=target, shapes={"T": 1000, "H": 8, "P": 64, "R": 2}, dtypes=dtypes)
    assert not report.spills


def test_of_three() -> None:
    x = torch.rand(5, 4, 8, 3)
    with pytest.raises(kd.InputError, match=r"interleaved: kd.split along R, whose extent is 3, not 2"):
        interleaved(x, x[:, 0, :, 0], x[:, 0, :, 0], torch.empty_like(x))


@kd.kernel(x="M N R", y="M R N")
def no_halves(x: kd.In, y: kd.Out, way: kd.Static) -> None:
    for m in kd.parallel(kd.tile("M")):
        a = x[m, :, 0]
        if way == "carried":
            carried = kd.zeros([m, "R"])
            for n in kd.sequential("N"):
                carried += x[m, n, :]
            low, high = kd.split(carried)
            a = (low + high)[:, None] + a
        elif way == "joined":
            a = kd.max(kd.join(a, x[m, :, 1], "R"), axis=2)
        y[m, 0, :] = a
        if way != "one":
            y[m, 1, :] = a


WAYS = {
    "carried": (2, "kd.split of what is carried or multiplied"),
    "joined": (2, "kd.join of what is not stored"),
    "some": (3, "no_halves stores y at 2 indices of R"),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_a_tpu_has_no_form_for_is_named(way: str) -> None:
    extent, told = WAYS[way]
    dims = {"M": 16, "N": 128, "R": extent}
    instance = Instance.of_shapes(no_halves, dims, {"x": "f32", "y": "f32"}, statics={"way": way})
    with pytest.raises(kd.TargetError, match=rf"{told} \(line \d+\)"):
        emit(instance, targets.get("tpu-v6e"), Config(block_M=8))
    x, y = torch.rand(16, 128, extent), torch.zeros(16, extent, 128)
    no_halves(x, y, way)
    assert y[:, :2].all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_part_leaves_the_others(backend: str) -> None:
    x, y = torch.rand(16, 128, 2), torch.full((16, 2, 128), 7.0)
    no_halves(x, y, "one", backend=backend)
    assert torch.equal(y[:, 0], x[:, :, 0])
    assert (y[:, 1] == 7).all()


MISTAKES = {
    "a, b = kd.split(w[:])": "whose last axis is a whole dim, beside others, but got bf16[N]",
    "a, b = kd.split(x[m, :].T)": "but got bf16[N, m]",
    "a = kd.join(x[m, :], w[:], 'N')": "two tiles of one shape with one or two axes, but got f32[m, N] and f32[N]",
    "a = kd.join(eps, eps, 'N')": "but got f32 and f32",
    "a = kd.join(w[:], w[:], 'Q')": "'Q' is not a dim",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes(line: str, tmp_path: Path) -> None:
    with pytest.raises(kd.KernelError) as caught:
        lower(tmp_path, f"for m in kd.parallel(kd.tile('M')):\n    {line}")
    assert MISTAKES[line] in str(caught.value)
