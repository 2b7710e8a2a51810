"""Rows that begin at multiples of 16 bytes, as those of a head's logits of 50257 classes in half precision do not.

A GPU fetches tiles of such matrices a few bytes at a time, and none of them by its tensor memory accelerator. On an H200, 16384
rows, 768 features and 50257 classes (bfloat16, milliseconds): the product of the forward takes PyTorch 13.2, kpt's kernel 2.3,
and PyTorch for 50304 classes 1.8. The gradients of input and weight take PyTorch 8.9 and 8.3, kpt's kernels 4.8 and 4.2, of a
copy whose rows begin so 1.6 and 1.6, and the copy 1.8.
"""

import torch

from kpt.ops.devices import tpu
from kpt_dsl import arrays

BYTES, LINE = arrays.ALIGNMENT, 128
"""Where rows must begin, and where they do in a copy: at a cache line, unless that makes short rows much longer."""

COPIED, WIDE = 1 << 31, 128
"""Multiply-adds of a product that is worth a copy, and how many of them an element of the matrix must take part in."""

SHORT, FEW, LONG = 1 << 28, 8, 1 << 33
"""When kpt's product is worth the host's time, beside PyTorch's: into rows of an unaligned number of features from ``SHORT``
multiply-adds and ``FEW`` features on (16 rows, 768 features and 50257 classes take PyTorch 106 us, kpt 31); with gradients, or
of rows that begin at an odd element themselves, from ``LONG`` on. Of 16384 rows, 768 features and 1001 classes a step takes
PyTorch's kernels 690 us and kpt's 240, but kpt's host 200 us more."""

EVEN = 4
"""By so much longer must it be with gradients where rows begin at even elements: PyTorch takes 350 us for 1004 classes."""


def is_unaligned(columns: int) -> bool:
    """Whether dense rows of so many columns in half precision begin at no multiples of ``BYTES``."""
    return columns * 2 % BYTES > 0


def may_be_slow(features: int, inner: int) -> bool:
    """Whether PyTorch's product of (rows, inner) and (features, inner) in half precision is slow on a GPU for how their rows
    begin. Where those that are multiplied begin at even elements, copies would take as long as they gain."""
    return features >= FEW and (inner % 2 > 0 or (is_unaligned(features) and not is_unaligned(inner)))


def is_quicker(rows: int, features: int, inner: int, trained: bool = False) -> bool:
    """Whether kpt's is quicker then, with gradients if it is ``trained``."""
    if not may_be_slow(features, inner):
        return False
    if not trained and inner % 2 == 0:
        return rows * features * inner >= SHORT
    least = LONG if inner % 2 or features % 2 else EVEN * LONG
    return rows * features * inner >= least and min(rows, features, inner) >= WIDE


def aligned(matrix: torch.Tensor, across: int) -> torch.Tensor:
    """The matrix, or a copy whose rows begin at multiples of ``BYTES`` of one in half precision, where a product with so many
    multiply-adds for each element gains more by that than the copy takes."""
    begin_so = arrays.aligned(matrix) and matrix.stride(0) * matrix.itemsize % BYTES == 0
    return matrix if begin_so or not _gains(matrix, across) else _room(matrix).copy_(matrix)


def room_like(matrix: torch.Tensor, across: int) -> torch.Tensor:
    """Room for as many rows and columns, which begin so where such a product gains by it; else dense."""
    return _room(matrix) if _gains(matrix, across) else matrix.new_empty(matrix.shape)


def _gains(matrix: torch.Tensor, across: int) -> bool:
    enough = across >= WIDE and matrix.numel() * across >= COPIED
    return enough and matrix.itemsize == 2 and tpu(matrix) is None


def _room(matrix: torch.Tensor) -> torch.Tensor:
    rows, columns = matrix.shape
    wide = LINE if columns * matrix.itemsize >= 8 * LINE else BYTES
    step = wide // matrix.itemsize
    return matrix.new_empty((rows, -(-columns // step) * step))[:, :columns]
