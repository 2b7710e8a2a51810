"""The layout class of a tensor: what about its strides and base address decides which config is fast, in a word or two.

Knows strides and dtypes only, no array library.
"""

import math
from collections.abc import Sequence

from kpt_dsl.dtypes import dtype

VECTOR_BYTES = 16
"""Bulk copies (TMA) and the widest vector loads need bases and strides that are multiples of this."""


def layout_class(extents: Sequence[int], strides: Sequence[int], element: str, aligned: bool) -> str:
    """``"dense"``, ``"order 0 2 1 3"`` or ``"strided"``; then ``" 16B"`` when base and strides are multiples of 16 bytes.

    ``extents`` and ``strides`` count elements. ``order`` lists the axes from the largest stride to the smallest, with gaps
    allowed between them; ``strided`` has no axis of stride one, or a broadcast axis. Axes of extent one have no say.
    """
    axes = sorted((a for a, extent in enumerate(extents) if extent != 1), key=lambda a: (-strides[a], a))
    wide = aligned and all(strides[a] * dtype(element).bytes % VECTOR_BYTES == 0 for a in axes if strides[a] != 1)
    suffix = f" {VECTOR_BYTES}B" if wide else ""
    if axes and strides[axes[-1]] != 1:
        return "strided" + suffix
    in_order = axes == sorted(axes)
    if in_order and all(strides[a] == math.prod(extents[b] for b in axes if b > a) for a in axes):
        return "dense" + suffix
    return f"order {' '.join(map(str, axes))}{suffix}"
