"""Work: operations that loops' bounds leave, and bytes of every tensor once."""

from dataclasses import replace

import pytest

from kpt_dsl.cost import work
from kpt_dsl.instance import Instance
from tests.space import instances


def test_matmul() -> None:
    found = work(instances.linear(512, 256, 1024))
    assert found.flops == 2 * 512 * 256 * 1024
    assert found.bytes == 2 * (512 * 1024 + 256 * 1024 + 256 + 512 * 256)
    assert found.intensity == found.flops / found.bytes


def test_attention_is_two_products() -> None:
    found = work(instances.attention(1024, 2048, 64, b=2, h=8, g=2))
    assert found.flops == 2 * 2 * (2 * 8) * 1024 * 2048 * 64


@pytest.mark.parametrize(("m", "n"), [(4096, 4096), (1024, 4096)])
def test_causal_counts_the_keys_that_a_query_sees(m: int, n: int) -> None:
    """Aligned bottom right, query i sees i + 1 + n - m keys, so n - (m - 1) / 2 on average."""
    whole, causal = work(instances.attention(m, n)), work(instances.attention(m, n, causal=True))
    assert causal.flops / whole.flops == pytest.approx((n - (m - 1) / 2) / n, rel=1e-3)
    assert causal.bytes == whole.bytes


def test_norms_have_no_products() -> None:
    found = work(instances.layer_norm(8192, 4096))
    assert found.flops == 0
    assert found.bytes == 2 * (2 * 8192 * 4096 + 2 * 4096)


def test_an_expanded_tensor_is_stored_once() -> None:
    """Tensor-wise scales are vectors of stride 0."""
    plain = instances.fp8_matmul(64, 64, 64)
    strides = tuple((name, (0,) if name == "scale_a" else steps) for name, steps in plain.extents.strides)
    expanded = Instance(plain.specialisation, replace(plain.extents, strides=strides))
    assert work(plain).bytes - work(expanded).bytes == 63 * 4
