"""Kernels of ops follow their names from outside too, though what a call needs is prepared once."""

import importlib

import pytest
import torch

from kpt.ops import linear_act, prefer, quantize_fp8

X, WEIGHT = torch.randn(4, 8), torch.randn(6, 8)


def test_a_name_of_a_function_among_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    names = importlib.import_module("kpt.ops.linear_act.activations")
    with prefer("numpy"):
        before = linear_act(X, WEIGHT, activation="quick_gelu")
        with monkeypatch.context() as patch:
            patch.setattr(names, "QUICK", 0.1)
            assert not torch.allclose(linear_act(X, WEIGHT, activation="quick_gelu"), before)
        assert torch.equal(linear_act(X, WEIGHT, activation="quick_gelu"), before)


def test_a_name_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    names = importlib.import_module("kpt.ops.quantize_fp8.kernels")
    zeros = torch.zeros(2, 8)
    with prefer("numpy"):
        _, before = quantize_fp8(zeros, "row")
        monkeypatch.setattr(names, "SMALLEST", 1.0)
        _, after = quantize_fp8(zeros, "row")
    assert (after > before).all()
