"""The keywords that attention layers of Transformers pass to their attention function, beyond its arguments.

An allow-list: a keyword may change what attention means, as the selection of DeepSeek-V3.2 does, and who drops one that it does
not know computes something else. PyTorch's function drops them too, so what is in neither set is refused.
"""

from collections.abc import Iterable

HARMLESS = frozenset(
    {
        # What the mask says too; flash-attention kernels, which take no mask, read it here.
        "sliding_window",
        "cu_seq_lens_q",
        "cu_seq_lens_k",
        "max_length_q",
        "max_length_k",
        "position_ids",
        "cache_position",
        # How a kernel works, not what it computes.
        "deterministic",
        # What the whole model is asked for, and passes on as it came.
        "image_sizes",
        "labels",
        "logits_to_keep",
        "num_items_in_batch",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "seq_idx",
        "use_cache",
    }
)
"""Keywords that do not change what attention computes."""

PYTORCHS = frozenset({"position_bias", "cache", "softcap"})
"""Keywords that PyTorch's attention function in Transformers serves, or refuses itself: calls with one of them go there."""


def not_understood(names: Iterable[str]) -> list[str]:
    """Those that neither kpt's nor PyTorch's attention function knows."""
    return [name for name in names if name not in HARMLESS and name not in PYTORCHS]
