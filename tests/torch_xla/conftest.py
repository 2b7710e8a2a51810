"""Where these tests run: on PyTorch/XLA's CPU where it is installed (``make torch-xla``), else on what stands in for it."""

import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

os.environ.setdefault("PJRT_DEVICE", "CPU")

from kpt_dsl import configs
from tests.torch_xla.stand_in import stand_in

IS_REAL = find_spec("torch_xla") is not None


@pytest.fixture
def place() -> Iterator[str]:
    """The device of tensors. What was decided for a call does not outlast a test."""
    pytest.importorskip("jax")
    configs.changed()
    if IS_REAL:
        import torch_xla  # noqa: F401 (which makes the device known)

        yield "xla"
    else:
        with stand_in():
            yield "cpu"
    configs.changed()


@pytest.fixture
def real(place: str) -> str:
    """The device of PyTorch/XLA itself."""
    if not IS_REAL:
        pytest.skip("needs torch_xla: make torch-xla")
    return place
