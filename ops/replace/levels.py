"""``kpt.optimize``: what of a model is replaced, by level, but for what is slower then."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from torch import nn

from kpt.ops.replace.candidates import replacement_of
from kpt.ops.replace.forms import head_and_loss
from kpt.ops.replace.report import Report, Skipped
from kpt.ops.replace.rules import ASKED_FOR, ATTENTION, KINDS, LINEARS
from kpt.ops.replace.slower import why_slower
from kpt.ops.replace.swap import replace_kinds
from kpt_dsl.errors import InputError

LEVELS: Mapping[str, Collection[str]] = {
    "conservative": ("layer_norm", "rms_norm", "scaled_dot_product_attention", ATTENTION),
    "balanced": (*KINDS, *(rule.kind for rule in LINEARS)),
    "aggressive": (*KINDS, *ASKED_FOR),
}
"""The kinds of each level. What is found in the text of a forward is the last one's."""


def optimize(model: nn.Module, level: str = "balanced", *, loss: bool = False) -> Report:
    """Put into a model, in place, what of kpt's ops makes it faster, and say what was done.

    ``level``: "conservative" replaces norms and attention; "balanced" all that ``replace_modules`` does, in training the
    gradients of linear layers' biases, and products whose rows are not aligned; "aggressive" also what is found in the text of
    a forward: sums with the norms of them, linear layers with activations. ``loss``: in training with labels, a Transformers
    model's head and loss become ``kpt.ops.linear_cross_entropy``, where its own code was shown to compute the same: its logits
    are never held, and are None in its outputs; nor do gated MLPs hold what gate and up give together, which their backward
    makes anew. On a GPU, a module stays what it is where kpt was measured or is predicted slower than it, in the mode that it
    is in; on a CPU all is replaced, and PyTorch serves there (docs/replacing-modules.md). ``restore_modules`` undoes all of it.
    An exception leaves modules as they were.

    Raises InputError for a model that is no ``nn.Module`` and for an unknown level.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is {type(model).__name__}; accepted: a torch.nn.Module")
    if level not in LEVELS:
        raise InputError(f"level is {level!r}; accepted: {', '.join(LEVELS)}")
    kinds = (*LEVELS[level], *([head_and_loss.KIND] if loss else []))
    report = replace_kinds(model, kinds, required=False, why_not=why_slower)
    met = {s.kind for s in report.skipped} | {r.kind for m in model.modules() if (r := replacement_of(m)) is not None}
    if not loss or head_and_loss.KIND in met:
        return report
    reason = "no module of it looks up a loss of the logits that a linear layer of its own gives"
    return replace(report, skipped=(*report.skipped, Skipped("(model)", head_and_loss.KIND, reason)))
