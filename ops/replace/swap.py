"""Replacing and restoring: walk the model, apply the table, report.

A ``forward`` patched on an instance runs whatever it captured, so a module with one is left alone, in both directions.
Accelerate patches thus (device maps, offloading), and keeps what it wraps where it can be exchanged: ``_old_forward``.
"""

from collections.abc import Collection

from torch import nn

from kpt.ops.replace import attention
from kpt.ops.replace.report import Change, Report, Skipped
from kpt.ops.replace.rules import ATTENTION, KINDS, RULES, Rule
from kpt_dsl.errors import InputError


def replace_modules(model: nn.Module, *, only: Collection[str] | None = None) -> Report:
    """Put kpt ops into a model, in place: norms, Linear-then-activation pairs of ``nn.Sequential``, Transformers' attention.

    ``only``: some of the kinds "layer_norm", "rms_norm", "linear_act", "attention". State dicts, hooks, flags, devices and
    dtypes stay as they are. Attention is replaced where a model runs "sdpa" and its code needs no more than that; calls that
    kpt cannot express still go there, and are counted (``kpt.ops.counters``). Gives a report that prints what changed, what of
    it stays PyTorch's, and what was left alone, and why. Replacing twice changes nothing more.

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
            if isinstance(module, rule.replacement):
                _restore(path or "(model)", module, rule, changes, skipped)
    attention.restore(model, changes)
    return Report("restored", tuple(changes), tuple(skipped))


def _restore(path: str, module: nn.Module, rule: Rule, changes: list[Change], skipped: list[Skipped]) -> None:
    if type(module) is not rule.replacement:
        reason = f"its class was changed to {type(module).__name__} after it was replaced"
        skipped.append(Skipped(path, rule.kind, reason))
    elif not _becomes(module, rule.replacement, rule.original):
        reason = "its forward was patched on the instance after it was replaced: take that out, and restore again"
        skipped.append(Skipped(path, rule.kind, reason))
    else:
        changes.append(Change(path, rule.kind, rule.replacement.__name__, rule.original.__name__))


def _replace(path: str, module: nn.Module, rule: Rule, changes: list[Change], skipped: list[Skipped]) -> None:
    if isinstance(module, rule.replacement):
        return
    if type(module) is not rule.original:
        reason = f"{type(module).__name__} is a subclass of {rule.original.__name__} and may compute something else"
        skipped.append(Skipped(path, rule.kind, reason))
    elif not _becomes(module, rule.original, rule.replacement):
        skipped.append(Skipped(path, rule.kind, "its forward was patched on the instance"))
    else:
        changes.append(Change(path, rule.kind, rule.original.__name__, rule.replacement.__name__))


def _becomes(module: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> bool:
    """Change the class of a module, and with it the forward that accelerate keeps on the instance: beneath a hook, and after
    the hook is gone. False where another's forward is in the way."""
    own = module.__dict__
    if "forward" in own:
        kept = "_old_forward" if "_hf_hook" in own and "_old_forward" in own else "forward"
        if getattr(own[kept], "__func__", None) is not old.forward:
            return False
        own[kept] = new.forward.__get__(module)
    module.__class__ = new
    return True


def _kinds(model: nn.Module, only: Collection[str] | None) -> Collection[str]:
    if not isinstance(model, nn.Module):
        raise InputError(f"model is {type(model).__name__}; accepted: a torch.nn.Module")
    if only is None:
        return KINDS
    if isinstance(only, str) or set(only) - set(KINDS):
        raise InputError(f"only is {only!r}; accepted: a collection out of {', '.join(KINDS)}")
    return only
