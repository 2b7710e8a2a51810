"""``scaled_dot_product_attention`` as PyTorch has it, by kpt's attention where that computes the same."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from kpt.ops.dispatch import DISPATCHERS
from kpt.ops.eager import is_transformed
from kpt.ops.flash_attention.op import flash_attention


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """``torch.nn.functional.scaled_dot_product_attention``, in names, defaults, shapes, masks and results.

    ``query``: (…, heads, L, D); ``key``: (…, heads, S, D); ``value``: (…, heads, S, E); dims before L and S broadcast, and
    with ``enable_gqa`` queries may have a multiple of the heads. ``is_causal``: query i sees keys 0 to i (aligned top left,
    other than in ``flash_attention``). Gives (…, heads, L, E).

    ``attn_mask``: of bools (True: seen) or added to the scores. A query whose mask hides all keys gets zeros, also where
    numbers hide them that are as low as ``torch.finfo(torch.float32).min``.

    What ``flash_attention`` computes goes there; PyTorch serves the rest (dropout, torch.func, more queries than keys where
    causal), which ``kpt.ops.counters()`` shows among the fallbacks of ``flash_attention``. Raises what PyTorch raises.
    """
    reason = _why_not(query, key, value, attn_mask, dropout_p, is_causal, scale)
    if reason is None:
        found = _together(query, key, value, enable_gqa)
        if found is not None and _broadcasts(attn_mask, (*found[0], found[1], query.shape[-2], key.shape[-2])):
            return _attend(query, key, value, attn_mask, is_causal, scale, *found)
        reason = "queries, keys, values and mask do not go together"
    if not torch.compiler.is_compiling():
        DISPATCHERS["flash_attention"].count_outside(f"scaled_dot_product_attention: {reason}")
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def _why_not(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, dropout: float, causal: bool,
    scale: float | None,
) -> str | None:  # fmt: skip
    """What keeps a call from ``flash_attention``, shapes aside; PyTorch computes it, or says what is wrong with it."""
    numbers = type(causal) is bool and not isinstance(scale, (bool, str, torch.Tensor))
    if not numbers or not all(isinstance(t, torch.Tensor) for t in (query, key, value)):
        return "an argument is of another type"
    if not torch.compiler.is_compiling() and is_transformed():
        return "torch.func transforms and forward-mode differentiation follow PyTorch's own operations only"
    if mask is not None:
        if causal:
            return "it is causal, and there is a mask"
        if not isinstance(mask, torch.Tensor) or mask.dtype not in (torch.bool, query.dtype) or mask.device != query.device:
            return "the mask is neither of bools nor like the queries"
        if query.ndim > 4 and mask.ndim > 3:
            return "the mask of more than four dims differs between batch entries"
    if dropout != 0.0:
        return "dropout is on"
    if not (query.dtype == key.dtype == value.dtype and query.device == key.device == value.device):
        return "queries, keys and values differ in dtype or device"
    if not query.dtype.is_floating_point:
        return f"kernels do not compute on {query.dtype}"
    if any(t.layout != torch.strided or t.is_nested for t in (query, key, value)):
        return "a tensor is sparse, nested or of mkldnn"
    if query.ndim > 1 and key.ndim > 1 and causal and query.shape[-2] > key.shape[-2]:
        return "it is causal, with more queries than keys"
    return None


def _together(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, enable_gqa: bool
) -> tuple[Sequence[int], int, int] | None:
    """The batch dims, the heads, and those of keys and values, as they broadcast; None where they do not."""
    tensors = (query, key, value)
    if query.ndim < 3 or not query.ndim == key.ndim == value.ndim or not all(t.numel() for t in tensors):
        return None
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        return None
    if query.shape[:-3] == key.shape[:-3] == value.shape[:-3]:
        batch: Sequence[int] = query.shape[:-3]
    else:
        try:
            batch = torch.broadcast_shapes(*(t.shape[:-3] for t in tensors))
        except RuntimeError:
            return None
    heads, groups, others = (t.shape[-3] for t in tensors)
    if enable_gqa:
        return (batch, heads, groups) if groups == others and heads % groups == 0 else None
    shared = max(groups, others)
    if min(groups, others) not in (1, shared) or (heads != shared and 1 not in (heads, shared)):
        return None
    return batch, max(heads, shared), shared


def _broadcasts(mask: torch.Tensor | None, shape: Sequence[int]) -> bool:
    if mask is None:
        return True
    least = len(shape) - mask.ndim
    return least >= 0 and all(n in (1, m) for n, m in zip(mask.shape, shape[least:], strict=True))


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, causal: bool,
    scale: float | None, batch: Sequence[int], heads: int, groups: int,
) -> torch.Tensor:  # fmt: skip
    length = query.shape[-2]
    if causal and length != key.shape[-2]:  # what lies behind the last query is seen by none
        key, value = key[..., :length, :], value[..., :length, :]
    q, k, v = (_of_rank_4(t, batch, n) for t, n in ((query, heads), (key, groups), (value, groups)))
    o = flash_attention(q, k, v, causal=causal, scale=scale, mask=mask)
    assert isinstance(o, torch.Tensor)
    return o if query.ndim == 4 else o.reshape(*batch, heads, length, o.shape[-1])


def _of_rank_4(t: torch.Tensor, batch: Sequence[int], heads: int) -> torch.Tensor:
    wanted = (*batch, heads, *t.shape[-2:])
    if t.shape != wanted:
        t = t.expand(wanted)
    if len(wanted) == 4:
        return t
    return t.unsqueeze(0) if len(wanted) == 3 else t.flatten(0, -4)
