"""The generated cases of every op: a strategy that draws them, and those that every run has. Knows no backend or device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hypothesis.strategies import SearchStrategy

from tests.generated import (
    attention,
    attention_backward,
    gates,
    linear_backward,
    norms,
    norms_backward,
    products,
    quantize,
)
from tests.generated.case import Case


@dataclass(frozen=True)
class Cases:
    """Of one op."""

    drawn: SearchStrategy[Case]
    always: Sequence[Case]


OPS: Mapping[str, Cases] = {
    "flash_attention": Cases(attention.attention(), attention.ALWAYS),
    "flash_attention_backward": Cases(attention_backward.backward(), attention_backward.ALWAYS),
    "linear_act": Cases(products.linear_act(), products.ALWAYS_LINEAR),
    "linear_act_saving": Cases(linear_backward.saving(), linear_backward.ALWAYS_SAVING),
    "linear_act_backward": Cases(linear_backward.backward(), linear_backward.ALWAYS_BACKWARD),
    "gated_act": Cases(gates.gate(), gates.ALWAYS),
    "gated_act_backward": Cases(gates.gate_backward(), gates.ALWAYS_BACKWARD),
    "layer_norm": Cases(norms.layer_norm(), norms.ALWAYS_LAYER_NORM),
    "rms_norm": Cases(norms.rms_norm(), norms.ALWAYS_RMS_NORM),
    "layer_norm_backward": Cases(norms_backward.layer_norm(), norms_backward.ALWAYS_LAYER_NORM),
    "rms_norm_backward": Cases(norms_backward.rms_norm(), norms_backward.ALWAYS_RMS_NORM),
    "fp8_matmul": Cases(products.fp8_matmul(), products.ALWAYS_FP8),
    "quantize_fp8": Cases(quantize.quantize_fp8(), quantize.ALWAYS_QUANTIZE),
}
