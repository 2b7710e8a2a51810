"""Replacing and restoring: walk the model, find what serves each module, change classes, report.

PyTorch's own classes are replaced by a table, others by form and proof. All is decided before anything changes.

A ``forward`` patched on an instance runs whatever it captured, so a module with one is left alone, in both directions.
Accelerate patches thus (device maps, offloading), and keeps what it wraps where it can be exchanged: ``_old_forward``.
"""

from collections.abc import Collection

from torch import nn

from kpt.ops.replace import attention
from kpt.ops.replace.candidates import Candidates, replacement_of
from kpt.ops.replace.layers import Layers, WhyNot
from kpt.ops.replace.linears import Linears
from kpt.ops.replace.proven import Refused
from kpt.ops.replace.report import Change, Report, Skipped
from kpt.ops.replace.rules import ASKED_FOR, ATTENTION, CHANGED, KINDS, Rule
from kpt_dsl.errors import InputError


def replace_modules(model: nn.Module, *, only: Collection[str] | None = None) -> Report:
    """Put kpt ops into a model, in place: norms, gated MLPs, Linear-then-activation pairs of ``nn.Sequential``, PyTorch's
    attention, transformer layers and cross-entropy, functions that a module's code calls (rotary embedding, PyTorch's
    attention and cross-entropy), Transformers' attention.

    ``only``: some of the kinds "layer_norm", "rms_norm", "linear_act", "gated_act", "rotary",
    "scaled_dot_product_attention", "cross_entropy", "attention", which are all by default; two of plain linear layers,
    "bias_gradient" and "unaligned_linear", such as have a number of features that is no multiple of 8; and two of modules that
    are found by the text of their forward: "add_norm", a norm of kpt's of a sum, and "inner_linear_act", an activation of what
    a linear layer gives.
    A module of a class that is not PyTorch's is replaced where it was shown to compute what the op does: on drawn rows, at
    several scales, in float32 and both half types, with gradients. State dicts, hooks, flags, devices and dtypes stay as they
    are. Attention is replaced where a model runs "sdpa" and its code needs no more than that; calls that kpt cannot express
    still go there, and are counted (``kpt.ops.counters``). Gives a report that prints what changed, what of it stays
    PyTorch's, and what was left alone, and why. Replacing twice changes nothing more. An exception leaves modules as they were.

    Raises InputError for a model that is no ``nn.Module`` and for an unknown kind, MissingPackageError when attention is asked
    for by name and Transformers is missing or too old.
    """
    return replace_kinds(model, _kinds(model, only), required=only is not None)


def replace_kinds(
    model: nn.Module,
    kinds: Collection[str],
    *,
    required: bool,
    why_not: WhyNot = lambda *_: None,
) -> Report:
    """Replace what is of these kinds, attention too where Transformers is there, or ``required``. ``why_not``: why a module
    stays although a replacement is known to compute the same, or None."""
    changes: list[Change] = []
    skipped: list[Skipped] = []
    done: list[tuple[nn.Module, Rule]] = []
    askings = (Candidates(kinds), Layers(kinds, why_not), Linears(kinds))  # each asks for what was replaced by those before it
    try:
        for answers in askings:
            found = [(path or "(model)", module, answers.of(module)) for path, module in model.named_modules()]
            for path, module, answer in found:
                if isinstance(answer, Refused) and any(s.path == path for s in skipped):
                    continue  # why it stays was said
                if isinstance(answer, Refused):
                    skipped.append(Skipped(path, answer.kind, answer.reason))
                elif answer is not None and (reason := why_not(module, answer.kind, answer.served)) is not None:
                    skipped.append(Skipped(path, answer.kind, reason))
                elif answer is not None and not _becomes(module, answer.original, answer.replacement):
                    skipped.append(Skipped(path, answer.kind, "its forward was patched on the instance"))
                elif answer is not None:
                    done.append((module, answer))
                    names = answer.original.__name__, answer.replacement.__name__
                    changes.append(Change(path, answer.kind, *names, answer.unserved, answer.ops))
        if ATTENTION in kinds:
            attention.replace(model, changes, skipped, required=required)
    except BaseException:
        for module, rule in done:
            _becomes(module, rule.replacement, rule.original)
        raise
    devices = {p.device.type: None for p in model.parameters()}
    return Report("replaced", tuple(changes), tuple(skipped), tuple(devices))


def restore_modules(model: nn.Module) -> Report:
    """Undo ``replace_modules`` exactly, also on a copy or a reloaded pickle. Gives a report.

    Raises InputError for a model that is no ``nn.Module``.
    """
    _kinds(model, None)
    changes: list[Change] = []
    skipped: list[Skipped] = []
    for path, module in model.named_modules():
        if (replaced := replacement_of(module)) is not None:
            _restore(path or "(model)", module, replaced, changes, skipped)
    attention.restore(model, changes)
    return Report("restored", tuple(changes), tuple(skipped))


def _restore(path: str, module: nn.Module, replaced: Rule, changes: list[Change], skipped: list[Skipped]) -> None:
    vars(module).pop(CHANGED, None)
    if type(module) is not replaced.replacement:
        reason = f"its class was changed to {type(module).__name__} after it was replaced"
        skipped.append(Skipped(path, replaced.kind, reason))
    elif not _becomes(module, replaced.replacement, replaced.original):
        reason = "its forward was patched on the instance after it was replaced: take that out, and restore again"
        skipped.append(Skipped(path, replaced.kind, reason))
    else:
        names = replaced.replacement.__name__, replaced.original.__name__
        changes.append(Change(path, replaced.kind, *names, ops=replaced.ops))


def _becomes(module: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> bool:
    """Change the class of a module, and with it the forward that accelerate keeps on the instance: beneath a hook, and after
    the hook is gone. False where another's forward is in the way."""
    own = module.__dict__
    kept = "_old_forward" if "_hf_hook" in own and "_old_forward" in own else "forward"
    if "forward" in own and getattr(own[kept], "__func__", None) is not old.forward:
        return False
    module.__class__ = new
    if "forward" in own:
        own[kept] = new.forward.__get__(module)
    return True


def _kinds(model: nn.Module, only: Collection[str] | None) -> Collection[str]:
    if not isinstance(model, nn.Module):
        raise InputError(f"model is {type(model).__name__}; accepted: a torch.nn.Module")
    if only is None:
        return KINDS
    accepted = (*KINDS, *ASKED_FOR)
    if isinstance(only, str) or set(only) - set(accepted):
        raise InputError(f"only is {only!r}; accepted: a collection out of {', '.join(accepted)}")
    return only
