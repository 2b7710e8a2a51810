"""The form of a language model of Transformers whose own code makes logits by a linear layer, and its loss of them.

``self.loss_function(self.lm_head(hidden), labels, …)`` becomes one ``kpt.ops.linear_cross_entropy``, which never holds the
logits, in training with labels. All else is the model's own code: it runs as it is, with a head that only notes what it is
given, and a loss that takes up what was noted.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial, wraps
from math import isclose
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kpt.ops.linear_cross_entropy.op import linear_cross_entropy
from kpt.ops.replace import proof
from kpt.ops.replace.forms.classes import inputs
from kpt.ops.replace.modules import is_linear, is_watched
from kpt.ops.replace.proven import Refused, Served

KIND = "linear_cross_entropy"

LABELS = "labels"

FEATURES = 8
"""Of what is drawn for the input of the head; its classes are as many as it has."""

TOKENS = (2, 5)

UNSCALED = 1e-12
"""Within which a scale is 1: a cap is divided by and multiplied with, each rounded."""

IGNORED = -100

CASES = tuple(
    proof.Case(dtype, x, 1.0, TOKENS, gradients=True, training=True)
    for dtype, x in (
        (torch.float32, 1.0), (torch.float32, 1e-2), (torch.float32, 4.0), (torch.bfloat16, 1.0), (torch.float16, 1.0),
    )
)  # fmt: skip
"""Hidden states of several scales, since caps and factors cannot be seen at one."""


@dataclass(frozen=True, slots=True)
class HeadAndLoss:
    """``head``: what a model calls the linear layer; ``loss``: the function that it looks up."""

    head: str
    loss: Callable[..., torch.Tensor]
    kind = KIND
    live = None

    def forward(self, original: type[nn.Module]) -> Callable[..., Any]:
        own, head, loss = original.forward, self.head, self.loss
        place = list(inspect.signature(own).parameters).index(LABELS) - 1

        @wraps(own)
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            labels = args[place] if len(args) > place else kwargs.get(LABELS)
            if labels is None or not self.training or not _is_as_proven(self, head, loss):
                return own(self, *args, **kwargs)
            return _without_logits(own(_Exchanged(self, head), *args, **kwargs))

        return forward


class Logits:
    """In the place of logits: the input and the layer that they are made of, and the number that they are multiplied with;
    ``softcap``: what they are then capped at, as cap * tanh(logits / cap)."""

    def __init__(self, x: torch.Tensor, layer: nn.Linear, scale: float = 1.0, softcap: float | None = None) -> None:
        self.x = x
        self.layer = layer
        self.scale = scale
        self.softcap = softcap

    def __mul__(self, other: Any) -> "Logits":
        factor = _number(other)  # f c tanh(s x / c) is the same with f s and f c in the place of s and c
        softcap = None if self.softcap is None else abs(self.softcap * factor)
        return Logits(self.x, self.layer, self.scale * factor, softcap)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> "Logits":
        return self * (1 / _number(other))

    def tanh(self) -> "Logits":
        """A cap at 1, which a factor makes another."""
        if self.softcap is not None:
            raise TypeError("its logits go through tanh twice")
        return Logits(self.x, self.layer, self.scale, 1.0)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.tanh and not kwargs:
            return args[0].tanh()
        raise TypeError(f"its logits go through {function.__name__}")

    def float(self) -> "Logits":
        """As they are: losses are float32 whatever logits are."""
        return self

    def contiguous(self) -> "Logits":
        """As they are."""
        return self

    def loss(
        self,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None,
        ignore_index: int,
        shift_labels: torch.Tensor | None,
    ) -> torch.Tensor:
        """As Transformers' ``ForCausalLMLoss`` has it: each token is to foretell the next one, and the mean is over the tokens
        that count, or over so many as there are in the whole of a batch that comes in parts."""
        if shift_labels is None:
            shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
        x: torch.Tensor = self.x
        bias: torch.Tensor | None = self.layer.bias
        if not isclose(self.scale, 1.0, rel_tol=UNSCALED):
            x, bias = x * self.scale, None if bias is None else bias * self.scale
        loss = linear_cross_entropy(
            x.reshape(-1, x.shape[-1]), self.layer.weight, shift_labels.reshape(-1).to(x.device), bias,
            ignore_index=ignore_index, reduction="mean" if num_items_in_batch is None else "sum", softcap=self.softcap,
        ).float()  # fmt: skip
        if isinstance(num_items_in_batch, torch.Tensor):
            num_items_in_batch = num_items_in_batch.to(loss.device)
        return loss if num_items_in_batch is None else loss / num_items_in_batch


class _Head:
    """In the place of a head: gives what stands for logits."""

    def __init__(self, layer: nn.Linear) -> None:
        self._layer = layer

    def __call__(self, x: torch.Tensor) -> Logits:
        return Logits(x, self._layer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


class _Exchanged:
    """A model as its own forward sees it: the head gives what stands for logits, the loss takes that; else it is itself."""

    def __init__(self, model: Any, head: str) -> None:
        object.__setattr__(self, "_model", model)  # as torch.compile of older versions follows it
        object.__setattr__(self, "_head", head)

    def __getattr__(self, name: str) -> Any:
        if name == self._head:
            return _Head(getattr(self._model, name))
        return getattr(self._model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._model, name, value)

    def loss_function(
        self,
        logits: Logits,
        labels: torch.Tensor,
        vocab_size: int,
        num_items_in_batch: torch.Tensor | int | None = None,
        ignore_index: int = IGNORED,
        shift_labels: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """In the place of Transformers' function of these parameters."""
        return logits.loss(labels, num_items_in_batch, ignore_index, shift_labels)


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)):
        raise TypeError(f"its logits meet a {type(value).__name__}")
    return value


def _without_logits(outputs: Any) -> Any:
    """The outputs of a model with None in the place of logits; of a tuple, as its length and order are told by."""
    if isinstance(outputs, tuple):
        return tuple([None if isinstance(value, Logits) else value for value in outputs])
    return type(outputs)(**{name: value for name, value in outputs.items() if not isinstance(value, Logits)})


def _is_as_proven(model: Any, head: str, loss: Any) -> bool:
    """Whether the head is still a linear layer that nobody watches, sharded or quantised, and the loss what was proven."""
    layer = getattr(model, head)
    return is_linear(layer) and not is_watched(layer) and model.loss_function is loss


def match(module: nn.Module) -> HeadAndLoss | None:
    """What a module of this form calls its head, and the loss that it looks up; None for one of another."""
    model: Any = module
    if not hasattr(type(module), "loss_function") or LABELS not in inputs(module):
        return None
    head = model.get_output_embeddings()
    name = next((name for name, child in module.named_children() if child is head), None)
    return None if name is None else HeadAndLoss(name, model.loss_function)


def prove(module: nn.Module, matched: HeadAndLoss, kinds: Collection[str]) -> Served | Refused | None:
    """What serves a model of this form, or how its loss differs; None where its kind is not meant.

    Its own forward runs beside the one that takes its place, which has PyTorch's operations in float64, on drawn hidden states.
    """
    if KIND not in kinds:
        return None
    name, head = type(module).__name__, getattr(module, matched.head)
    if not is_linear(head):
        return Refused(KIND, f"{name} has a head of the class {type(head).__name__}, not nn.Linear")
    forward = matched.forward(type(module))
    for way in ({}, {"num_items_in_batch": 7}):
        own, ours = (partial(_loss, module, matched.head, way, by) for by in (type(module).forward, forward))
        tests = [replace(case, terms=head.out_features) for case in CASES]
        difference = proof.difference(partial(_trial, head, own), ours, tests, torch.device("cpu"))
        if difference is not None:
            return Refused(KIND, f"the loss of {name} is not shown to be {KIND}: {difference.what}")
    return matched


def _trial(head: nn.Linear, own: Callable[..., torch.Tensor], case: proof.Case, draw: proof.Draw) -> proof.Run:
    given = {
        "hidden states": draw(*TOKENS, FEATURES, scale=case.x),
        "head": draw(head.out_features, FEATURES, scale=case.parameters),
    }
    if head.bias is not None:
        given["bias"] = draw(head.out_features)
    return proof.Run(given, lambda: own(*given.values()))


def _loss(
    module: nn.Module, head: str, way: Mapping[str, Any], forward: Callable[..., Any], x: torch.Tensor, *drawn: torch.Tensor
) -> torch.Tensor:
    """The loss of a model with these hidden states, and these parameters of the head."""
    own: Any = getattr(module, head)
    layer = proof.twin(own, True, dict(zip(("weight", "bias"), drawn, strict=False)))
    others = {name: _Given(x, child) for name, child in module.named_children() if name != head}
    subject = proof.twin(module, True, children={**others, head: layer})
    tokens = torch.arange(TOKENS[0] * TOKENS[1], device="cpu").view(TOKENS)
    labels = (tokens * 7919 + 1) % own.out_features
    labels[0, 2] = labels[1, -1] = IGNORED
    loss: torch.Tensor = forward(subject, input_ids=tokens, labels=labels, **way)[0]
    return loss.reshape(1).to(x.dtype)


class _Given(nn.Module):
    """In the place of all but the head, and of what is in it: gives the drawn hidden states."""

    def __init__(self, x: torch.Tensor, original: nn.Module) -> None:
        super().__init__()
        vars(self).update(x=x, original=original)

    def forward(self, *_: Any, **__: Any) -> "_Outputs":
        return _Outputs(self.x)

    def __getattr__(self, name: str) -> Any:
        found = getattr(vars(self)["original"], name)
        return _Given(self.x, found) if isinstance(found, nn.Module) else found


class _Outputs:
    """What a model without its head gives: hidden states, and nothing else that it might."""

    def __init__(self, x: torch.Tensor) -> None:
        self.last_hidden_state = x

    def __getitem__(self, place: Any) -> Any:
        return () if isinstance(place, slice) else self.last_hidden_state

    def __getattr__(self, name: str) -> None:
        return None
