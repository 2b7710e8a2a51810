"""What ops ask of a device before they launch anything."""

from functools import lru_cache

import torch

UNKNOWN = 132
"""Multiprocessors where there is no device to ask, for instances that are only recorded: those of an H100 or H200."""


@lru_cache(maxsize=64)
def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors (compute units of AMD) a GPU has."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else UNKNOWN
