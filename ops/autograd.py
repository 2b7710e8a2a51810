"""How autograd follows ops whose forward is a generated kernel: one torch.autograd.Function for all of them.

An op's ``Gradient`` says what to run; here is what is the same for every op: which gradients are needed, what is saved and how,
whose preference holds, and that a gradient is not differentiated again. Knows no op.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch

from kpt.ops.choice import Holding, preferred
from kpt.ops.registry import Op, Ready
from kpt_dsl.errors import KptError

_below_autograd = torch._C._AutoDispatchBelowADInplaceOrView
"""Neither gradients nor views are noted inside."""


def followed(op: Op, dispatch: Ready) -> Ready:
    """The calls of one kind, of an op that has a ``Gradient``, followed by autograd; ``dispatch`` runs the op itself."""
    kind = _Kind(op, dispatch)

    def ready(*arguments: Any) -> Any:
        count, *tensors = _follow(kind, *arguments)
        return tensors[0] if count is None else tensors[:count]

    return ready


class _Form(NamedTuple):
    """What is the same for all calls of a kind: found when the first one was made."""

    needed: tuple[bool, ...]
    """Which of the gradients that the op has."""
    positions: tuple[int, ...]
    """Of what is given back to autograd, where those are."""
    preference: str | None
    outputs: int
    values: tuple[Any, ...]
    """What is saved, None in the places of tensors."""
    places: tuple[int, ...]
    """Where these are."""
    others: tuple[int, ...]
    """Those of them that are neither arguments nor outputs."""


class _Kind:
    """Calls of an op that differ in values only."""

    __slots__ = ("dispatch", "form", "gradient", "op")

    def __init__(self, op: Op, dispatch: Ready) -> None:
        assert op.gradient is not None
        self.op, self.gradient, self.dispatch = op, op.gradient, dispatch
        self.form: _Form | None = None

    def formed(self, needed: tuple[bool, ...], arguments: Sequence[Any], given: Sequence[Any], saved: Sequence[Any]) -> _Form:
        """Find the form, from the first call."""
        places = tuple([i for i, value in enumerate(saved) if isinstance(value, torch.Tensor)])
        known = {*map(id, arguments), *map(id, given)}
        self.form = _Form(
            needed,
            tuple([1 + position for position, n in zip(self.op.differentiable, needed, strict=True) if n]),
            preferred(),
            len(given),
            tuple([None if i in places else value for i, value in enumerate(saved)]),
            places,
            tuple([i for i in places if id(saved[i]) not in known]),
        )
        return self.form

    def gradients(
        self, form: _Form, tensors: Sequence[torch.Tensor], arriving: Sequence[torch.Tensor | None]
    ) -> Sequence[torch.Tensor]:
        """Those that are needed."""
        saved = list(form.values)
        for place, tensor in zip(form.places, tensors, strict=True):
            saved[place] = tensor
        with _below_autograd():
            if preferred() == form.preference:
                return self.gradient.backward(tuple(saved), form.needed, *arriving)
            with Holding(form.preference):
                return self.gradient.backward(tuple(saved), form.needed, *arriving)


class _Followed(torch.autograd.Function):
    """An op with its gradient. Both passes run below autograd, where a view is a tensor like any other: outputs that autograd
    knows as views could not be modified in place.

    Gives the number of the op's outputs (None for a tensor that is no list), the outputs, and the tensors that are saved
    besides them and the arguments: as outputs they remember what they were made from, so that ``_Refusal`` finds it.
    """

    @staticmethod
    def forward(ctx: Any, kind: _Kind, *arguments: Any) -> Any:
        form = kind.form
        needs = ctx.needs_input_grad
        needed = tuple([needs[1 + position] for position in kind.op.differentiable]) if form is None else form.needed
        with _below_autograd():
            outputs, saved = kind.gradient.forward(kind.dispatch, needed, *arguments)
        count, given = (len(outputs), outputs) if isinstance(outputs, list) else (None, [outputs])
        if form is None:
            form = kind.formed(needed, arguments, given, saved)
        ctx.save_for_backward(*[saved[place] for place in form.places])
        ctx.set_materialize_grads(False)
        ctx.kind, ctx.form, ctx.arguments = kind, form, len(arguments)
        return (count, *given, *[saved[place] for place in form.others])

    @staticmethod
    def backward(ctx: Any, _: None, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        kind, form = ctx.kind, ctx.form
        by_position: list[torch.Tensor | None] = [None] * (1 + ctx.arguments)
        arriving = gradients[: form.outputs]
        if any(g is not None for g in arriving):
            tensors = ctx.saved_tensors
            if torch.is_grad_enabled():
                with torch.no_grad():
                    wanted = kind.gradients(form, tensors, arriving)
                wanted = _not_again(kind.op, wanted, (*tensors, *arriving))
            else:
                wanted = kind.gradients(form, tensors, arriving)
            for position, gradient in zip(form.positions, wanted, strict=True):
                by_position[position] = gradient
        return tuple(by_position)


_follow: Callable[..., Any] = super(torch.autograd.Function, _Followed).apply
"""Without the questions about torch.func that ``Function.apply`` asks first: under its transforms no kernel is chosen."""


def _not_again(
    op: Op, gradients: Sequence[torch.Tensor], sources: Sequence[torch.Tensor | None]
) -> Sequence[torch.Tensor]:
    """The gradients as outputs of a function of their ``sources`` that refuses to be differentiated."""
    tracked = [t for t in sources if t is not None and t.requires_grad]
    outputs: Sequence[torch.Tensor] = _refuse(op.name, gradients, *tracked)
    return outputs


class _Refusal(torch.autograd.Function):
    """Gradients that a graph was asked for (``create_graph=True``): usable, and an error of ours once differentiated."""

    @staticmethod
    def forward(ctx: Any, name: str, gradients: Sequence[torch.Tensor], *_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.name = name
        return tuple(gradients)

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor | None) -> NoReturn:
        raise KptError(
            f"{ctx.name}: the gradient of a generated kernel cannot be differentiated again (double backward is not offered); "
            'run the forward under kpt.ops.prefer("reference"), whose gradients can be'
        )


_refuse: Callable[..., Any] = _Refusal.apply
