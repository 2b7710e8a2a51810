"""A kernel as operators of PyTorch, ``torch.ops.kpt_kernels.*``, for whoever sees operators and not what runs inside them:
torch.compile, export, fake tensors, autograd, modes.

What specialises a kernel is no argument of an operator, so there is one for each such binding, made when it is first needed.
One that is given its outputs writes them; one that makes them is functional, since PyTorch differentiates nothing else.
"""

import hashlib
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch._functorch.utils import enable_single_level_autograd_function
from torch.fx.experimental.symbolic_shapes import guard_or_false

from kpt_dsl import arrays, runtime
from kpt_dsl.errors import InputError
from kpt_dsl.frontend.outside import DECLARED, Helper
from kpt_dsl.runtime.binding import without_gradient
from kpt_dsl.runtime.made import only_or_all, without_extent
from kpt_dsl.values import told_apart

if TYPE_CHECKING:
    from kpt_dsl.definition import Definition

NAMESPACE = "kpt_kernels"

_LIBRARY = torch.library.Library(NAMESPACE, "DEF")
_names: dict[Hashable, str] = {}
_taken: set[str] = set()
_lock = threading.Lock()


def operator_name(
    kernel: int, helpers: tuple[tuple[str, int], ...], backend: str | None, config: tuple[tuple[str, Any], ...], *fixed: Any
) -> str:
    """The name of a kernel's operator, which is made if it is not there yet.

    ``kernel``: its ``id``; ``helpers``: static arguments that are helpers, with theirs. ``fixed``: name and value, in turn, of
    each other argument that the operator does not take: a static, None for what is absent, for an output that the operator
    makes its ``torch.dtype``.
    """
    # Helpers are told by which they are, not by what they say: a text may come to mean something else.
    knobs = tuple([(name, told_apart(v)) for name, v in config])
    key = (kernel, helpers, backend, knobs, *map(told_apart, fixed))
    with _lock:
        if key not in _names:
            bound = {**dict(zip(fixed[::2], fixed[1::2], strict=True)), **{name: DECLARED[one] for name, one in helpers}}
            _names[key] = _Operator(DECLARED[kernel], bound, backend, dict(config)).define()
        return _names[key]


# For torch.compile: called while a program is traced, for a name that stays as long as kernel and helpers are the same objects,
# which its guards on their ids see to. Before PyTorch 2.13 it hands over numbers and words only.
operator_name.__dict__["_dynamo_marked_constant"] = True


def extents(kernel: "Definition", arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Every dim of the tensors given -> its extent, symbolic ones as they are.

    Raises InputError for what is no tensor of its rank, a dtype that kernels do not hold, and dims that disagree.
    """
    known: dict[str, tuple[Any, str]] = {}
    for name, dims in kernel.tensors.items():
        tensor = arguments[name]
        if tensor is None or isinstance(tensor, torch.dtype):
            continue
        if trouble := arrays.why_unfit(name, tensor, dims, written=False):
            raise InputError(f"{kernel.name}: {name} {trouble}")
        for dim, extent in zip(dims, tensor.shape, strict=True):
            before, first = known.setdefault(dim, (extent, name))
            if before is not extent:
                if guard_or_false(before != extent):
                    raise kernel.disagreement(dim, before, first, extent, name, tensor.shape)
                torch._check(before == extent)
    return {dim: extent for dim, (extent, _) in known.items()}


def new_outputs(kernel: "Definition", arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """A tensor of zeros for each output that is given as a ``torch.dtype``, on the device of the inputs.

    Raises as ``extents``, and InputError for an output with a dim that no tensor given has.
    """
    sizes = extents(kernel, arguments)
    beside = first_input(kernel, arguments)
    made = {}
    for name, dims in kernel.tensors.items():
        if isinstance(arguments[name], torch.dtype):
            if unknown := [dim for dim in dims if dim not in sizes]:
                raise without_extent(kernel, name, unknown[0])
            made[name] = beside.new_zeros([sizes[dim] for dim in dims], dtype=arguments[name])
    return made


def first_input(kernel: "Definition", arguments: Mapping[str, Any]) -> torch.Tensor:
    """The first input of floating point, or of any type where there is none. Raises InputError where no input is a tensor."""
    given = [arguments[name] for name, role in kernel.roles.items() if role == "in"]
    tensors = [tensor for tensor in given if isinstance(tensor, torch.Tensor)]
    if not tensors:
        raise InputError(f"{kernel.name}: no input is a torch tensor, so that nothing says how outputs are made")
    return next((tensor for tensor in tensors if tensor.is_floating_point()), tensors[0])


def _in_ascii(name: str) -> str:
    """A name of Python's as PyTorch's schemas take it."""
    return "".join([c if c.isascii() else f"u{ord(c):x}" for c in name])


@dataclass(frozen=True, eq=False)
class _Operator:
    """One binding of a kernel. ``fixed``: what its operator does not take as arguments."""

    kernel: "Definition"
    fixed: Mapping[str, Any]
    backend: str | None
    config: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """The arguments that it takes."""
        return tuple(name for name in self.kernel.names if name not in self.fixed)

    @property
    def new(self) -> tuple[str, ...]:
        """The outputs that it makes."""
        return tuple(name for name, value in self.fixed.items() if isinstance(value, torch.dtype))

    def define(self) -> str:
        """Enter it in PyTorch's table, and give its name there."""
        name = self._unused_name()
        _LIBRARY.define(f"{name}{self._schema()}", tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, self._run, "CompositeExplicitAutograd")
        full = f"{NAMESPACE}::{name}"
        torch.library.register_fake(full, self._fake, lib=_LIBRARY)
        torch.library.register_vmap(full, self._refuse_batches, lib=_LIBRARY)
        _LIBRARY.impl(name, self._tracked(getattr(getattr(torch.ops, NAMESPACE), name).default), "Autograd")
        return name

    def _unused_name(self) -> str:
        """Of the kernel's name and a hash: the same in every process for the same texts and values."""
        said = [
            self.kernel.qualname, self.kernel.source_hash, self.backend, *self.config.items(),
            *((n, (v.source.fn.__module__, v.source.fn.__qualname__, v.hash) if isinstance(v, Helper) else v)
              for n, v in self.fixed.items()),
        ]  # fmt: skip
        base = name = f"{_in_ascii(self.kernel.name)}_{hashlib.sha256(repr(said).encode()).hexdigest()[:8]}"
        count = 1
        while name in _taken:  # another kernel object of the same text, as a notebook's cell makes when it runs again
            count += 1
            name = f"{base}_{count}"
        _taken.add(name)
        return name

    def _schema(self) -> str:
        written = 0
        parts = []
        for name in self.names:
            if name in self.kernel.tensors:
                kind = "Tensor"
                if self.kernel.roles[name] == "out":
                    kind, written = f"Tensor(a{written}!)", written + 1
            else:
                kind = "SymInt" if self.kernel.scalars[name] == "int" else "float"
            parts.append(f"{kind} {_in_ascii(name)}")
        results = ", ".join(["Tensor"] * len(self.new))
        return f"({', '.join(parts)}) -> {results if len(self.new) == 1 else f'({results})'}"

    def _arguments(self, given: Iterable[Any]) -> dict[str, Any]:
        by_name = {**self.fixed, **dict(zip(self.names, given, strict=True))}
        return {name: by_name[name] for name in self.kernel.names}

    def _run(self, *given: Any) -> Any:
        arguments = self._arguments(given)
        made = new_outputs(self.kernel, arguments) if self.new else {}
        runtime.call(self.kernel, {**arguments, **made}, self.config, self.backend)
        return only_or_all(made.values()) if made else None

    def _fake(self, *given: Any) -> Any:
        arguments = self._arguments(given)
        if self.new:
            return only_or_all(new_outputs(self.kernel, arguments).values())
        extents(self.kernel, arguments)
        return None

    def _refuse_batches(self, *_: Any) -> NoReturn:
        raise InputError(
            f"{self.kernel.name} under torch.vmap: a kernel has no rule for batches; make the batch one of its dims "
            f'(a loop kd.parallel("B") and x[b, ...]), and call it without vmap'
        )

    # ------------------------------------------------------------------ gradients
    def _tracked(self, overload: Any) -> Callable[..., Any]:
        """The operator at PyTorch's dispatch key of autograd. Raises InputError for a tensor that needs a gradient where
        there is none."""

        def below(*given: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return overload(*given)

        def call(*given: Any) -> Any:
            graded = [
                name
                for name, value in zip(self.names, given, strict=True)
                if isinstance(value, torch.Tensor) and value.requires_grad
            ]
            if not graded or not torch.is_grad_enabled():
                return below(*given)
            for name in graded:
                if not self.new or self.kernel.backward is None or name not in self.kernel.backward.gives:
                    raise without_gradient(self.kernel, name)
            with enable_single_level_autograd_function():  # under torch.func, which calls this for a level of its own
                return _follow(self, below, *given)

        return call

    def keep(self, ctx: Any, given: tuple[Any, ...], outputs: Any) -> None:
        """Save what the backward names."""
        arguments = self._arguments(given)
        arguments |= dict(zip(self.new, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))
        ctx.backward = self.kernel.backward
        ctx.dtypes = {name: arguments[name].dtype for name in ctx.backward.gives if name in self.names}
        ctx.tensors = [name for name in ctx.backward.saves if isinstance(arguments[name], torch.Tensor)]
        ctx.values = {name: arguments[name] for name in ctx.backward.saves if name not in ctx.tensors}
        ctx.save_for_backward(*[arguments[name] for name in ctx.tensors])

    def gradients(self, ctx: Any, arriving: tuple[torch.Tensor, ...]) -> list[torch.Tensor | None]:
        """Those of the arguments that it takes."""
        saved = {**ctx.values, **dict(zip(ctx.tensors, ctx.saved_tensors, strict=True))}
        found = ctx.backward.run(saved, dict(zip(self.new, arriving, strict=True)), ctx.dtypes)
        return [found.get(name) for name in self.names]


class _Followed(torch.autograd.Function):
    """An operator with the gradient of its kernel."""

    @staticmethod
    def forward(ctx: Any, operator: _Operator, below: Callable[..., Any], *given: Any) -> Any:
        outputs = below(*given)
        ctx.operator = operator
        operator.keep(ctx, given, outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *arriving: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, None, *ctx.operator.gradients(ctx, arriving)


_follow: Callable[..., Any] = super(torch.autograd.Function, _Followed).apply
"""Without the questions about torch.func that ``Function.apply`` asks first: its transforms have come by already."""
