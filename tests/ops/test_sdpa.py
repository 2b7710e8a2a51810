"""scaled_dot_product_attention: PyTorch's own results, shapes and errors, whoever serves."""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import kpt
from kpt.ops import scaled_dot_product_attention


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


SERVED = {
    "4-D": ((2, 3, 5, 8), (2, 3, 7, 8), {}),
    "3-D": ((3, 5, 8), (3, 7, 8), {}),
    "5-D": ((2, 2, 3, 5, 8), (2, 2, 3, 7, 8), {}),
    "batch entries that share keys": ((4, 3, 5, 8), (1, 3, 7, 8), {}),
    "one batch entry of queries": ((1, 3, 5, 8), (4, 3, 7, 8), {}),
    "5-D that broadcasts": ((2, 1, 3, 5, 8), (1, 4, 3, 7, 8), {}),
    "heads that share keys": ((2, 4, 5, 8), (2, 1, 7, 8), {}),
    "one head of queries": ((2, 1, 5, 8), (2, 4, 7, 8), {}),
    "groups": ((2, 6, 5, 8), (2, 2, 7, 8), {"enable_gqa": True}),
    "groups, 3-D": ((6, 5, 8), (2, 7, 8), {"enable_gqa": True}),
    "causal": ((2, 3, 37, 8), (2, 3, 37, 8), {"is_causal": True}),
    "causal, fewer queries than keys": ((2, 3, 5, 8), (2, 3, 7, 8), {"is_causal": True}),
    "causal, one query": ((2, 3, 1, 8), (2, 3, 7, 8), {"is_causal": True}),
    "a mask of bools": ((2, 3, 5, 8), (2, 3, 7, 8), {"attn_mask": torch.arange(35).reshape(5, 7) % 3 > 0}),
    "a mask that is added": ((2, 3, 5, 8), (2, 3, 7, 8), {"attn_mask": torch.arange(70.0).reshape(2, 1, 5, 7).sin()}),
    "a mask, 3-D": ((3, 5, 8), (3, 7, 8), {"attn_mask": torch.arange(105).reshape(3, 5, 7) % 4 > 0}),
    "a mask, 5-D": ((2, 2, 3, 5, 8), (2, 2, 3, 7, 8), {"attn_mask": torch.arange(7) > 1}),
    "scale": ((2, 3, 5, 8), (2, 3, 7, 8), {"scale": 0.3}),
    "a scale below zero": ((2, 3, 5, 8), (2, 3, 7, 8), {"scale": -0.3}),
}

PYTORCHS = {
    "2-D": ((5, 8), (7, 8), {}),
    "causal, more queries than keys": ((2, 3, 7, 8), (2, 3, 5, 8), {"is_causal": True}),
    "no keys": ((2, 3, 5, 8), (2, 3, 0, 8), {}),
    "no queries": ((2, 3, 0, 8), (2, 3, 7, 8), {}),
    "ranks that differ": ((3, 5, 8), (2, 3, 7, 8), {}),
    "a mask of batch entries, 5-D": ((2, 2, 3, 5, 8), (2, 2, 3, 7, 8), {"attn_mask": torch.arange(28).view(2, 2, 1, 1, 7) > 3}),
}


@pytest.mark.parametrize("case", SERVED)
def test_kernels_give_pytorchs_results(case: str) -> None:
    queries, keys, flags = SERVED[case]
    q, k, v = tensors(queries, keys, keys)
    expected, before = F.scaled_dot_product_attention(q, k, v, **flags), _outside()
    with kpt.ops.prefer("numpy"):
        found = scaled_dot_product_attention(q, k, v, **flags)
    assert _outside() == before, "kernels alone"
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", PYTORCHS)
def test_what_kernels_do_not_compute_is_pytorchs(case: str) -> None:
    queries, keys, flags = PYTORCHS[case]
    q, k, v = tensors(queries, keys, keys)
    before = _outside()
    found = scaled_dot_product_attention(q, k, v, **flags)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k, v, **flags), rtol=0, atol=0, equal_nan=True)
    assert _outside() == before + 1


@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_a_mask_that_takes_all_keys_far_down_leaves_their_mean(backend: Any) -> None:
    """As (1 - mask) * -1e9 does: beside that, float32 has no digits for how many keys there are."""
    q, k, v = tensors(*[(2, 3, 5, 8)] * 3)
    mask = torch.full((5, 5), -1e9)
    with kpt.ops.prefer(backend):
        found = scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k, v, mask), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, v.mean(2, keepdim=True).expand_as(v), rtol=1e-5, atol=1e-6)


def test_forward_mode_is_pytorchs() -> None:
    """Of tensors of three dims it has one, which it has not of the four that kernels take."""
    q, k, v = tensors(*[(3, 5, 8)] * 3)
    both = scaled_dot_product_attention, F.scaled_dot_product_attention
    ours, native = (torch.func.jvp(attention, (q, k, v), (k, v, q)) for attention in both)
    torch.testing.assert_close(ours, native, rtol=0, atol=0)


def _outside() -> int:
    counted = kpt.ops.counters()["flash_attention"]["fallbacks"]
    return sum(count for reason, count in counted.items() if reason.startswith("scaled_dot_product_attention: "))


def test_dropout_follows_the_same_law() -> None:
    """PyTorch serves it: one seed, one mask."""
    q, k, v = tensors(*[(2, 3, 5, 8)] * 3)
    torch.manual_seed(5)
    expected = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
    torch.manual_seed(5)
    assert torch.equal(scaled_dot_product_attention(q, k, v, None, 0.5), expected)


REFUSED: dict[str, Any] = {
    "dtypes": lambda f, q, k: f(q, k.double(), k),
    "heads": lambda f, q, k: f(q, k[:, :2], k[:, :2]),
    "a mask of another dtype": lambda f, q, k: f(q, k, k, torch.ones(5, 7, dtype=torch.float64)),
    "a mask that does not broadcast": lambda f, q, k: f(q, k, k, torch.ones(4, 7, dtype=torch.bool)),
    "groups": lambda f, q, k: f(q, k[:, :2], k[:, :2], enable_gqa=True),
    "head dims": lambda f, q, k: f(q, k[..., :4], k[..., :4]),
    "a flag that is none": lambda f, q, k: f(q, k, k, is_causal=1),
    "no tensor": lambda f, q, k: f(q, k, None),
    "one dim": lambda f, q, k: f(q[0, 0, 0], k, k),
    "dropout": lambda f, q, k: f(q, k, k, dropout_p=2.0),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_gets_pytorchs_words(case: str) -> None:
    q, k = tensors((2, 3, 5, 8), (2, 3, 7, 8))
    with pytest.raises((RuntimeError, TypeError, ValueError)) as expected:
        REFUSED[case](F.scaled_dot_product_attention, q, k)
    with pytest.raises(type(expected.value)) as found:
        REFUSED[case](scaled_dot_product_attention, q, k)
    said, wanted = (re.sub(r" \(position \d\)", "", str(e.value).partition("\n")[0]) for e in (found, expected))
    assert said == wanted


@pytest.mark.parametrize("case", ["5-D that broadcasts", "groups", "causal, fewer queries than keys", "heads that share keys"])
def test_gradients_are_pytorchs(case: str) -> None:
    queries, keys, flags = SERVED[case]
    given = tensors(queries, keys, keys, seed=1)
    (slope,) = tensors(F.scaled_dot_product_attention(*given, **flags).shape, seed=2)
    gradients = []
    for function in (F.scaled_dot_product_attention, scaled_dot_product_attention):
        leaves = [t.clone().requires_grad_() for t in given]
        with kpt.ops.prefer("numpy"):
            gradients.append(torch.autograd.grad(function(*leaves, **flags), leaves, slope))
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_compiled_and_under_autocast() -> None:
    q, k, v = tensors(*[(2, 3, 37, 8)] * 3)
    compiled = torch.compile(scaled_dot_product_attention, fullgraph=True, backend="eager")
    for flags in ({"is_causal": True}, *({"attn_mask": torch.ones(37, 37).tril().bool()[(None,) * n]} for n in range(3))):
        torch.testing.assert_close(compiled(q, k, v, **flags), F.scaled_dot_product_attention(q, k, v, **flags))
    with torch.autocast("cpu", torch.bfloat16):
        assert scaled_dot_product_attention(q, k, v).dtype == torch.bfloat16
