"""Ugly tensors: any storage order, odd strides, misaligned bases, and NaN all around, so that a stray read or write shows.

Everything is a function of plain numbers and a seed; tensors are torch's, on the CPU. Knows no kernel.
"""

from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import numpy as np
import torch
from numpy.typing import NDArray

TORCH = {
    "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "i32": torch.int32,
    "f8e4m3": torch.float8_e4m3fn, "f8e5m2": torch.float8_e5m2,
}  # fmt: skip

_FP8_NAN = 0x7F
"""A NaN of both fp8 types."""


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in memory: ``order`` lists its dims from the slowest to the fastest, ``gap`` elements of NaN stand
    before and behind each dim."""

    order: tuple[int, ...]
    gap: int = 0


TIDY = st.sampled_from([16, 32, 64, 128, 256])
"""Extents that tiles divide: no mask is needed, and tensor descriptors can be used."""


def or_tidy(draw: st.DrawFn, ugly: st.SearchStrategy[int]) -> st.SearchStrategy[int]:
    """A strategy of extents for all dims of one case: ugly ones, and tidy ones in a quarter of the cases."""
    return draw(st.sampled_from([ugly, ugly, ugly, TIDY]))


def layouts(rank: int, *orders: tuple[int, ...]) -> st.SearchStrategy[Layout]:
    """Contiguous half of the time; else one of the orders (default: contiguous), with gaps or without."""
    plain = tuple(range(rank))
    return st.just(Layout(plain)) | st.builds(Layout, st.sampled_from([plain, *orders]), st.sampled_from([0, 1, 3]))


def place(values: NDArray[np.float64], dtype: str, layout: Layout) -> torch.Tensor:
    """The values as a tensor of this dtype and layout, inside a buffer of NaN (of zeros for integers)."""
    tensor = empty(values.shape, dtype, layout)
    tensor.copy_(torch.from_numpy(np.ascontiguousarray(values)).to(TORCH[dtype]))
    return tensor


def empty(shape: tuple[int, ...], dtype: str, layout: Layout) -> torch.Tensor:
    """A tensor of NaN of this layout inside a buffer of NaN: what an output looks like before a kernel writes it."""
    storage = [shape[d] + 2 * layout.gap for d in layout.order]
    if dtype.startswith("f8"):
        buffer = torch.full(storage, _FP8_NAN, dtype=torch.uint8).view(TORCH[dtype])
    else:
        buffer = torch.full(storage, 0 if dtype == "i32" else float("nan"), dtype=TORCH[dtype])
    for axis, dim in enumerate(layout.order):
        buffer = buffer.narrow(axis, layout.gap, shape[dim])
    return buffer.permute([layout.order.index(d) for d in range(len(shape))])


def to_device(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """The tensor with its whole buffer on a device, at the same strides and offset."""
    storage = tensor.untyped_storage()
    whole = torch.empty(0, dtype=tensor.dtype).set_(storage, 0, (storage.nbytes() // tensor.element_size(),), (1,))
    return whole.to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def assert_untouched_outside(tensor: torch.Tensor, name: str) -> None:
    """Fails unless the buffer around an output still holds the NaN that it was made of."""
    whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    storage = tensor.untyped_storage()
    whole = whole.set_(storage, 0, (storage.nbytes() // tensor.element_size(),), (1,))
    inside = torch.zeros(whole.shape, dtype=torch.bool, device=tensor.device)
    inside.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).fill_(True)
    written = ~whole.float().isnan() & ~inside
    assert not written.any(), f"{name}: {int(written.sum())} elements outside of the tensor were written"


def random(seed: int, shape: tuple[int, ...], magnitude: float = 1.0, centre: float = 0.0) -> NDArray[np.float64]:
    """Normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape) * magnitude + centre


def exact(tensor: Any) -> NDArray[np.float64]:
    """What a tensor holds, in float64."""
    return np.asarray(tensor.detach().cpu().double().numpy())
