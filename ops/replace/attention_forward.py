"""What attention layers of replaced Transformers models call: kpt's op where it computes the same, else PyTorch's function.

Imports Transformers and torch._dynamo: imported when a first model is replaced.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kpt.ops.replace.attention_call import attend, count, refuse_unknown, why_not
from kpt.ops.replace.attention_mask import AttentionMask
from kpt.ops.replace.keywords import SDPA


def attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **keywords: Any,
) -> tuple[torch.Tensor, None]:
    """What an attention layer calls: (B, heads, length, head dim) in, (B, length, heads, head dim) out.

    A call that kpt's op does not compute goes to PyTorch's function, is counted and, once a model and reason, logged. Raises
    InputError for a keyword that neither understands.
    """
    asked = [name for name, value in keywords.items() if value is not None]
    if asked:
        refuse_unknown(module, asked, SDPA)
    queries, keys = query.shape, key.shape
    if _sees_all(module, queries[2], attention_mask, is_causal):
        attention_mask = None
    causal = queries[2] > 1 and bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    reason = why_not(query, key, value, queries, keys, attention_mask, dropout, asked, keywords, causal)
    if reason is None:
        return attend(query, key, value, queries, keys, attention_mask, scaling, asked, keywords, causal)
    count(module, reason)
    if _would_be_none(attention_mask, query, key, causal):
        attention_mask = None
    output: tuple[torch.Tensor, None] = ALL_ATTENTION_FUNCTIONS[SDPA](
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **keywords
    )
    return output


def _sees_all(module: nn.Module, queries: int, mask: torch.Tensor | None, is_causal: bool | None) -> bool:
    """A layer that is not causal, under a causal mask that PyTorch's would leave to the layer: it masks nothing there.

    What the call says does not count alone: some models say that a call is not causal where they have a mask.
    """
    implied = isinstance(mask, AttentionMask) and mask.implied and queries == mask.seen
    return implied and not is_causal and not getattr(module, "is_causal", True)


def _would_be_none(mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, causal: bool) -> bool:
    """PyTorch's function would have no mask here: without one it computes what it did before replacing, to the last bit, in its
    kernels for causal attention."""
    if not isinstance(mask, AttentionMask) or not mask.implied:
        return False
    queries, keys = query.shape[2], key.shape[2]
    return (
        mask.shape[2] == queries
        and mask.shape[3] == mask.seen == keys
        and (queries == 1 or (causal and queries == keys))
    )
