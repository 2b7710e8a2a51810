"""Work: operations that loops' bounds leave, and bytes of every tensor once."""

from dataclasses import replace

import pytest

from kpt_dsl.cost import work
from tests.space import problems


def test_matmul() -> None:
    found = work(problems.linear(512, 256, 1024))
    assert found.flops == 2 * 512 * 256 * 1024
    assert found.bytes == 2 * (512 * 1024 + 256 * 1024 + 256 + 512 * 256)
    assert found.intensity == found.flops / found.bytes


def test_attention_is_two_products() -> None:
    found = work(problems.attention(1024, 2048, 64, b=2, h=8, g=2))
    assert found.flops == 2 * 2 * (2 * 8) * 1024 * 2048 * 64


@pytest.mark.parametrize(("m", "n"), [(4096, 4096), (1024, 4096)])
def test_causal_counts_the_keys_that_a_query_sees(m: int, n: int) -> None:
    """Aligned bottom right, query i sees i + 1 + n - m keys, so n - (m - 1) / 2 on average."""
    whole, causal = work(problems.attention(m, n)), work(problems.attention(m, n, causal=True))
    assert causal.flops / whole.flops == pytest.approx((n - (m - 1) / 2) / n, rel=1e-3)
    assert causal.bytes == whole.bytes


def test_norms_have_no_products() -> None:
    found = work(problems.layer_norm(8192, 4096))
    assert found.flops == 0
    assert found.bytes == 2 * (2 * 8192 * 4096 + 2 * 4096)


def test_an_expanded_tensor_is_stored_once() -> None:
    """Tensor-wise scales are vectors of stride 0."""
    plain = problems.fp8_matmul(64, 64, 64)
    strides = tuple((name, (0,) if name == "scale_a" else steps) for name, steps in plain.strides)
    assert work(plain).bytes - work(replace(plain, strides=strides)).bytes == 63 * 4
