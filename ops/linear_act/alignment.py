"""Rows that begin at multiples of 16 bytes, as those of a head's logits of 50257 classes in half precision do not.

A GPU fetches tiles of such matrices a few bytes at a time, and none of them by its tensor memory accelerator. On an H200, 16384
rows, 768 features and 50257 classes (bfloat16, milliseconds): the product of the forward takes PyTorch 13.2, kpt's kernel 2.3,
and PyTorch for 50304 classes 1.8. The gradients of input and weight take PyTorch 8.9 and 8.3, kpt's kernels 4.8 and 4.2, of a
copy whose rows begin so 1.6 and 1.6, and the copy 1.8.
"""

import torch

from kpt.ops.devices import tpu

BYTES, LINE = 16, 128
"""Where rows must begin, and where they do in a copy: at a cache line, unless that makes short rows much longer."""

LONG, WIDE = 1 << 31, 128
"""Multiply-adds of a product that is worth a copy, and how many of them an element of the matrix must take part in."""

SHORT, FEW = 1 << 28, 8
"""Multiply-adds and features from which on kpt's product into rows that begin anywhere is worth its host's time: 16 rows, 768
features and 50257 classes take PyTorch 106 us, kpt 31; 16384 rows and 10 classes 22 and 15."""


def is_unaligned(columns: int) -> bool:
    """Whether dense rows of so many columns in half precision begin at no multiples of ``BYTES``."""
    return columns * 2 % BYTES > 0


def is_quicker(rows: int, features: int, inner: int) -> bool:
    """Whether kpt's product of (rows, inner) and (features, inner) in half precision is quicker than PyTorch's on a GPU, as far
    as that is a matter of alignment."""
    products = rows * features * inner
    if is_unaligned(inner):
        return products >= LONG and min(rows, features) >= WIDE
    return is_unaligned(features) and products >= SHORT and features >= FEW


def is_long(rows: int, features: int, inner: int) -> bool:
    """Whether the gradients of such a product are worth copies."""
    return rows * features * inner >= LONG and min(rows, features, inner) >= WIDE


def aligned(matrix: torch.Tensor, across: int) -> torch.Tensor:
    """The matrix, or a copy whose rows begin at multiples of ``BYTES`` of one in half precision, where a product with so many
    multiply-adds for each element gains more by that than the copy takes."""
    begins = matrix.storage_offset() | matrix.stride(0)
    return matrix if begins * matrix.itemsize % BYTES == 0 or not _gains(matrix, across) else _room(matrix).copy_(matrix)


def room_like(matrix: torch.Tensor, across: int) -> torch.Tensor:
    """Room for as many rows and columns, which begin so where such a product gains by it; else dense."""
    return _room(matrix) if _gains(matrix, across) else matrix.new_empty(matrix.shape)


def _gains(matrix: torch.Tensor, across: int) -> bool:
    enough = across >= WIDE and matrix.numel() * across >= LONG
    return enough and matrix.itemsize == 2 and tpu(matrix) is None


def _room(matrix: torch.Tensor) -> torch.Tensor:
    rows, columns = matrix.shape
    wide = LINE if columns * matrix.itemsize >= 8 * LINE else BYTES
    step = wide // matrix.itemsize
    return matrix.new_empty((rows, -(-columns // step) * step))[:, :columns]
