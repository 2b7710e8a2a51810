"""First configs of models' shapes are those that were the quickest, or near it, where many were timed on an H200."""

from typing import Any

import pytest

from kpt.ops import registry
from kpt_dsl import targets
from kpt_dsl.classes import options

H200 = targets.get("nvidia-h200")

BERT = {"B": 32, "H": 12, "G": 12, "M": 512, "N": 512, "D": 64}
GPT2 = {"B": 8, "H": 12, "G": 12, "M": 1024, "N": 1024, "D": 64}
LLAMA = {"B": 1, "H": 32, "G": 8, "M": 8192, "N": 8192, "D": 128}
SHORT = LLAMA | {"M": 2048, "N": 2048}
LAYER = {"M": 16384, "N": 3072, "K": 768}


@pytest.mark.parametrize(
    ("op", "dims", "flags", "kernel", "expected"),
    [
        ("flash_attention", BERT, {}, "flash_attention_fwd", {"num_stages": 3, "descriptors": False}),
        ("flash_attention", GPT2, {"causal": True}, "flash_attention_fwd", {"num_stages": 3, "descriptors": False}),
        ("flash_attention_backward", BERT, {}, "flash_attention_dq", {"block_M": 64, "descriptors": False}),
        ("flash_attention_backward", BERT, {}, "flash_attention_dkdv", {"block_M": 32, "num_stages": 3}),
        ("flash_attention_backward", SHORT, {"causal": True}, "flash_attention_group_sum", {"block_R": 1}),
        ("linear_act_backward", LAYER, {"activation": "gelu"}, "linear_act_bwd_dz_sums", {"num_warps": 1}),
        ("linear_act_saving", LAYER, {"activation": "gelu"}, "linear_act_fwd_saving", {"num_warps": 4, "block_N": 128}),
        ("linear_act", LAYER, {"activation": "gelu_tanh"}, "linear_act_fwd", {"schedule": "pipelined"}),
        ("linear_act", LAYER, {"activation": "gelu"}, "linear_act_fwd", {"schedule": "pipelined", "num_warps": 4}),
        ("rms_norm_backward", {"M": 8192, "N": 199}, {}, "rms_norm_bwd", {"num_warps": 4}),
    ],
)  # fmt: skip
def test_first_configs(op: str, dims: dict[str, int], flags: dict[str, Any], kernel: str, expected: dict[str, Any]) -> None:
    instance = next(i for i in registry.get(op).instances(dims, "bf16", H200, **flags) if i.kernel.name == kernel)
    first = options(instance, H200).first
    assert {name: first[name] for name in expected} == expected


def test_causal_gradients_in_one_pass_take_32_queries_at_a_time() -> None:
    """16 took 1.35 to 1.45 times as long as 32."""
    every = registry.get("flash_attention_backward").instances(LLAMA, "bf16", H200, causal=True)
    adding = [i for i in every if any(store.add for store in options(i, H200).variants[0].facts.stores)]
    assert adding and all(options(i, H200).first["block_M"] == 32 for i in adding)
