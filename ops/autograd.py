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
    """The call of an op that has a ``Gradient``, followed by autograd; ``dispatch`` runs the op itself."""

    def ready(*arguments: Any) -> Any:
        count, *tensors = _follow(op, dispatch, *arguments)
        return tensors[0] if count is None else tensors[:count]

    return ready


class _Followed(torch.autograd.Function):
    """An op with its gradient. Both passes run below autograd, where a view is a tensor like any other: outputs that autograd
    knows as views could not be modified in place.

    Gives the number of the op's outputs (None for a tensor that is no list), the outputs, and the tensors that are saved
    besides them and the arguments: as outputs they remember what they were made from, so that ``_Refusal`` finds it.
    """

    @staticmethod
    def forward(ctx: Any, op: Op, dispatch: Ready, *arguments: Any) -> Any:
        assert op.gradient is not None
        needs = ctx.needs_input_grad
        needed = tuple([needs[2 + position] for position in op.differentiable])
        with _below_autograd():
            outputs, saved = op.gradient.forward(dispatch, needed, *arguments)
        count, given = (len(outputs), outputs) if isinstance(outputs, list) else (None, [outputs])
        tensors = [v if isinstance(v, torch.Tensor) else None for v in saved]
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        values = [v if t is None else None for t, v in zip(tensors, saved, strict=True)]
        ctx.call = _Call(op, needed, preferred(), len(arguments), len(given), values)
        known = {*map(id, arguments), *map(id, given)}
        return (count, *given, *[t for t in tensors if t is not None and id(t) not in known])

    @staticmethod
    def backward(ctx: Any, _: None, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        call: _Call = ctx.call
        by_position: list[torch.Tensor | None] = [None] * (2 + call.arguments)
        arriving = gradients[: call.outputs]
        if any(g is not None for g in arriving):
            tensors = ctx.saved_tensors
            if torch.is_grad_enabled():
                with torch.no_grad():
                    wanted = call.gradients(tensors, arriving)
                wanted = _not_again(call.op, wanted, (*tensors, *arriving))
            else:
                wanted = call.gradients(tensors, arriving)
            positions = [p for p, needed in zip(call.op.differentiable, call.needed, strict=True) if needed]
            for position, gradient in zip(positions, wanted, strict=True):
                by_position[2 + position] = gradient
        return tuple(by_position)


class _Call(NamedTuple):
    """What a backward must know of its forward beside the tensors. ``values``: what is saved, None in the places of tensors."""

    op: Op
    needed: tuple[bool, ...]
    preference: str | None
    arguments: int
    outputs: int
    values: list[Any]

    def gradients(
        self, tensors: Sequence[torch.Tensor | None], arriving: Sequence[torch.Tensor | None]
    ) -> Sequence[torch.Tensor]:
        """Those that are needed."""
        assert self.op.gradient is not None
        saved = tuple([v if t is None else t for t, v in zip(tensors, self.values, strict=True)])
        with _below_autograd(), Holding(self.preference):
            return self.op.gradient.backward(saved, self.needed, *arriving)


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
