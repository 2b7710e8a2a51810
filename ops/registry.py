"""What an op is: its native PyTorch function, the implementations registered against it, and the table of all ops.

Records only. Which implementation serves a call is decided in ``choice.py``; running it is ``dispatch.py``.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Union, get_args, get_origin

import torch

from kpt.ops.devices import of_target
from kpt.ops.fingerprint import Fingerprint
from kpt.ops.shapes import Shape
from kpt_dsl.errors import InputError

if TYPE_CHECKING:
    from kpt_dsl.instance import Instance
    from kpt_dsl.targets import Target

AutocastPolicy = Literal["lower", "float32", "keep"]
"""What torch.autocast does to an op's floating inputs: its lower precision, float32, or nothing."""

Ready = Callable[..., Any]
"""A served call, ready to run: takes the op's arguments, gives its outputs. Valid for one fingerprint of arguments."""


def settled(ready: Ready) -> Ready:
    """What serves calls that came often: a ``ready`` that learns from the first has a method of this name, which gives what
    it came to."""
    learnt: Callable[[], Ready] | None = getattr(ready, "settled", None)
    return ready if learnt is None else learnt()


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """What one kernel of a call runs with: its config, and where that config came from; ``extents`` that share the config, and
    the name of the generated text, which calls with one ``binary`` share."""

    kernel: str
    config: str
    provenance: str
    extents: str = ""
    binary: str = ""


class Undecided(NamedTuple):
    """Some ways to do a part of a call, by their ``names``, the quickest of which is not known yet: the instances of each, and
    where to note its number."""

    names: tuple[str, ...]
    instances: "Sequence[Sequence[Instance]]"
    note: dict[tuple[str, ...], int]


class Missing(NamedTuple):
    """What must be found out and compiled before a call can be started."""

    instances: "Sequence[Instance]" = ()
    ways: Sequence[Undecided] = ()


@dataclass(frozen=True, slots=True)
class Implementation:
    """One way to serve an op.

    ``devices``: torch device types that it serves unasked (None: all); elsewhere it runs only when preferred.
    ``why_not(*arguments)``: why it passes a call over, or None. ``prepare(arguments, fingerprint)``: calls of
    this fingerprint, ready to run; what is traced has none, ().
    ``describe(arguments)``: the kernels that a call runs, with their configs. ``package``: what must be installed.
    ``missing(arguments, run)``: what has to be compiled first for ``run``, which calls what it is given as this implementation.
    ``record(arguments, target, first)``: the kernel instances of such a call, as ``Op.record`` gives them.
    ``run(launch, *arguments)``: hands the kernels of a call to ``launch`` (``kpt.ops.backends.Launch``), and gives its outputs.
    ``differentiable``: autograd can follow it by itself; one that it cannot follow serves calls that need gradients where the
    op has a ``Gradient``.
    """

    name: str
    prepare: Callable[[tuple[Any, ...], Fingerprint], Ready]
    devices: frozenset[str] | None = None
    why_not: Callable[..., str | None] = lambda *_: None
    describe: Callable[[tuple[Any, ...]], tuple[KernelChoice, ...]] = lambda _: ()
    package: str | None = None
    missing: Callable[[tuple[Any, ...], Callable[[Ready], Any]], "Missing"] = lambda *_: Missing()
    record: Callable[..., "list[Instance]"] = lambda *_: []
    run: Callable[..., Any] | None = None
    differentiable: bool = False


@dataclass(frozen=True, slots=True)
class Gradient:
    """How autograd follows an op whose implementation it cannot see into: a generated kernel.

    ``inputs``: names of the op's arguments that have a gradient, in the order of the schema. ``needed`` below is one bool for
    each of them: whether autograd wants its gradient (False also for an optional tensor that is None).

    ``forward(dispatch, needed, *arguments)`` gives (outputs, saved). ``dispatch`` runs the op itself, and may be called with
    other arguments than the given ones where they differ by flags only (a log-sum-exp asked for besides). ``outputs`` are
    what the op gives: a tensor, or a list of tensors. ``saved`` is a tuple of tensors, numbers and names that the backward
    needs; those that the ``needed`` gradients do not take may be None. Arguments and outputs are best saved themselves, not as
    copies: they take no memory of their own then, and autograd sees when they are modified in place.

    ``backward(saved, needed, *output_gradients)`` gives the wanted gradients only, in the order of ``inputs``, each of its
    input's shape, dtype and device, or None where what arrived does not depend on it. An output that nothing depends on has
    None for its gradient; not all are None. Gradients arrive with any strides, also those of an expanded tensor. Both functions
    run below autograd, and neither reads values.

    The backward is an op of its own, so that it is tuned, compiled, counted and falls back as every op: see
    ``docs/add-an-op.md``.
    """

    inputs: tuple[str, ...]
    forward: Callable[..., tuple[Any, tuple[Any, ...]]]
    backward: Callable[..., Sequence[torch.Tensor | None]]

    @classmethod
    def of_arguments(cls, inputs: tuple[str, ...], backward: Callable[..., Sequence[torch.Tensor | None]]) -> "Gradient":
        """That of an op whose arguments are all that is saved."""

        def forward(dispatch: Ready, needed: Sequence[bool], *arguments: Any) -> tuple[Any, tuple[Any, ...]]:
            return dispatch(*arguments), arguments

        return cls(inputs, forward, backward)


Placed = int | Literal["whole", "sum"] | None
"""Of one tensor, in a group of processes: cut along this dim, whole in each, or to be added up; None: no tensor."""

WHOLE: Placed = "whole"
SUM: Placed = "sum"


class Sharding(NamedTuple):
    """One way to run an op on processes of which each has a part of its tensors."""

    outputs: Sequence[Placed]
    """Of each tensor that the op gives."""
    inputs: Sequence[Placed]
    """Of each argument, in the order of the schema."""


@dataclass(frozen=True, eq=False)
class Op:
    """An op: the contract (schema, reference, fake, checks) and what serves it, in order of preference.

    ``public`` is the function that people call: its name is the op's, its annotated parameters are the schema's, in order, all
    of them positional and given. Where annotations do not say it, ``schema`` does; it may have more arguments at the end, None
    unless ``public`` gives them. ``reference`` is native PyTorch: oracle and last fallback at once. ``fake(*arguments)``
    gives outputs without values, with the strides that every implementation keeps. ``check(*arguments)`` raises InputError.
    ``autocast``: device type -> what torch.autocast casts floating inputs to there. ``arguments(dims, dtype, device,
    **flags)`` makes inputs. ``gradient``: how autograd follows generated kernels; without one, calls that need gradients go
    to the reference. ``multiplies``: whether its kernels multiply matrices, of float32 as precisely as PyTorch's user asks.
    ``precise``: floating arguments that torch.autocast leaves as they are. ``flops(*arguments)``: how many operations its
    products take, as PyTorch counts them.
    ``shardings(*arguments)``: how its tensors may be dealt out to processes (``kpt.ops.sharding``), beside whole to each.
    ``opaque(*arguments)``: whether the reference reads values that this call, which is being traced, does not have yet:
    autograd then follows the op by its ``gradient``.
    ``lengths``: of each tensor that plain calls have, the dims along which ``check`` and ``why_not`` ask of extents above one
    whether they are equal to each other, and nothing else: how long they are decides neither whether a call is right nor what
    serves it.
    ``fuses``: whether Inductor writes it, from the reference, together with what stands around it (``kpt.ops.inductor``).
    """

    public: Callable[..., Any]
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    check: Callable[..., None]
    kernels: tuple[Implementation, ...]
    dims: tuple[str, ...]
    arguments: Callable[..., tuple[Any, ...]]
    shapes: tuple[Shape, ...] = ()
    autocast: Mapping[str, AutocastPolicy] = field(default_factory=dict)
    precise: tuple[str, ...] = ()
    gradient: Gradient | None = None
    multiplies: bool = False
    flops: Callable[..., int] | None = None
    shardings: Callable[..., "Iterable[Sharding]"] = lambda *_: ()
    opaque: Callable[..., bool] = lambda *_: False
    lengths: Mapping[str, slice] = field(default_factory=dict)
    fuses: bool = False
    schema: str = ""

    def __post_init__(self) -> None:
        if not self.schema:
            object.__setattr__(self, "schema", _schema(self.public))

    @cached_property
    def name(self) -> str:
        """As people call it."""
        return self.public.__name__

    @cached_property
    def implementations(self) -> tuple[Implementation, ...]:
        """In order of preference; the reference comes last and serves everything."""
        return (*self.kernels, Implementation("reference", prepare=lambda *_: self.reference, differentiable=True))

    @cached_property
    def differentiable(self) -> tuple[int, ...]:
        """The positions of the arguments that have a gradient."""
        return () if self.gradient is None else self.positions(self.gradient.inputs)

    @cached_property
    def lengths_at(self) -> Mapping[int, slice]:
        """``lengths`` by the positions of the tensors."""
        return dict(zip(self.positions(self.lengths), self.lengths.values(), strict=True))

    @cached_property
    def left_alone(self) -> tuple[int, ...]:
        """The positions of the arguments that torch.autocast leaves as they are."""
        return self.positions(self.precise)

    def positions(self, arguments: Iterable[str]) -> tuple[int, ...]:
        """Where some arguments stand."""
        names = list(inspect.signature(self.public).parameters)
        return tuple(names.index(name) for name in arguments)

    def record(
        self, arguments: tuple[Any, ...], target: "Target | None" = None, first: bool = False
    ) -> "list[Instance]":
        """The kernel instances of a call, without running anything; tensors may be on the meta device.

        Of several ways those of the ``first``, or of all; with a target, beside the first way's only those of ways that it can
        go.
        """
        with of_target(target):
            return self.kernels[0].record(arguments, target, first)

    def instances(
        self, dims: Mapping[str, int], dtype: str, target: "Target | None" = None, **flags: Any
    ) -> "list[Instance]":
        """The kernel instances behind a call of these extents and dtype: what the tuner tunes.

        ``target``: leaves out what is a choice on other targets only. ``flags`` are the op's semantic options
        (``causal=True``). Raises InputError for missing or unknown dims and flags, for flags of other types than ``arguments``
        takes, and, as the op does, for those that do not go together.
        """
        if set(dims) != set(self.dims):
            raise InputError(f"{self.name}: dims are {', '.join(self.dims)}; given were {', '.join(dims) or 'none'}")
        if negative := {d: n for d, n in dims.items() if n < 1}:
            raise InputError(f"{self.name}: extents {negative} are not positive")
        known = dict(list(inspect.signature(self.arguments).parameters.items())[3:])
        if unknown := flags.keys() - known.keys():
            raise InputError(f"{self.name} has no flags {sorted(unknown)}; it has {', '.join(known) or 'none'}")
        for name, value in flags.items():
            if not _is_one(value, known[name].annotation):
                accepted = inspect.formatannotation(known[name].annotation).replace("typing.", "")
                raise InputError(f"{self.name}: flag {name} is {value!r} ({type(value).__name__}); accepted: {accepted}")
        arguments = self.arguments(dims, dtype, "meta", **flags)
        self.check(*arguments)
        return self.record(arguments, target)


def _is_one(value: Any, annotation: Any) -> bool:
    """Whether a value is what a parameter's annotation says; a whole number is a number, and a bool is neither."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return value in parts
    if origin in (Union, UnionType):
        return any(_is_one(value, part) for part in parts)
    if annotation is float:
        return type(value) in (int, float)
    return annotation is Any or type(value) is (origin or annotation)


def _schema(public: Callable[..., Any]) -> str:
    """What torch.library reads of a function's annotations, as if all parameters were positional and had no default."""
    signature = inspect.signature(public)
    parameters = [
        p.replace(
            kind=inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=inspect.Parameter.empty,
            annotation=str if get_origin(p.annotation) is Literal else p.annotation,
        )
        for p in signature.parameters.values()
    ]

    def prototype() -> None: ...

    prototype.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return torch.library.infer_schema(prototype, mutates_args=())


OPS: dict[str, Op] = {}
"""Every op by name."""


def register(op: Op) -> Op:
    """Add an op to the table."""
    OPS[op.name] = op
    return op


def get(name: str) -> Op:
    """The op of that name. Raises InputError for an unknown one."""
    if name not in OPS:
        raise InputError(f"op {name!r} is unknown; kpt has {', '.join(OPS)}")
    return OPS[name]
