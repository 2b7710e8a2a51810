"""Who takes part in ``python -m benchmarks models``: a model as it is, and what kpt, Liger and torch.compile make of it."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from kpt import optimize

Side = Callable[[Any], Any]
"""Makes of a model what is called in its place."""


def _kpt(model: nn.Module) -> Any:
    """What was measured or is predicted to be slower stays."""
    optimize(model)
    return model


def _all_of_kpt(model: nn.Module) -> Any:
    """Sums with their norms too, and head and loss as one op where there is a loss."""
    optimize(model, "aggressive", loss=True)
    return model


def _compiled(model: nn.Module) -> Any:
    return torch.compile(model)


def _liger(model: Any) -> Any:
    """With Liger's names in the model's own file while it runs, and not beyond: it exchanges functions and classes there, which
    other candidates call too. Raises ImportError where it is not installed, KeyError for a model that it does not know."""
    from liger_kernel.transformers import monkey_patch

    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise KeyError(f"Liger has no kernels for {kind}")
    names = vars(sys.modules[type(model).__module__])
    own = dict(names)
    monkey_patch._apply_liger_kernel_to_instance(model=model)
    exchanged = {name: value for name, value in names.items() if own.get(name) is not value}
    names.update(own)
    forward = model.forward

    def patched(*args: Any, **kwargs: Any) -> Any:
        names.update(exchanged)
        try:
            return forward(*args, **kwargs)
        finally:
            names.update(own)

    model.forward = patched
    return model


SIDES: Mapping[str, Side] = {
    "torch": lambda model: model,
    "kpt": _kpt,
    "kpt, aggressive": _all_of_kpt,
    "Liger": _liger,
    "Inductor": _compiled,
    "kpt, Inductor": lambda model: _compiled(_kpt(model)),
}

DECODING_SIDES: Mapping[str, Side] = {"Inductor": lambda model: model, "kpt, Inductor": _kpt}
"""What a token takes is compiled where it is measured."""

RIVALS = {"kpt": ("torch", "Liger"), "kpt, aggressive": ("torch", "Liger"), "kpt, Inductor": ("Inductor",)}
"""Whose times are divided by a side's."""
