"""Layout classes: what they tell apart, and what they do not."""

import pytest

from kpt_dsl.layouts import layout_class


@pytest.mark.parametrize(
    ("extents", "strides", "dtype", "aligned", "expected"),
    [
        ((4, 8), (8, 1), "bf16", True, "dense 16B"),
        ((4, 8), (8, 1), "bf16", False, "dense"),
        ((4, 7), (7, 1), "bf16", True, "dense"),
        ((4, 12), (12, 1), "bf16", True, "dense"),  # 24 bytes a row
        ((4, 12), (12, 1), "f32", True, "dense 16B"),
        ((4, 8), (16, 1), "bf16", True, "order 0 1 16B"),  # a gap between rows
        ((2, 3, 4, 8), (96, 8, 24, 1), "bf16", True, "order 0 2 1 3 16B"),  # (B, M, H, D) seen as (B, H, M, D)
        ((1, 3, 4, 8), (7, 32, 8, 1), "bf16", True, "dense 16B"),  # the stride of an axis of one does not count
        ((64, 32), (1, 64), "f8e4m3", True, "order 1 0 16B"),
        ((4, 8), (0, 1), "bf16", True, "strided 16B"),  # broadcast
        ((8,), (0,), "f32", True, "strided 16B"),
        ((8,), (2,), "f32", True, "strided"),
        ((), (), "f32", True, "dense 16B"),
    ],
)
def test_classes(extents: tuple[int, ...], strides: tuple[int, ...], dtype: str, aligned: bool, expected: str) -> None:
    assert layout_class(extents, strides, dtype, aligned) == expected
