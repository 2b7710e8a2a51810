"""Odd sizes for the kernels of docs/gallery, and what no TPU runs of them."""

from typing import Any

import torch

Own = dict[str, Any]

ROWS = [0, 37, 37, 38, 199]
SIZES: list[tuple[str, dict[str, int], Own]] = [
    ("add_rms_norm", {"M": 37, "N": 199}, {}),
    ("add_rms_norm", {"M": 1, "N": 760}, {}),
    ("group_norm", {"B": 1, "G": 2, "C": 5, "S": 760}, {"x": torch.arange(2.0 * 5 * 760).view(1, 2, 5, 760)}),
    ("group_norm", {"B": 1, "G": 1, "C": 1, "S": 37}, {}),
    ("rope_halves", {"B": 2, "T": 37, "H": 3, "R": 2, "P": 20}, {}),
    ("rope_halves", {"B": 1, "T": 199, "H": 1, "R": 2, "P": 1}, {}),
    ("rope_neighbours", {"B": 2, "T": 37, "H": 3, "R": 2, "P": 20}, {}),
    ("rope_neighbours", {"B": 1, "T": 199, "H": 1, "R": 2, "P": 1}, {}),
    ("cross_entropy", {"M": 37, "N": 760}, {}),
    ("cross_entropy", {"M": 1, "N": 199}, {"target": [198]}),
    ("cross_entropy_backward", {"M": 37, "N": 199}, {}),
    ("cross_entropy_backward", {"M": 1, "N": 760}, {"target": [0]}),
    ("embedding", {"M": 37, "V": 199, "D": 37}, {}),
    ("embedding", {"M": 1, "V": 1, "D": 199}, {}),
    ("embedding_backward", {"M": 199, "V": 37, "D": 37}, {}),
    ("embedding_backward", {"M": 1, "V": 37, "D": 1}, {}),
    ("top_k", {"M": 37, "N": 199, "K": 8}, {}),
    ("top_k", {"M": 1, "N": 8, "K": 8}, {}),
    ("int8_product", {"M": 37, "N": 37, "K": 199}, {}),
    ("int8_product", {"M": 1, "N": 199, "K": 1}, {}),
    ("int4_product", {"M": 37, "N": 37, "P": 2, "G": 3, "K": 32}, {}),
    ("int4_product", {"M": 1, "N": 37, "P": 2, "G": 1, "K": 128}, {}),
    ("block_scaled_fp8", {"M": 37, "J": 2, "N": 128, "G": 3, "K": 128}, {}),
    ("block_scaled_fp8", {"M": 1, "J": 1, "N": 128, "G": 1, "K": 128}, {}),
    ("split_kv_decode", {"B": 3, "G": 2, "R": 3, "D": 37, "P": 3, "N": 760}, {"length": [760, 1, 199]}),
    ("split_kv_decode", {"B": 1, "G": 1, "R": 1, "D": 16, "P": 1, "N": 37}, {}),
    ("packed_attention", {"T": 199, "H": 2, "G": 1, "D": 37, "C": 5}, {"cu": ROWS}),
    ("packed_attention", {"T": 1, "H": 1, "G": 1, "D": 16, "C": 2}, {}),
    ("paged_attention", {"B": 3, "G": 2, "R": 3, "D": 37, "P": 3, "L": 24, "S": 37, "N": 8}, {"length": [296, 1, 199]}),
    ("paged_attention", {"B": 1, "G": 1, "R": 1, "D": 16, "P": 2, "L": 1, "S": 16, "N": 1}, {}),
    ("grouped_product", {"T": 199, "E": 4, "N": 37, "K": 199, "C": 5}, {"cu": ROWS}),
    ("grouped_product", {"T": 1, "E": 2, "N": 37, "K": 37, "C": 3}, {"cu": [0, 0, 1]}),
]
"""Extents, and inputs that are not to be drawn: in group norm, tiles that differ in their means."""

TILES = {
    "group_norm": {"block_S": 256},
    "cross_entropy": {"block_N": 256},
    "split_kv_decode": {"block_N": 128},
}
"""Tiles that rows of these sizes need several of, where the first config has one for all."""

GAPS = {
    "embedding_backward": "several programs add to dtable; on tpu-v6e an output has one writer",
    "packed_attention": "tiles m begin where cu says, but blocks of a TPU at multiples of their size",
    "grouped_product": "tiles m begin where cu says, but blocks of a TPU at multiples of their size",
}
"""Kernels that no TPU runs, and words of the error, which their pages quote."""
