"""Asking for the same bits in every run, as somebody who trains with PyTorch does."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic() -> Iterator[None]:
    """PyTorch's flag, without the filling of fresh memory that comes with it and costs time."""
    settings = torch.utils.deterministic
    was, filling = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    settings.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was)
        settings.fill_uninitialized_memory = filling
