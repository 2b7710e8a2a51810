"""The keywords that attention layers of Transformers pass to their attention function, beyond its arguments.

An allow-list: a keyword may change what attention means, as the selection of DeepSeek-V3.2 does, and who drops one that it does
not know computes something else. PyTorch's function drops them too, so what is in no set is refused.
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
        "ignore_index",
        "image_sizes",
        "labels",
        "logits_to_keep",
        "num_items_in_batch",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "seq_idx",
        "shift_labels",
        "use_cache",
    }
)
"""Keywords that do not change what attention computes."""

PYTORCHS = frozenset({"cache"})
"""Those of a cache in pages, which PyTorch's attention function in Transformers fills itself: calls with one go there."""

SCORES = frozenset({"position_bias", "softcap", "s_aux"})
"""What kpt's op makes of scores: what is added, a soft cap, sinks."""

SDPA, EAGER = "sdpa", "eager"
"""The attention functions in whose place kpt's may be: PyTorch's in Transformers, and that of a model's own code."""

WHOSE = {SDPA: "PyTorch's", EAGER: "its own"}

_UNDERSTOOD = {
    # PyTorch's drops sinks and caps, caps before Transformers 5.21 without a word: with them a model computes something else.
    SDPA: HARMLESS | PYTORCHS | (SCORES - {"s_aux", "softcap"}),
    EAGER: HARMLESS | SCORES,
}


def not_understood(names: Iterable[str], former: str = SDPA) -> list[str]:
    """Those that kpt's attention in the place of a former function does not know, or that one drops."""
    return [name for name in names if name not in _UNDERSTOOD[former]]
