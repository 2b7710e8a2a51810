"""Attention in native PyTorch: contract, oracle (float64 in, float64 out) and last fallback.

Where no log-sum-exp is asked for, and scores are no more than scaled and masked by bools, PyTorch's own fused attention does
the work.
"""

from typing import Any

import torch
import torch.nn.functional as F

from kpt.ops.eager import PLAIN, is_transformed
from kpt.ops.flash_attention import contract, packed, pages
from kpt.ops.flash_attention.scores import LOWEST, Scores
from kpt.ops.memory_order import empty_like, laid_out

FUSED_BYTES = 16
"""What PyTorch's fused attention loads at once."""


def flash_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *others: Any) -> list[torch.Tensor]:
    """[o], or [o, lse]; o as ``empty_output`` lays it out."""
    scores, return_lse = Scores.split("flash_attention", others)
    if (table := scores.block_table) is not None and (lengths := scores.lengths) is not None:
        k, v = (pages.gathered("flash_attention", t, table, lengths, scores.key_starts) for t in (k, v))
        scores = scores._replace(block_table=None)
    scale = scores.scale
    if scores.cu_seqlens_q is not None:
        return _packed(q, k, v, scores, return_lse)
    if q.layout == torch.strided and q.is_nested:  # which has no shape to ask for, nor any mask in PyTorch
        return [F.scaled_dot_product_attention(q, k, v, is_causal=scores.causal, scale=scale)]
    queries, keys = q.shape[2], k.shape[2]
    causal, *window = scores.sides(q, k)
    k, v = (only_keys(t, scores.lengths, scores.key_starts) for t in (k, v))
    # PyTorch's own is_causal aligns top left; a single query sees every key.
    hidden = any(x is not None for x in (*window, scores.lengths, scores.key_starts, scores.mask))
    masked = hidden or (causal and queries > 1 and queries != keys)
    of_their_own = _more_than_masked(scores)
    allowed = _allowed(q, k, scores) if masked or return_lse or of_their_own else None
    if allowed is not None and (return_lse or of_their_own):
        o, lse = _with_lse(q, k, v, scores, allowed)
        return [laid_out(o, empty_output(q, v)), lse][: 1 + return_lse]
    is_causal = bool(causal and allowed is None and queries > 1)
    # PyTorch masks by -inf before it scales, which a scale of 0 or less turns into NaN or +inf: scale the queries instead.
    scaled, scale = (q * scale, 1.0) if scale is not None and scale <= 0 else (q, scale)
    if 0 in (*q.shape[:3], v.shape[3]):  # PyTorch 2.11 gives None for it on a GPU
        o = (q.sum(-1, keepdim=True) * (k.sum() + v.sum())).expand(*q.shape[:3], v.shape[3])
        return [laid_out(o, empty_output(q, v))]
    scaled, k, v = map(_readable, (scaled, k, v))
    o = F.scaled_dot_product_attention(
        scaled, k, v, attn_mask=allowed, is_causal=is_causal, scale=scale, enable_gqa=bool(q.shape[1] != k.shape[1])
    )
    return [laid_out(o, empty_output(q, v))]


def flash_attention_backward(
    do: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    o: torch.Tensor,
    lse: torch.Tensor,
    dlse: torch.Tensor | None,
    *others: Any,
) -> list[torch.Tensor]:
    """The needed ones of the gradients of q, k, v, sinks and mask, from the probabilities that the log-sum-exp gives back; each
    laid out as its input."""
    scores, needed = Scores.split("flash_attention_backward", others)
    if (table := scores.block_table) is not None and (lengths := scores.lengths) is not None:
        op, which = "flash_attention_backward", (table, lengths, scores.key_starts)
        whole = [pages.gathered(op, t, *which) for t in (k, v)]
        given = scores._replace(block_table=None).around(needed)
        gradients = flash_attention_backward(do, q, *whole, o, lse, dlse, *given)
        shared = [t for t, n in zip((None, k, v, None, None), needed, strict=False) if n]
        return [
            g if t is None else laid_out(pages.scattered(op, g, t, *which), empty_like(t))
            for g, t in zip(gradients, shared, strict=True)
        ]
    if scores.cu_seqlens_q is not None:
        return _packed_backward(do, q, k, v, o, lse, dlse, scores, needed)
    wide = contract.lse_dtype(q.dtype)
    k, v = (only_keys(t, scores.lengths, scores.key_starts) for t in (k, v))
    keys, values = (_of_all_heads(t, q).to(wide) for t in (k, v))
    queries, up = q.to(wide), do.to(wide)
    made, slope = _scores(queries, keys, scores)
    shift = lse.masked_fill(lse == -torch.inf, 0.0)[..., None]
    p = (made - shift).masked_fill(~_allowed(q, k, scores), -torch.inf).exp()
    delta = (o.to(wide) * up).sum(-1, keepdim=True)
    if dlse is not None:
        delta = delta - dlse[..., None]
    found: dict[str, torch.Tensor] = {"v": _summed(p.mT @ up, v)}
    if any((*needed[:2], *needed[3:])):
        of_scores = p * (up @ values.mT - delta)
        of_products = of_scores * (scores.scale_of(q) * slope)
        found |= {"q": (of_products @ keys).to(q.dtype), "k": _summed(of_products.mT @ queries, k)}
        if scores.sinks is not None:
            sink = (scores.sinks.to(wide)[:, None, None] - shift).exp().masked_fill((lse == -torch.inf)[..., None], 0.0)
            found["sinks"] = -(sink * delta).sum((0, 2, 3)).to(scores.sinks.dtype)
        if scores.mask is not None:
            found["mask"] = summed_to(of_scores, scores.mask)
    like = {"q": q, "k": k, "v": v, "sinks": scores.sinks, "mask": scores.mask}
    wanted = [(found[name], t) for (name, t), n in zip(like.items(), needed, strict=False) if n and t is not None]
    return [laid_out(gradient, empty_like(t)) for gradient, t in wanted]


def _packed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scores: Scores, return_lse: bool) -> list[torch.Tensor]:
    """Each entry as a dense call."""
    found = [
        flash_attention(*(packed.batched(t) for t in (q[rows], k[keys], v[keys])), *own.around(return_lse))
        for rows, keys, own in packed.entries("flash_attention", q, k, scores)
    ]
    o, *lse = (torch.cat(parts, 2)[0] for parts in zip(*found, strict=True))
    return [laid_out(o.transpose(0, 1), empty_output(q, v)), *lse]


def _packed_backward(
    do: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, o: torch.Tensor,
    lse: torch.Tensor, dlse: torch.Tensor | None, scores: Scores, needed: Any,
) -> list[torch.Tensor]:  # fmt: skip
    like = {"q": q, "k": k, "v": v}
    names = [name for name, n in zip((*like, "sinks"), needed, strict=False) if n]
    parts: list[list[torch.Tensor]] = []
    ends = []
    for rows, keys, own in packed.entries("flash_attention_backward", q, k, scores):
        of_rows = (None if t is None else packed.batched(t[:, rows]) for t in (lse, dlse))
        given = (packed.batched(t) for t in (do[rows], q[rows], k[keys], v[keys], o[rows]))
        parts.append(flash_attention_backward(*given, *of_rows, *own.around(needed)))
        ends.append(keys.stop)
    totals = []
    for name, found in zip(names, zip(*parts, strict=True), strict=True):
        if name == "sinks":
            totals.append(torch.stack(found).sum(0))
            continue
        total = torch.cat(found, 2)[0].transpose(0, 1)
        if name != "q":
            total = F.pad(total, (0, 0, 0, 0, ends[0], k.shape[0] - ends[-1]))
        totals.append(laid_out(total, empty_like(like[name])))
    return totals


def _more_than_masked(scores: Scores) -> bool:
    """Whether scores are other than what PyTorch's own attention makes of a scale and a mask of bools: what is added may hide
    all keys of a query, of which that may make their mean."""
    added = scores.mask is not None and scores.mask.dtype != torch.bool
    return added or any(x is not None for x in (scores.softcap, scores.alibi_slopes, scores.sinks))


def _of_all_heads(t: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Keys or values of every query head."""
    return t.repeat_interleave(q.shape[1] // max(1, t.shape[1]), dim=1)


def _scores(queries: torch.Tensor, keys: torch.Tensor, scores: Scores) -> tuple[torch.Tensor, torch.Tensor | float]:
    """The scores of all queries and keys, also of those that are not seen, and how steep a soft cap leaves them."""
    made = queries @ keys.mT * scores.scale_of(queries)
    slope: torch.Tensor | float = 1.0
    if scores.softcap is not None:
        squashed = (made / scores.softcap).tanh()
        made, slope = squashed * scores.softcap, 1 - squashed * squashed
    if scores.alibi_slopes is not None:
        distance = _ahead(queries.shape[2], keys.shape[2], queries.device, scores.cache_lengths).abs()
        made = made - scores.alibi_slopes.to(made.dtype)[..., None, None] * distance
    if scores.mask is not None and scores.mask.dtype != torch.bool:
        made = made + scores.mask.to(made.dtype).masked_fill(scores.mask <= LOWEST, 0.0)
    return made, slope


def _allowed(q: torch.Tensor, k: torch.Tensor, scores: Scores) -> torch.Tensor:
    """Which keys each query sees, broadcastable to (B, H, M, N)."""
    causal, window, left, right = scores.sides(q, k)
    allowed = allowed_keys(
        q.shape[2], k.shape[2], q.device, causal, window, scores.lengths, scores.key_starts, left, right, bool(scores.own_end)
    )
    if scores.mask is None:
        return allowed
    return allowed & (scores.mask if scores.mask.dtype == torch.bool else scores.mask > LOWEST)


def summed_to(gradient: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The gradient of a mask from that of each score: the sums over what it is broadcast along."""
    return laid_out(gradient.sum_to_size(mask.shape).to(mask.dtype), empty_like(mask))


def _readable(t: torch.Tensor) -> torch.Tensor:
    """A tensor as PyTorch's fused attention reads it on a GPU, 16 bytes at a time: a copy, where its elements lie otherwise.

    PyTorch 2.11 does not always look: on an H200 misaligned keys ended the context, or gave NaN.
    """
    if t.device.type != "cuda" or type(t) not in PLAIN or is_transformed():
        return t
    step = FUSED_BYTES // t.element_size()
    regular = t.stride(-1) == 1 and all(s % step == 0 for s in t.stride()[:-1])
    return t if regular and t.data_ptr() % FUSED_BYTES == 0 else t.clone(memory_format=torch.contiguous_format)


def _summed(gradient: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """What query heads, (B, H, N, D), add to the gradient of the key-value head that they share."""
    return gradient.unflatten(1, (like.shape[1], -1)).sum(2).to(like.dtype) if like.numel() else torch.zeros_like(like)


def only_keys(t: torch.Tensor, lengths: torch.Tensor | None, starts: torch.Tensor | None = None) -> torch.Tensor:
    """Keys or values without what lies behind ``lengths`` and before ``starts``: memory that nobody has written there may hold
    NaN."""
    if lengths is None and starts is None:
        return t
    return t.masked_fill(~_counted(t.shape[2], t.device, lengths, starts)[..., None], 0.0)


def _counted(
    keys: int, device: torch.device, lengths: torch.Tensor | None, starts: torch.Tensor | None
) -> torch.Tensor:
    """Which keys of each batch entry there are, (B, 1, N)."""
    j = torch.arange(keys, device=device)
    counted = torch.ones_like(j, dtype=torch.bool)
    if lengths is not None:
        counted = counted & (j < lengths[:, None, None])
    if starts is not None:
        counted = counted & (j >= starts[:, None, None])
    return counted


def _ahead(queries: int, keys: int, device: torch.device, ends: torch.Tensor | None = None) -> torch.Tensor:
    """How many positions each query stands ahead of each key, (M, N). Query i stands at key i + N - M; with ``ends``, at
    i + ends[b] - M of its batch entry, (B, 1, M, N)."""
    j = torch.arange(keys, device=device)
    end = keys if ends is None else ends.clamp(max=keys)[:, None, None, None]
    return torch.arange(queries, device=device)[:, None] + (end - queries) - j


def allowed_keys(
    queries: int,
    keys: int,
    device: torch.device,
    causal: bool,
    window: int | None,
    key_lengths: torch.Tensor | None,
    key_starts: torch.Tensor | None = None,
    left: int | None = None,
    right: int | None = None,
    own_end: bool = False,
) -> torch.Tensor:
    """Which keys each query sees, True where it does, broadcastable to (B, H, M, N): those at most ``left`` behind it and
    ``right`` ahead among them. ``own_end``: the last query stands at the last of each entry's own keys."""
    ahead = _ahead(queries, keys, device, key_lengths if own_end else None)
    allowed = torch.ones_like(ahead, dtype=torch.bool)
    if causal:
        allowed = allowed & (ahead >= 0)
    if window is not None:
        allowed = allowed & (ahead.abs() < window)
    if left is not None:
        allowed = allowed & (ahead <= left)
    if right is not None:
        allowed = allowed & (ahead >= -right)
    if key_lengths is not None or key_starts is not None:
        allowed = allowed & _counted(keys, device, key_lengths, key_starts)[:, :, None]
    return allowed


def _with_lse(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scores: Scores, allowed: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    k, v = (_of_all_heads(t.to(compute), q) for t in (k, v))
    made, _ = _scores(q.to(compute), k, scores)
    # Rows without any key keep finite scores, so that no NaN reaches a gradient, and are blanked at the end.
    blank = ~allowed.any(-1, keepdim=True)
    made = made.masked_fill(~(allowed | blank), -torch.inf)
    # Not by the log-sum-exp, which has no digits left for the sum where a mask is added that takes all keys down to -1e9.
    o = made.softmax(-1) @ v
    lse = torch.logsumexp(made, dim=-1, keepdim=True)
    unseen: torch.Tensor | float = -torch.inf
    if scores.sinks is not None:
        unseen = scores.sinks.to(compute)[:, None, None]
        o = o * (lse - unseen).sigmoid()
        lse = torch.logaddexp(lse, unseen)
    o = o.masked_fill(blank, 0.0)
    return o.to(q.dtype), torch.where(blank, unseen, lse).squeeze(-1)


def empty_output(q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Room for o: in the memory order of q, contiguous where the last dim of q is not dense, or empty."""
    shape = *q.shape[:-1], v.shape[-1]
    if not q.shape[-1]:
        return q.new_empty(shape)
    return empty_like(q if shape == q.shape else q[..., :1].expand(shape), q.stride(-1) == 1)
