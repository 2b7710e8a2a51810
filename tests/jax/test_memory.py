"""Arrays behind tensors without memory: views of any strides read and write what the tensors' own would."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

jax = pytest.importorskip("jax")

from kpt.jax.memory import Memory  # noqa: E402

VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "whole": lambda t: t,
    "transposed": lambda t: t.transpose(0, 1),
    "a part": lambda t: t[1:3, 2:5],
    "every other column": lambda t: t[:, ::2],
    "every third column": lambda t: t[..., ::3],
    "a row": lambda t: t[1],
    "a column": lambda t: t[:, 3],
    "one element": lambda t: t.view(-1)[5],
    "halves turned": lambda t: t.unflatten(1, (2, 4))[..., 1:3].permute(2, 0, 1),
    "some rows of the transposed": lambda t: t.T[2:7:2],
    "across rows": lambda t: t.view(-1)[3:17],
    "flat": lambda t: t.view(-1),
    "units": lambda t: t[2:3, :1],
    "no columns": lambda t: t[:, :0],
    "nothing behind the last row": lambda t: t[4:, 8:],
    "no rows, behind the last": lambda t: t[4:],
}


@pytest.mark.parametrize("name", VIEWS)
def test_views(name: str) -> None:
    values = np.random.default_rng(5).normal(size=(4, 8)).astype(np.float32)
    memory, known = Memory(), torch.tensor(values)
    tensor = memory.enter(jax.numpy.asarray(values))
    view, right = VIEWS[name](tensor), VIEWS[name](known)
    assert np.array_equal(memory.read(view), right.numpy())
    new = np.arange(right.numel(), dtype=np.float32).reshape(right.shape)
    memory.write(view, new)
    right.copy_(torch.tensor(new))
    assert np.array_equal(memory.read(tensor), known.numpy())


def test_expanded_and_uneven_strides_are_read() -> None:
    values = np.arange(32, dtype=np.float32).reshape(4, 8)
    memory = Memory()
    tensor = memory.enter(jax.numpy.asarray(values))
    assert np.array_equal(memory.read(tensor[:, None].expand(-1, 3, -1)), np.repeat(values[:, None], 3, 1))
    uneven = memory.read(torch.as_strided(tensor, (3, 4), (3, 5), 2))
    assert np.array_equal(uneven, torch.as_strided(torch.tensor(values), (3, 4), (3, 5), 2).numpy())


def test_a_part_of_new_room_is_written() -> None:
    memory, room = Memory(), torch.empty(6, device="meta")
    memory.write(room[2:4], np.ones(2))
    assert np.array_equal(memory.read(room), [0, 0, 1, 1, 0, 0])
    assert memory.holds(room[:1])


def test_what_is_written_is_broadcast_and_rounded() -> None:
    memory, room = Memory(), torch.empty(2, 3, dtype=torch.bfloat16, device="meta")
    memory.write(room, 1.0 + 2.0**-10)
    assert memory.read(room).dtype == "bfloat16"
    assert np.array_equal(memory.read(room).astype("float32"), np.ones((2, 3)))
