"""How autograd follows ops whose forward is a generated kernel: one torch.autograd.Function for all of them.

An op's ``Gradient`` says what to run; here is what is the same for every op: which gradients are needed, what is saved and how,
whose preference holds, and that a gradient is not differentiated again. Knows no op.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any, NamedTuple, NoReturn

import torch

from kpt.ops.choice import Holding, preferred
from kpt.ops.eager import WORDS, below_autograd
from kpt.ops.registry import Op, Ready, settled
from kpt_dsl.errors import KptError


def followed(op: Op, dispatch: Ready) -> Ready:
    """The calls of one kind, of an op that has a ``Gradient``, followed by autograd; ``dispatch`` runs the op itself, and gives
    nothing that autograd knows as a view."""
    return _Kind(op, dispatch)


class _Form(NamedTuple):
    """What is the same for all calls of a kind: found when the first one was made."""

    kind: "_Kind"
    needed: tuple[bool, ...]
    """Which of the gradients that the op has."""
    preference: str | None
    alone: bool
    """Whether a single tensor is all that autograd sees of a call."""
    listed: bool
    """Whether the op gives a list of tensors."""
    outputs: int
    bare: bool
    """Whether all that is given, and saved besides the arguments, is what ``dispatch`` gave: nothing else makes any."""
    tensors: "_Pick"
    """Takes the tensors out of what is saved."""
    others: tuple[int, ...]
    """Those of them that are neither arguments nor outputs."""
    saved: "_Pick"
    """Makes what is saved of its tensors and these ``values``, which are the rest."""
    values: tuple[Any, ...]
    gradients: "_Pick"
    """Makes what is given back to autograd of None and the gradients that are needed."""


_Pick = Callable[[tuple[Any, ...]], tuple[Any, ...]]
"""Makes a tuple of a tuple's items, some perhaps several times."""


def _pick(positions: Sequence[int]) -> _Pick:
    return itemgetter(*positions) if len(positions) > 1 else lambda items: tuple([items[i] for i in positions])


@lru_cache(maxsize=512)
def _back_in_place(places: tuple[int, ...], count: int) -> _Pick:
    """So many items, of those that belong at some places and then all others."""
    order = [*places, *(i for i in range(count) if i not in places)]
    return _pick([order.index(i) for i in range(count)])


@lru_cache(maxsize=512)
def _among_arguments(differentiable: tuple[int, ...], needed: tuple[bool, ...], count: int) -> _Pick:
    """What autograd is given for a kind and so many arguments, of None and the gradients that are needed."""
    wanted = [1 + position for position, n in zip(differentiable, needed, strict=True) if n]
    return _pick([1 + wanted.index(i) if i in wanted else 0 for i in range(1 + count)])


class _Kind:
    """Calls of an op that differ in values only."""

    __slots__ = ("dispatch", "form", "gradient", "op")

    def __init__(self, op: Op, dispatch: Ready) -> None:
        assert op.gradient is not None
        self.op, self.gradient, self.dispatch = op, op.gradient, dispatch
        self.form: _Form | None = None

    def __call__(self, *arguments: Any) -> Any:
        given = _follow(self, *arguments)
        form = self.form
        assert form is not None
        if form.alone:
            return given
        return list(given[: form.outputs]) if form.listed else given[0]

    def settled(self) -> Ready:
        """What serves such calls from now on."""
        self.dispatch = settled(self.dispatch)
        return partial(_follow, self) if self.form is not None and self.form.alone else self

    def formed(self, needed: tuple[bool, ...], arguments: Sequence[Any]) -> tuple[_Form, Any, tuple[Any, ...]]:
        """Make the first call, and find the form. Gives what it gives, and what it saves."""
        dispatched: list[Any] = []

        def noting(*given: Any) -> Any:
            outputs = self.dispatch(*given)
            dispatched.extend(outputs if isinstance(outputs, list) else [outputs])
            return outputs

        outputs, saved = self.gradient.forward(noting, needed, *arguments)
        given = outputs if isinstance(outputs, list) else [outputs]
        places, values = [], []
        for place, value in enumerate(saved):
            if type(value) in WORDS or not isinstance(value, torch.Tensor):
                values.append(value)
            else:
                places.append(place)
        known = {*map(id, arguments), *map(id, given)}
        others = tuple([place for place in places if id(saved[place]) not in known])
        bare = {*map(id, dispatched)}.issuperset(map(id, (*given, *[saved[place] for place in others])))
        self.form = _Form(
            self,
            needed,
            preferred(),
            not others and given is not outputs,
            given is outputs,
            len(given),
            bare,
            _pick(places),
            others,
            _back_in_place(tuple(places), len(saved)),
            tuple(values),
            _among_arguments(self.op.differentiable, needed, len(arguments)),
        )
        return self.form, outputs, saved


class _Followed(torch.autograd.Function):
    """An op with its gradient. The forward gives no views, as those of a function's could not be modified in place: where more
    than ``dispatch`` makes it, all of it runs below autograd, where a view is a tensor like any other.

    Gives the op's outputs, and the tensors that are saved besides them and the arguments: as outputs they remember what they
    were made from, so that ``_Refusal`` finds it.
    """

    @staticmethod
    def forward(ctx: Any, kind: _Kind, *arguments: Any) -> Any:
        form = kind.form
        if form is None:
            needs = ctx.needs_input_grad
            with below_autograd():
                form, outputs, saved = kind.formed(tuple([needs[1 + p] for p in kind.op.differentiable]), arguments)
        elif form.bare:
            outputs, saved = kind.gradient.forward(kind.dispatch, form.needed, *arguments)
        else:
            with below_autograd():
                outputs, saved = kind.gradient.forward(kind.dispatch, form.needed, *arguments)
        ctx.save_for_backward(*form.tensors(saved))
        ctx.set_materialize_grads(False)
        ctx.form = form
        if form.alone:
            return outputs
        return (*(outputs if form.listed else (outputs,)), *[saved[place] for place in form.others])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        form: _Form = ctx.form
        arriving = gradients[: form.outputs]
        if arriving[0] is None and all(g is None for g in arriving):
            return form.gradients((None,) * (1 + len(form.needed)))
        tensors = ctx.saved_tensors
        saved = form.saved(tensors + form.values)
        if torch.is_grad_enabled():
            with torch.no_grad(), below_autograd(), Holding(form.preference):
                wanted = form.kind.gradient.backward(saved, form.needed, *arriving)
            wanted = _not_again(form.kind.op, wanted, (*tensors, *arriving))
        elif preferred() != form.preference:
            with Holding(form.preference):
                wanted = form.kind.gradient.backward(saved, form.needed, *arriving)
        else:
            wanted = form.kind.gradient.backward(saved, form.needed, *arriving)
        return form.gradients((None, *wanted))


_follow: Callable[..., Any] = super(torch.autograd.Function, _Followed).apply
"""Without the questions about torch.func that ``Function.apply`` asks first: under its transforms no kernel is chosen."""

_Followed._backward_cls.apply = _Followed.backward  # type: ignore[attr-defined]
"""What the engine calls of a node: without asking each time which of two functions the class has."""


def _not_again(
    op: Op, gradients: Sequence[torch.Tensor | None], sources: Sequence[torch.Tensor | None]
) -> Sequence[torch.Tensor | None]:
    """The gradients as outputs of a function of their ``sources`` that refuses to be differentiated."""
    tracked = [t for t in sources if t is not None and t.requires_grad]
    outputs: Sequence[torch.Tensor | None] = _refuse(op.name, gradients, *tracked)
    return outputs


class _Refusal(torch.autograd.Function):
    """Gradients that a graph was asked for (``create_graph=True``): usable, and an error of ours once differentiated."""

    @staticmethod
    def forward(
        ctx: Any, name: str, gradients: Sequence[torch.Tensor | None], *_: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        ctx.name = name
        return tuple(gradients)

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor | None) -> NoReturn:
        raise KptError(
            f"{ctx.name}: the gradient of a generated kernel cannot be differentiated again (double backward is not offered); "
            'run the forward under kpt.ops.prefer("reference"), whose gradients can be'
        )


_refuse: Callable[..., Any] = _Refusal.apply
