"""Masks of Transformers in kpt's words: drawn ones hold the values that PyTorch's attention would be given."""

import random

import pytest
import torch

pytest.importorskip("transformers")

from transformers import masking_utils as masks

from kpt.ops.replace import attention_mask as ours

PADDINGS = ("none", "full", "left", "right", "both", "holes", "nothing", "short")


def padding(kind: str, batch: int, tokens: int, draw: random.Random) -> torch.Tensor | None:
    """(batch, tokens) of bools, as Transformers hands them on; the first entry is never padded."""
    if kind == "none":
        return None
    mask = torch.ones(batch, tokens, dtype=torch.bool)
    first, last = sorted(draw.sample(range(tokens + 1), 2))
    if kind in ("left", "both"):
        mask[1:, :first] = False
    if kind in ("right", "both"):
        mask[1:, last:] = False
    if kind == "holes":
        mask[1:] = torch.tensor([draw.random() < 0.6 for _ in range(tokens)])
    if kind == "nothing":
        mask[1:] = False
    return mask[:, : draw.randint(1, tokens)] if kind == "short" else mask


@pytest.mark.parametrize("may_read", [True, False])
@pytest.mark.parametrize("kind", PADDINGS)
def test_a_mask_says_what_pytorchs_holds(kind: str, may_read: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_may_read", lambda: may_read)
    draw = random.Random(f"{kind} {may_read}")
    for _ in range(40):
        queries, past, room = draw.choice([1, 1, 2, 5]), draw.randint(0, 6), draw.choice([0, 0, 1, 4])
        keys, kv_offset, window = past + queries + room, draw.randint(0, 2), draw.choice([None, 1, 3, 20])
        function, causal = masks.causal_mask_function, True
        if window is not None:
            causal = draw.random() < 0.7
            name = "causal" if causal else "bidirectional"
            function = getattr(masks, f"sliding_window_{name}_mask_function")(window)
        offset = past + kv_offset
        described = {
            "batch_size": 3, "q_length": queries, "kv_length": keys, "kv_offset": kv_offset, "mask_function": function,
            "q_offset": torch.tensor(offset) if room and draw.random() < 0.7 else offset, "local_size": window,
            "attention_mask": padding(kind, 3, offset + queries, draw), "allow_is_causal_skip": False,
        }  # fmt: skip
        made, expected = ours.attention_mask(**described), masks.sdpa_mask(**described)
        if not causal and room:  # keys ahead, of which there are none, are in PyTorch's
            expected = expected & (torch.arange(keys) < past + queries)
        assert type(made) is ours.AttentionMask, described
        assert torch.equal(made & True, expected), described
        own, lowest = ours.own_attention_mask(**described, dtype=torch.float16), torch.finfo(torch.float16).min
        assert type(own) is ours.AttentionMask
        assert torch.equal(own + 0, torch.zeros(expected.shape, dtype=torch.float16).masked_fill(~expected, lowest))


def test_what_a_mask_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than hides keys: what is not said costs kernels nothing."""
    rows = [1] * 5, [0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 0, 1, 0]
    full, left, right, holes = (torch.tensor([[1] * 5, row]).bool() for row in rows)

    def held(
        mask: torch.Tensor | None, queries: int = 5, room: int = 0, position: torch.Tensor | None = None
    ) -> set[str]:
        made = ours.attention_mask(
            batch_size=2, q_length=queries, kv_length=5 + room, attention_mask=mask,
            q_offset=5 - queries if position is None else position, mask_function=masks.causal_mask_function,
        )  # fmt: skip
        assert isinstance(made, ours.AttentionMask)
        return set(made.held)

    assert [held(m) for m in (None, full, left, right)] == [{"nothing"}, {"nothing"}, {"starts"}, {"lengths"}]
    assert held(holes) == {"starts", "lengths", "tokens"}
    at = torch.tensor(4)
    assert [held(m, 1, 3, at) for m in (None, full, left)] == [{"cached"}, {"cached"}, {"cached", "starts"}]
    assert held(right, 1, 3, at) == {"cached", "tokens"}
    assert held(left, 5, 3, torch.tensor(0)) == {"starts"}, "a prompt in a static cache is read, and kernels see no more keys"
    monkeypatch.setattr(ours, "_may_read", lambda: False)
    assert held(left, 5, 3, torch.tensor(0)) == {"cached", "starts", "tokens"}
    assert held(None, 1, 3, at) == {"cached"}
