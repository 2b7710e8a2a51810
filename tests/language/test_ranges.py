"""kd.range: loops over numbers that are known leave copies of their bodies, as Python would run them."""

import re

import pytest
import torch

import kpt_dsl as kd
from tests.language.backends import BACKENDS, run


@kd.function
def first_above(x: kd.Value, limit: kd.Value, steps: kd.Value) -> kd.Value:
    """Returns from the middle of a loop."""
    for i in kd.range(steps):
        if i * i > limit:
            return x + i
    return x


@kd.kernel(x="M R N", y="M N", z="M")
def written_out(x: kd.In, y: kd.Out, z: kd.Out, steps: kd.Static) -> None:
    for m in kd.parallel(kd.tile("M")):
        total, largest, seen = kd.zeros([m, "N"]), kd.full([m], -kd.inf), 0
        for i in kd.range(steps):
            row = x[m, i, :].to(kd.f32)
            if i == 1:
                row = row * 2.0
            for j in kd.range(4, -1, -3):
                total += row * (i + 10 * j)
                seen = seen + 1
            largest = kd.maximum(largest, kd.max(row, axis=1))
        for i in kd.range(3, 1):
            total += kd.inf * i
        for n in kd.sequential(kd.tile("N")):
            for i in kd.range(1, 3):
                largest = kd.maximum(largest, kd.max(first_above(x[m, 0, n], i, 9), axis=1))
        y[m, :] = first_above(total, 8, 4) + seen
        z[m] = largest


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_as_python_runs_it(backend: str, steps: int) -> None:
    x = torch.randn(37, 3, 20)
    y, z = torch.empty(37, 20), torch.empty(37)
    run(written_out, backend, x, y, z, steps)
    rows = [x[:, i] * (2 if i == 1 else 1) for i in range(steps)]
    total = sum((row * (i + 10 * j) for i, row in enumerate(rows) for j in range(4, -1, -3)), torch.zeros(37, 20))
    torch.testing.assert_close(y, total + 3 + 2 * steps, atol=1e-4, rtol=1e-5)
    largest = torch.stack([(x[:, 0] + 2).amax(1), *(row.amax(1) for row in rows)]).amax(0)
    torch.testing.assert_close(z, largest)


def test_no_loop_is_left() -> None:
    shapes, dtypes = {"M": 8, "R": 3, "N": 64}, {"x": "f32", "y": "f32", "z": "f32"}
    text = kd.source(written_out, "nvidia-h200", shapes=shapes, dtypes=dtypes, steps=3)
    assert {line.split(" in ")[0] for line in text.splitlines() if re.match(r" +for ", line)} == {"    for n_start"}


@kd.kernel(x="M R N", y="M N")
def beyond(x: kd.In, y: kd.Out, steps: kd.Static) -> None:
    for m in kd.parallel("M"):
        total = kd.zeros(["N"])
        for i in kd.range(steps):
            total += x[m, i, :]
        y[m, :] = total


def test_its_number_is_a_literal_index() -> None:
    x, y = torch.rand(8, 3, 64), torch.empty(8, 64)
    beyond(x, y, 3)
    torch.testing.assert_close(y, x.sum(1))
    with pytest.raises(kd.IndexRangeError, match="index 3 of x"):
        beyond(x, y, 4)
