"""The attention of Transformers models: which configs run kpt's, and the function that they then call.

Restoring needs no memory: only models that run "sdpa" are replaced, so "sdpa" is what they go back to.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from kpt.ops.flash_attention.op import flash_attention
from kpt.ops.replace.attention_mask import AttentionMask, attention_mask, log_once
from kpt.ops.replace.report import Change, Skipped
from kpt.ops.replace.rules import ATTENTION
from kpt_dsl.errors import MissingPackageError

NAME = "kpt"
"""Under which Transformers knows kpt's attention: ``config._attn_implementation``."""

REPLACES = "sdpa"

OLDEST = (5, 4)
"""The first Transformers release whose mask interface gives query lengths and offsets as numbers."""


def replace(model: nn.Module, changes: list[Change], skipped: list[Skipped], *, required: bool) -> None:
    """Let every config of the model that runs sdpa run kpt's attention.

    Raises MissingPackageError where ``required`` and Transformers is missing or too old.
    """
    configs = list(_configs(model))
    try:
        if required or configs:
            _register()
    except MissingPackageError as error:
        if required:
            raise
        skipped.extend(Skipped(path, ATTENTION, str(error)) for path, _, _ in configs)
        return
    for path, config, settable in configs:
        found = config._attn_implementation
        if found == NAME:
            continue
        if found != REPLACES:
            skipped.append(
                Skipped(path, ATTENTION, f'it runs "{found}"; load it with attn_implementation="{REPLACES}"')
            )
        elif not settable:
            skipped.append(Skipped(path, ATTENTION, "the model does not go through Transformers' AttentionInterface"))
        else:
            _set(config, NAME)
            changes.append(Change(path, ATTENTION, REPLACES, NAME))


def restore(model: nn.Module, changes: list[Change]) -> None:
    """Let every config that runs kpt's attention run sdpa again."""
    for path, config, _ in _configs(model):
        if config._attn_implementation == NAME:
            _set(config, REPLACES)
            changes.append(Change(path, ATTENTION, NAME, REPLACES))


def attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What an attention layer calls: (B, heads, length, head dim) in, (B, length, heads, head dim) out."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    reason = _why_not(query, key, value, dropout, kwargs)
    if reason is not None:
        log_once(f"attention runs in PyTorch: {reason}")
    elif isinstance(attention_mask, AttentionMask):
        lengths = attention_mask.key_lengths
        lengths = None if lengths is None else lengths.to(query.device)
        return _attend(query, key, value, attention_mask.causal, scaling, attention_mask.window, lengths)
    elif attention_mask is None:  # the layer itself knows, as for sdpa
        causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal) and query.shape[2] > 1
        if not causal or query.shape[2] == key.shape[2]:
            return _attend(query, key, value, causal, scaling, None, None)
    output: tuple[torch.Tensor, None] = ALL_ATTENTION_FUNCTIONS[REPLACES](
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
    )
    return output


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    causal: bool,
    scale: float | None,
    window: int | None,
    key_lengths: torch.Tensor | None,
) -> tuple[torch.Tensor, None]:
    o = flash_attention(query, key, value, causal=causal, scale=scale, window=window, key_lengths=key_lengths)
    assert isinstance(o, torch.Tensor)
    return o.transpose(1, 2).contiguous(), None


def _why_not(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, kwargs: dict[str, Any]
) -> str | None:
    if dropout:
        return "dropout is on"
    if value.shape != key.shape or query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        return "queries, keys and values differ in batch or head dim"
    if len({query.dtype, key.dtype, value.dtype}) != 1:
        return "queries, keys and values differ in dtype"
    asked = [
        name for name in ("softcap", "s_aux", "position_bias", "head_mask", "cache") if kwargs.get(name) is not None
    ]
    return f"the layer asks for {asked[0]}" if asked else None


def _configs(model: nn.Module) -> Iterator[tuple[str, Any, bool]]:
    """Each Transformers config in the model once: the path of the first module that has it, and whether its attention
    can be chosen."""
    seen: dict[int, tuple[str, Any, bool]] = {}
    for path, module in model.named_modules():
        config = getattr(module, "config", None)
        if not hasattr(type(config), "_attn_implementation"):
            continue
        can_set = getattr(module, "_can_set_attn_implementation", None)
        settable = can_set is None or bool(can_set())
        first, _, settable_so_far = seen.get(id(config), (f"{path or '(model)'}.config", config, True))
        seen[id(config)] = (first, config, settable_so_far and settable)
    yield from seen.values()


def _set(config: Any, name: str) -> None:
    config._attn_implementation = {"": name}  # this config alone, not those inside it


def _register() -> None:
    need = f"replacing attention needs transformers {OLDEST[0]}.{OLDEST[1]} or newer"
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError(f"{need}: pip install -U transformers") from error
    if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < OLDEST:
        raise MissingPackageError(f"{need}, found {transformers.__version__}: pip install -U transformers")
    transformers.AttentionInterface.register(NAME, attention_forward)
    transformers.AttentionMaskInterface.register(NAME, attention_mask)
