"""kpt's attention in the place of the function in a model's own code, which Transformers calls "eager": of models that do not
offer PyTorch's, since it has neither a soft cap nor sinks.

Such a function is replaced where it was seen to compute what kpt's op does, on small drawn inputs, with and without what its
layers pass it.
"""

import sys
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from kpt.ops.flash_attention import reference
from kpt.ops.flash_attention.scores import Scores
from kpt.ops.replace import proof
from kpt.ops.replace.attention_call import attend, count, refuse_unknown, why_not
from kpt.ops.replace.attention_mask import added
from kpt.ops.replace.keywords import EAGER
from kpt.ops.replace.source import findings

CLOSE = 1e-4
"""Float32 of scores of a few units agrees to 1e-6; what means something else differs by tenths."""


def own_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **keywords: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As ``attention_forward``, in the place of the function of the layer's own code: that one reads no causality but the
    mask's, and gives attention weights, None here where they are not asked for."""
    asked = [name for name, value in keywords.items() if value is not None]
    if asked:
        refuse_unknown(module, asked, EAGER)
    queries, keys = query.shape, key.shape
    if keywords.get("output_attentions"):
        reason: str | None = "attention weights are asked for"
    elif scaling is None:
        reason = "the layer passes no scaling"
    else:
        reason = why_not(query, key, value, queries, keys, attention_mask, dropout, asked, keywords, False)
    if reason is None:
        return attend(query, key, value, queries, keys, attention_mask, scaling, asked, keywords, False)
    count(module, reason)
    function = own_function(type(module))
    assert function is not None, "it was there when the model was replaced"
    output: tuple[torch.Tensor, torch.Tensor | None] = function(
        module, query, key, value, attention_mask, scaling=scaling, dropout=dropout,
        **({} if is_causal is None else {"is_causal": is_causal}), **keywords,
    )  # fmt: skip
    return output


def own_function(kind: type[nn.Module]) -> Callable[..., Any] | None:
    """The function that layers of a class call as "eager", by the name that it has in all of Transformers."""
    for base in kind.__mro__:
        found = vars(sys.modules[base.__module__]).get("eager_attention_forward")
        if found is not None:
            function: Callable[..., Any] = found
            return function
    return None


def why_not_shown(module: nn.Module) -> str | None:
    """Why a layer's own function was not seen to compute what kpt's op does; None where it was, or none is called."""
    said = findings(type(module), EAGER)
    if not said.attends:
        return None
    function = own_function(type(module))
    if function is None:
        return "calls an attention function of its own that was not found"
    with proof.undisturbed(torch.device("cpu")):
        return _why_not(function, said.scores, 2 if hasattr(module, "num_key_value_groups") else 1)


@cache
def _why_not(function: Callable[..., Any], scores: tuple[tuple[str, str], ...], groups: int) -> str | None:
    """Of a function whose layers pass these ``SCORES``, each with the attribute of the layer that holds it, or ""."""
    generator = torch.Generator("cpu").manual_seed(20)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)

    queries, heads, keys = 5, 4, 7
    q = drawn(2, heads, queries, 8)
    k, v = (drawn(2, heads // groups, keys, 8) for _ in range(2))
    seen = torch.ones(2, 1, queries, keys, dtype=torch.bool, device="cpu").tril(keys - queries)
    seen[1, ..., :4] = False  # all keys of the first query
    given: dict[str, Any] = {"softcap": 0.8, "s_aux": drawn(heads), "position_bias": drawn(1, heads, queries, keys)}
    for passed in (True, False) if scores else (True,):
        values = {name: given[name] if passed else None for name, _ in scores}
        layer = SimpleNamespace(training=False, num_key_value_groups=groups, is_causal=True)
        vars(layer).update({attribute: values[name] for name, attribute in scores if attribute})
        try:
            with torch.no_grad():
                got = function(layer, q, k, v, added(seen, q.dtype), scaling=0.7, dropout=0.0, **values)[0]
        except Exception as error:
            if not passed:  # it never comes without
                continue
            return f"has an attention function that could not be tried: {type(error).__name__}: {error}"
        bias = values.get("position_bias")
        mask = seen if bias is None else bias.masked_fill(~seen, -torch.inf)
        expected = reference.flash_attention(
            q, k, v, *Scores(scale=0.7, softcap=values.get("softcap"), mask=mask, sinks=values.get("s_aux")).around(False)
        )[0].transpose(1, 2)
        rows = seen[:, 0].any(-1)
        if got.shape != expected.shape or not torch.allclose(got[rows], expected[rows], atol=CLOSE):
            return "has an attention function that computes something else than kpt's"
    return None
