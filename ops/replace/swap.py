"""Replacing and restoring: walk the model, apply the table, report."""

from collections.abc import Collection

from torch import nn

from kpt.ops.replace import attention
from kpt.ops.replace.report import Change, Report, Skipped
from kpt.ops.replace.rules import ATTENTION, KINDS, RULES, Rule
from kpt_dsl.errors import InputError


def replace_modules(model: nn.Module, *, only: Collection[str] | None = None) -> Report:
    """Put kpt ops into a model, in place: norms, Linear-then-activation pairs of ``nn.Sequential``, Transformers' attention.

    ``only``: some of the kinds "layer_norm", "rms_norm", "linear_act", "attention". State dicts, hooks, flags, devices and
    dtypes stay as they are. Attention is replaced where a model runs "sdpa"; masks that kpt cannot express still go there.
    Gives a report that prints what changed and what was left alone, and why. Replacing twice changes nothing more.

    Raises InputError for a model that is no ``nn.Module`` and for an unknown kind, MissingPackageError when attention is asked
    for by name and Transformers is missing or too old.
    """
    kinds = _kinds(model, only)
    changes: list[Change] = []
    skipped: list[Skipped] = []
    for path, module in model.named_modules():
        for rule in RULES:
            if rule.kind in kinds and isinstance(module, rule.original) and rule.applies(module):
                _replace(path or "(model)", module, rule, changes, skipped)
    if ATTENTION in kinds:
        attention.replace(model, changes, skipped, required=only is not None)
    return Report("replaced", tuple(changes), tuple(skipped))


def restore_modules(model: nn.Module) -> Report:
    """Undo ``replace_modules`` exactly, also on a copy or a reloaded pickle. Gives a report.

    Raises InputError for a model that is no ``nn.Module``.
    """
    _kinds(model, None)
    changes: list[Change] = []
    skipped: list[Skipped] = []
    for path, module in model.named_modules():
        for rule in RULES:
            if type(module) is rule.replacement:
                module.__class__ = rule.original
                changes.append(Change(path or "(model)", rule.kind, rule.replacement.__name__, rule.original.__name__))
            elif isinstance(module, rule.replacement):
                reason = f"its class was changed to {type(module).__name__} after it was replaced"
                skipped.append(Skipped(path or "(model)", rule.kind, reason))
    attention.restore(model, changes)
    return Report("restored", tuple(changes), tuple(skipped))


def _replace(path: str, module: nn.Module, rule: Rule, changes: list[Change], skipped: list[Skipped]) -> None:
    if isinstance(module, rule.replacement):
        return
    if type(module) is not rule.original:
        reason = f"{type(module).__name__} is a subclass of {rule.original.__name__} and may compute something else"
        skipped.append(Skipped(path, rule.kind, reason))
    elif "forward" in module.__dict__:
        skipped.append(Skipped(path, rule.kind, "its forward was patched on the instance"))
    else:
        module.__class__ = rule.replacement
        changes.append(Change(path, rule.kind, rule.original.__name__, rule.replacement.__name__))


def _kinds(model: nn.Module, only: Collection[str] | None) -> Collection[str]:
    if not isinstance(model, nn.Module):
        raise InputError(f"model is {type(model).__name__}; accepted: a torch.nn.Module")
    if only is None:
        return KINDS
    if isinstance(only, str) or set(only) - set(KINDS):
        raise InputError(f"only is {only!r}; accepted: a collection out of {', '.join(KINDS)}")
    return only
