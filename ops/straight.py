"""Calls that come again, as straight-line Python: allocations, addresses, launches, and nothing that is the same each time.

What is ready for a kind of call holds for one dtype, shape, stride and alignment of every tensor and for every flag: all that
an op's ``run`` works out comes to the same again, but for addresses. So one run is watched: which memory it takes, which
kernels it starts with which addresses in it, which products and copies it has of PyTorch, what it gives. That is written as a
function. A run that does anything else (a sum) stays as it is.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, Protocol

import torch

from kpt.ops.eager import QuickMode, below, below_autograd, function_of_torch, tensors_in
from kpt.ops.registry import Ready
from kpt.ops.written import written
from kpt_dsl.errors import CompileError
from kpt_dsl.runtime.triton_launch import Launch, Parts

WATCHED = 8
"""The call of a kind that is watched: writing the function costs some hundred microseconds."""

ALLOCATIONS = frozenset({
    torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default, torch.ops.aten.new_empty.default,
    torch.ops.aten.empty_strided.default, torch.ops.aten.new_empty_strided.default,
})  # fmt: skip

_quick_empty = function_of_torch("_dynamo.guards._empty_strided_cuda")
"""Memory on the current CUDA or ROCm device, as Inductor's code takes it: a third of a call to ``torch.empty_strided``."""


class Prepared(Protocol):
    """What runs a kernel; and what gives the meanings of names in it and of its static functions, with what these were."""

    @property
    def run(self) -> Callable[..., Any]: ...

    @property
    def meant(self) -> Sequence[tuple[Callable[[], Any], Any]]: ...


class Launches(Protocol):
    """What a run hands its kernels to, seen from here."""

    def prepared(self, kernel: Any, arguments: tuple[Any, ...]) -> Prepared:
        """What runs a kernel now."""

    def way(self, ways: Sequence[Callable[[Any], Any]]) -> "tuple[Callable[[Any], Any], Launches]":
        """The quickest of some ways, and what launches its kernels."""


class Repeated:
    """``run`` with its launches on a CUDA or ROCm device, for one kind of call; as straight-line Python once that has come
    ``WATCHED`` times."""

    __slots__ = ("_launches", "_left", "_now", "_run")

    def __init__(self, run: Callable[..., Any], launches: Launches) -> None:
        self._run, self._launches = run, launches
        self._now: Ready | None = None
        self._left = WATCHED

    def __call__(self, *arguments: Any) -> Any:
        if self._now is not None:
            return self._now(*arguments)
        self._left -= 1
        if self._left:
            with below_autograd():
                return self._run(self._launches, *arguments)
        noting = _Noting(self._launches)
        watch = _Watch(arguments, noting.started)
        with below_autograd(), watch:
            given = self._run(noting, *watch.arguments)
        general = below(partial(self._run, self._launches))
        self._now = _written(watch, noting, given, general) or general
        return given

    def settled(self) -> Ready:
        """What serves such calls from now on: this, until one was watched."""
        return self._now or self


class Started(NamedTuple):
    """``kernel``: what ran one, or None for what PyTorch computed of matrices, by an ``operator`` of it."""

    kernel: Prepared | None
    arguments: tuple[Any, ...]
    operator: Any = None


class _Noting:
    """Launches kernels, and notes them. ``asked``: there were several ways, of which there may be fewer where PyTorch is to be
    deterministic."""

    def __init__(self, launches: Launches) -> None:
        self._launches = launches
        self.started: list[Started] = []
        self.asked = False

    def __call__(self, kernel: Any, *arguments: Any) -> None:
        prepared = self._launches.prepared(kernel, arguments)
        prepared.run(*arguments)
        self.started.append(Started(prepared, arguments))

    def quickest(self, *ways: Callable[[Any], Any]) -> Any:
        self.asked = True
        way, launches = self._launches.way(ways)
        outer, self._launches = self._launches, launches
        try:
            return way(self)
        finally:
            self._launches = outer


class _Root(NamedTuple):
    """Whose memory a tensor is in: an argument's, by its position, or what a run took, by its number."""

    kind: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind}{self.number}"


class _Watch(QuickMode):
    """Sees what a run asks of PyTorch. ``pure``: nothing but memory, views of it, products and copies, which are noted among
    what was ``started``."""

    def __init__(self, arguments: tuple[Any, ...], started: list[Started]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pure, self._started = True, started
        self.taken: list[torch.Tensor] = []
        # Objects of their own, so that one tensor in two places is told apart, and kept, so that their ids are.
        self.arguments = tuple([a.detach() if isinstance(a, torch.Tensor) else a for a in arguments])
        self._kept: list[torch.Tensor] = []
        self._roots: dict[int, _Root] = {}
        for position, argument in enumerate(self.arguments):
            if isinstance(argument, torch.Tensor):
                self._note(argument, _Root("a", position))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        of = self.root(args[0]) if args else None
        if func in ALLOCATIONS:
            self._note(given, _Root("t", len(self.taken)))
            self.taken.append(given)
        elif func.is_view and of is not None and isinstance(given, torch.Tensor) and _shares(given, args[0]):
            self._note(given, of)
        elif func in OF_PYTORCH:
            self._started.append(Started(None, (*tensors_in(args), *(kwargs or {}).values()), func))
        else:
            self.pure = False
        return given

    def root(self, value: Any) -> _Root | None:
        """Whose memory a tensor is in; None for what this has not seen."""
        return self._roots.get(id(value)) if isinstance(value, torch.Tensor) else None

    def tensor(self, root: _Root) -> torch.Tensor:
        """The argument, or what was taken, itself."""
        found: torch.Tensor = (self.arguments if root.kind == "a" else self.taken)[root.number]
        return found

    def _note(self, tensor: torch.Tensor, root: _Root) -> None:
        if id(tensor) not in self._roots:
            self._kept.append(tensor)
            self._roots[id(tensor)] = root


def _shares(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors lie in one allocation: what is called a view may be a copy after all."""
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)


class _Unlike(Exception):
    """A run that cannot be written as a function."""


def _written(watch: _Watch, noting: _Noting, given: Any, general: Ready) -> Ready | None:
    """The function for a run that was watched, and gave something; None where there is none. ``general`` serves calls for which
    the function does not hold after all: another device is current, or a name that a kernel uses has another value."""
    kernels = [kernel for kernel, *_ in noting.started if kernel is not None]
    if watch.pure and kernels and all(type(prepared.run) is Launch for prepared in kernels):
        with suppress(_Unlike):
            return _Writer(watch, noting, general).function(given)
    return None


class _Writer:
    """Writes the function. Sizes and the like are names in it, so that the text is the same for every length."""

    def __init__(self, watch: _Watch, noting: _Noting, general: Ready) -> None:
        self._watch, self._asked = watch, noting.asked
        kernels = [kernel for kernel, *_ in noting.started if kernel is not None]
        self._meant = dict([pair for prepared in kernels for pair in prepared.meant])
        launches = [prepared.run for prepared in kernels]
        self._parts: list[Parts] = [launch.parts() for launch in launches if isinstance(launch, Launch)]
        self._started = noting.started
        self._addresses: dict[_Root, str] = {}
        self._scope: dict[str, Any] = {"general": general, "CompileError": CompileError, "kept": launches}

    def function(self, given: Any) -> Ready:
        parameters = ", ".join(f"a{i}" for i in range(len(self._watch.arguments)))
        outputs = list(self._outputs(given))
        shapes = dict(outputs)
        if len(shapes) < len(outputs):
            raise _Unlike  # two outputs in one piece of memory
        first = self._parts[0]
        taken = [shapes.get(_Root("t", n), tensor) for n, tensor in enumerate(self._watch.taken)]
        steps = list(self._steps())
        lines = [
            f"def call({parameters}):",
            f"    if {' or '.join(self._unless(first))}:",
            f"        return general({parameters})",
            *(f"    t{n} = {self._memory(tensor)}" for n, tensor in enumerate(taken)),
            *(f"    {name} = {root}.data_ptr()" for root, name in self._addresses.items()),
            f"    stream = {self._keep(first.stream)}({first.device})",
            *steps,
            f"    return {_like(given, [str(root) for root, _ in outputs])}",
        ]
        return written(lines, self._scope)

    def _steps(self) -> Iterator[str]:
        """What is started, one after the other."""
        parts = iter(self._parts)
        for of_pytorch, some in groupby(self._started, lambda started: started.kernel is None):
            if of_pytorch:
                yield from (f"    {self._computed(started)}" for started in some)
            else:
                yield "    try:"
                yield from (f"        {self._launch(next(parts), started.arguments)}" for started in some)
                yield "    except RuntimeError as error:"
                yield "        raise CompileError(f'launching a kernel failed: {error}') from error"

    def _keep(self, value: Any) -> str:
        """The name of a value in the function."""
        name = f"v{len(self._scope)}"
        self._scope[name] = value
        return name

    def _unless(self, first: Parts) -> Iterator[str]:
        """When the general way is taken."""
        yield f"{self._keep(first.current_device)}() != {first.device}"
        for now, meaning in self._meant.items():
            yield f"{self._keep(now)}() is not {self._keep(meaning)}"
        if self._asked:
            deterministic = torch.are_deterministic_algorithms_enabled
            yield f"{self._keep(deterministic)}() is not {deterministic()}"

    def _memory(self, tensor: torch.Tensor) -> str:
        like = f"{self._keep(tuple(tensor.shape))}, {self._keep(tensor.stride())}"
        if _quick_empty is not None and tensor.device.type == "cuda":
            return f"{self._keep(_quick_empty)}({like}, {self._keep(tensor.dtype)})"
        given = f"dtype={self._keep(tensor.dtype)}, device={self._keep(tensor.device)}"
        return f"{self._keep(torch.empty_strided)}({like}, {given})"

    def _outputs(self, given: Any) -> Iterator[tuple[_Root, torch.Tensor]]:
        """What is returned, as (where it lies, how): each all of its memory, from the beginning."""
        for tensor in given if isinstance(given, (list, tuple)) else (given,):
            root = self._watch.root(tensor)
            if root is None or root.kind == "a" or tensor.numel() != self._watch.tensor(root).numel():
                raise _Unlike
            yield root, tensor

    def _launch(self, parts: Parts, given: tuple[Any, ...]) -> str:
        if not parts.programs:
            return "pass"
        values = [
            self._address(given[i]) if make is None else f"{self._keep(make)}({self._place(given[i])})"
            for i, make in parts.tensors
        ]
        values += [self._keep(value) for value in [*(given[i] for i in parts.scalars), *parts.numbers]]
        fixed = [self._keep(value) for value in parts.start.fixed]
        last = ", ".join(values) if parts.start.spread else f"[{', '.join(values)}]"
        programs = self._keep(parts.programs)
        return f"{self._keep(parts.start.function)}({programs}, 1, 1, stream, {''.join(f'{v}, ' for v in fixed)}{last})"

    def _computed(self, started: Started) -> str:
        return f"{self._keep(OF_PYTORCH[started.operator])}({', '.join(map(self._matrix, started.arguments))})"

    def _matrix(self, matrix: torch.Tensor) -> str:
        root, beyond = self._where(matrix)
        if matrix.dtype is not self._watch.tensor(root).dtype:
            raise _Unlike
        return f"({root}, {self._keep(matrix.shape)}, {self._keep(matrix.stride())}, {beyond // matrix.itemsize})"

    def _place(self, tensor: Any) -> str:
        """The tensor whose memory this one begins."""
        root, beyond = self._where(tensor)
        if beyond:
            raise _Unlike
        return str(root)

    def _address(self, tensor: Any) -> str:
        root, beyond = self._where(tensor)
        begin = self._addresses.setdefault(root, f"p{len(self._addresses)}")
        return f"{begin} + {beyond}" if beyond else begin

    def _where(self, tensor: Any) -> tuple[_Root, int]:
        """Where a tensor lies, and how many bytes from the beginning."""
        root = self._watch.root(tensor)
        if root is None:
            raise _Unlike
        return root, tensor.data_ptr() - self._watch.tensor(root).data_ptr()


Matrix = tuple[torch.Tensor, Sequence[int], Sequence[int], int]
"""Where it lies, its shape and strides, and how many elements from there it begins."""


def _multiply(*matrices: Matrix) -> None:
    """PyTorch's product of two into a third."""
    with below_autograd():
        left, right, out = map(_view, matrices)
        torch.mm(left, right, out=out)


def _copy(*matrices: Matrix) -> None:
    """PyTorch's copy of the second into the first."""
    with below_autograd():
        to, of = map(_view, matrices)
        to.copy_(of)


def _view(matrix: Matrix) -> torch.Tensor:
    tensor, shape, strides, beyond = matrix
    return tensor.as_strided(shape, strides, tensor.storage_offset() + beyond)


OF_PYTORCH = {torch.ops.aten.mm.out: _multiply, torch.ops.aten.copy_.default: _copy}
"""What has PyTorch compute as a run asked it to, by the operator that was seen."""


def _like(given: Any, names: Sequence[str]) -> str:
    match given:
        case list():
            return f"[{', '.join(names)}]"
        case tuple():
            return f"({', '.join(names)},)"
    return names[0]
