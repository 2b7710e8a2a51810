"""Rows of groups (packed sequences) in warp-specialised attention: what lies beside one is neither read nor written."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

import kpt.ops
from kpt.ops import registry
from kpt.ops.flash_attention.kernels import flash_attention_fwd
from kpt_dsl import targets
from kpt_dsl.emit import emit
from kpt_dsl.instance import Instance
from kpt_dsl.runtime.triton import interpret_for
from kpt_dsl.space import Config, space
from tests.emit_gluon.test_numbers import warp_specialised
from tests.tolerances import assert_close

H200 = targets.get("nvidia-h200")
QUERIES, KEYS = [130, 0, 70, 5], [130, 40, 200, 0]
"""Of each entry: with fewer queries than keys, none of either, and more than one tile."""
REST = 3
"""Rows behind all entries."""


def ends(lengths: list[int]) -> list[int]:
    return torch.tensor([0, *lengths]).cumsum(0).tolist()


def call(poisoned: int, **options: Any) -> dict[str, Any]:
    """Arguments of packed attention; keys and values of the ``poisoned`` entry, or else of none, are NaN."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(sum(n) + REST, h, 64).bfloat16() for n, h in ((QUERIES, 4), (KEYS, 2), (KEYS, 2)))
    places = [*pairwise(ends(KEYS)), (sum(KEYS), len(k))]
    k[slice(*places[poisoned])] = v[slice(*places[poisoned])] = math.nan
    o, lse = torch.full_like(q, 7.0), torch.full((1, 4, len(q)), 7.0)
    q, k, v, o = (t.transpose(0, 1)[None] for t in (q, k, v, o))
    query_ends = torch.tensor([0, *ends(QUERIES), q.shape[2]], dtype=torch.int32)
    key_ends = torch.tensor([0, *ends(KEYS), sum(KEYS)], dtype=torch.int32)
    options = {"scale": 0.3, "window": None, "causal": False} | options
    scale, window, causal = (options.pop(name) for name in ("scale", "window", "causal"))
    given = {"query_ends": query_ends, "key_ends": key_ends} | options
    return dict(flash_attention_fwd.bind(q, k, v, None, o, lse, scale, window, causal, **given))


KNOBS = [{"consumers": 2, "overlap": True}, {"consumers": 3, "overlap": False}, {"consumers": 1, "group": 4}]


@pytest.mark.parametrize("options", [{"causal": True}, {}, {"causal": True, "window": 50}], ids=str)
@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_neighbours_do_not_enter(knobs: dict[str, Any], options: dict[str, Any]) -> None:
    entries = list(zip(pairwise(ends(QUERIES)), pairwise(ends(KEYS)), strict=True))
    for poisoned in (2, 4, 1):
        arguments = call(poisoned, **options)
        instance = Instance.bind(flash_attention_fwd, arguments)
        interpret_for(H200, instance, arguments, warp_specialised(instance) | {"block_N": 64} | knobs)
        q, k, v = (arguments[name].double() for name in "qkv")
        for entry, ((a, b), (c, d)) in enumerate(entries):
            if entry != poisoned and b > a:
                parts = q[:, :, a:b], k[:, :, c:d], v[:, :, c:d]
                wanted, lse = kpt.ops.flash_attention(*parts, scale=0.3, return_lse=True, **options)
                assert_close(arguments["o"][:, :, a:b], wanted, "bf16", 200)
                torch.testing.assert_close(arguments["lse"][..., a:b].double(), lse, atol=0.02, rtol=0.02)
        assert (arguments["o"][:, :, sum(QUERIES) :] == 0).all()  # they see no key


def packed(head_dim: int, **flags: bool) -> Instance:
    dims = {"B": 8, "H": 8, "G": 2, "M": 2048, "N": 2048, "D": head_dim}
    return registry.get("flash_attention").instances(dims, "bf16", packed=True, **flags)[-1]


@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_first_config(head_dim: int) -> None:
    instance = packed(head_dim, causal=True)
    found = space(instance, H200)
    config = warp_specialised(instance)
    assert (found.first == config) is (head_dim == 128)
    assert (config["group"], config["persistent"]) == (1, False)
    assert found.why_illegal(Config({**config, "persistent": True})) is not None
    text = emit(instance, H200, config).text
    assert "o_desc" not in text
    assert "mask=m_valid[:, None]" in text
    assert "n_last = gl.where(m_start < m_stop, " in text, "a place that holds no tile takes no step"
    assert "range(n_begin + gl.cdiv(n_stop - n_begin, BLOCK_N) * BLOCK_N, n_end, " in text, "steps are counted from the start"
