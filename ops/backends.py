"""Generated kernels as implementations: one an emitter, all from the same ``run`` function of an op.

``run(launch, *arguments)`` allocates outputs and hands kernels with their arguments to ``launch``, each kernel once. What
``launch`` is makes the difference: a backend that runs them, or a recorder that notes them (for the tuner and ``explain``).
Where there are several ways to do a part of it, ``launch.quickest`` takes the one that was measured to be.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol

import torch

from kpt.ops.choice import preferred
from kpt.ops.compiling import NotMadeError, is_behind
from kpt.ops.devices import why_no_tpu
from kpt.ops.dtypes import KERNEL_FLOATS
from kpt.ops.eager import below, tensors_in
from kpt.ops.fingerprint import Fingerprint, fingerprint, is_of_tensor
from kpt.ops.registry import Implementation, KernelChoice, Missing, Ready, Undecided
from kpt.ops.straight import Repeated
from kpt_dsl import configs, runtime
from kpt_dsl.arrays import ALIGNMENT
from kpt_dsl.classes import extents, options
from kpt_dsl.emit import emit
from kpt_dsl.errors import KptError, TargetError
from kpt_dsl.frontend.outside import Meaning
from kpt_dsl.instance import Instance
from kpt_dsl.kernel import Kernel
from kpt_dsl.runtime import xla
from kpt_dsl.space import Config, space
from kpt_dsl.specialisation import Specialisation
from kpt_dsl.targets import Target

Run = Callable[..., Any]


class Launch(Protocol):
    """What ``run`` hands its kernels to."""

    def __call__(self, kernel: Kernel, *arguments: Any) -> None:
        """Launch a kernel, or note it."""

    def quickest(self, *ways: "Way") -> Any:
        """Go one of several ways: functions that take a ``Launch`` and hand it kernels. Gives what that one gives.

        It is the one whose kernels together take the least time, if all kernels of all ways were measured on this device for
        such a call; else the first. Times are compared at like extents.
        """


Way = Callable[[Launch], Any]


class Backend(NamedTuple):
    """An emitter, the torch device types whose tensors it serves unasked, and the package that it needs."""

    name: str
    devices: frozenset[str]
    package: str


BACKENDS = (
    Backend("triton", frozenset({"cuda"}), "triton"),
    Backend("pallas", frozenset(xla.DEVICES), "jax"),
    Backend("numpy", frozenset(), "numpy"),
)


def wide_dtype(*arguments: Any) -> str | None:
    """Why kernels pass over floating tensors of these dtypes, or None."""
    for tensor in tensors_in(arguments):
        if tensor.dtype not in KERNEL_FLOATS and tensor.is_floating_point():
            return f"kernels do not compute on {tensor.dtype}"
    return None


def generated(run: Run, why_not: Callable[..., str | None] = wide_dtype) -> tuple[Implementation, ...]:
    """An op's generated implementations. ``why_not(*arguments)`` says what the kernels themselves cannot do."""

    def not_served(*arguments: Any) -> str | None:
        if 0 in [t.numel() for t in tensors_in(arguments)]:
            return "a tensor is empty"
        return why_not(*arguments)

    def not_served_by_pallas(*arguments: Any) -> str | None:
        return not_served(*arguments) or why_no_tpu(tensors_in(arguments))

    return tuple(
        Implementation(
            backend.name,
            prepare=partial(_prepare, run, backend.name),
            devices=backend.devices,
            why_not=not_served_by_pallas if backend.name == "pallas" else not_served,
            describe=partial(_describe, run, backend.name),
            package=backend.package,
            missing=partial(_missing, run, backend.name),
            record=partial(_record, run),
            run=run,
        )
        for backend in BACKENDS
    )


def _record(run: Run, arguments: tuple[Any, ...], target: Target | None, first: bool) -> list[Instance]:
    def go(ways: Sequence[Way]) -> list[int]:
        return [n for n, way in enumerate(ways) if not n or not (first or (target and not _runs(way, target)))]

    recorder = _Recorder(go)
    run(recorder, *arguments)
    return [instance for instance, _ in recorder.bound()]


def unit_last_stride(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where its last dim is dense, as kernels want it; else a contiguous copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def rooms(
    beside: torch.Tensor, shape: Sequence[int], count: int, dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    """So many tensors of a shape where another one is, dense, in one allocation, each aligned as one alone would be."""
    size = math.prod(shape)
    step = -(-size // ALIGNMENT) * ALIGNMENT
    room = beside.new_empty(count * step, dtype=dtype)
    return [room[i * step :][:size].view(shape) for i in range(count)]


def as_matrix(tensor: torch.Tensor, columns: int) -> torch.Tensor:
    """The tensor as (rows, columns) with dense rows: a view where its strides allow one, else a copy."""
    matrix = tensor if tensor.ndim == 2 and tensor.shape[1] == columns else tensor.reshape(-1, columns)
    return unit_last_stride(matrix)


def _prepare(run: Run, backend: str, arguments: tuple[Any, ...], told: Fingerprint) -> Ready:
    device = _gpu(arguments)
    launches = Launches(backend, device, run, told)
    return below(partial(run, launches)) if device is None else Repeated(run, launches)


def kin(run: Hashable, told: Fingerprint) -> Hashable:
    """What a call has in common with others that are served alike, as a rule: lengths change with every call."""
    return run, *[_about(*part) if is_of_tensor(part) else part for part in told]


def _about(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, device: torch.device, *_: Any) -> Hashable:
    """A tensor's size, roughly, and how its dims lie in memory."""
    order = tuple(sorted([dim for dim, n in enumerate(shape) if n > 1], key=strides.__getitem__))
    return dtype, device, tuple([(n - 1).bit_length() for n in shape]), order


@lru_cache(maxsize=4096)
def _found_out(*_: Hashable) -> dict[tuple[str, ...], int]:
    """The quickest of some ways, by their names, for calls that have this in common (``kin``)."""
    return {}


class Launches:
    """Launches the kernels of one kind of call, each prepared when it first comes by and only started from then on."""

    __slots__ = ("_backend", "_device", "_prepared", "_run", "_told", "_ways")

    def __init__(self, backend: str, device: int | None, run: Run, told: Fingerprint) -> None:
        self._backend, self._device, self._run, self._told = backend, device, run, told
        self._prepared: dict[Kernel, _Prepared] = {}
        self._ways: dict[tuple[str, ...], tuple[int, Launches]] = {}
        """Of some ways, by their names: the number of the quickest, and what launches its kernels."""

    def __call__(self, kernel: Kernel, *arguments: Any) -> None:
        self.prepared(kernel, arguments).run(*arguments)

    def prepared(self, kernel: Kernel, arguments: tuple[Any, ...]) -> "_Prepared":
        """What runs a kernel now."""
        known = self._prepared.get(kernel)
        if known is not None:
            for now, meaning in known.meant:
                if now() is not meaning:
                    break
            else:
                return known
        known = self._prepared[kernel] = _prepared(kernel, arguments, self._backend, self._device)
        return known

    def quickest(self, *ways: Way) -> Any:
        """The quickest way, found out when it is first asked for; each way prepares its kernels for itself."""
        way, launches = self.way(ways)
        return way(launches)

    def way(self, ways: Sequence[Way]) -> "tuple[Way, Launches]":
        """The quickest of some ways, and what launches its kernels."""
        names = tuple([way.__name__ for way in ways])
        known = self._ways.get(names)
        if known is None:
            found = _found_out(kin(self._run, self._told), self._backend, configs.generation())
            if (number := found.get(names)) is None:
                if len(ways) > 1 and _must_not_wait():
                    raise NotMadeError("which way is the quickest is not known yet")
                number = found[names] = _quickest(ways, self._backend)
            known = self._ways[names] = number, Launches(self._backend, self._device, self._run, self._told)
        number, launches = known
        return ways[number], launches


class _Look:
    """Notes what the launches of a call would have to wait for, and starts nothing."""

    def __init__(self, backend: str, quickest: dict[tuple[str, ...], int]) -> None:
        self._backend = backend
        self._quickest = quickest
        self.instances: list[Instance] = []
        self.ways: list[Undecided] = []

    def __call__(self, kernel: Kernel, *arguments: Any) -> None:
        if runtime.runtime(self._backend).known_launch(kernel, arguments, _gpu(arguments)) is None:
            self.instances.append(Instance.bind(kernel, kernel.bind(*arguments)))

    def quickest(self, *ways: Way) -> Any:
        names = tuple(way.__name__ for way in ways)
        number = self._quickest.get(names) if len(ways) > 1 else 0
        if number is not None:
            return ways[number](self)
        instances = [[instance for instance, _ in _recorded(way)] for way in ways]
        self.ways.append(Undecided(names, instances, self._quickest))
        return ways[0](_Recorder(lambda _: (0,)))


def _missing(run: Run, backend: str, arguments: tuple[Any, ...], follow: Callable[[Ready], Any]) -> Missing:
    if _gpu(arguments) is None:
        return Missing()
    look = _Look(backend, _found_out(kin(run, fingerprint(arguments)), backend, configs.generation()))
    follow(partial(run, look))
    return Missing(look.instances, look.ways)


def _must_not_wait() -> bool:
    return is_behind() and preferred() is None


class _Prepared(NamedTuple):
    """What runs a kernel; and of it and of the functions among its arguments, what gives their meanings and what these were."""

    run: Callable[..., Any]
    meant: tuple[tuple[Callable[[], Meaning], Meaning], ...]

    @staticmethod
    def of(run: Callable[..., Any], known: Specialisation) -> "_Prepared":
        return _Prepared(run, known.meant)


class _Recorder:
    """Notes what would be launched; ``go`` says which of several ways, by their numbers."""

    def __init__(self, go: Callable[[Sequence[Way]], Sequence[int]]) -> None:
        self._go = go
        self.launched: list[tuple[Kernel, tuple[Any, ...]]] = []

    def __call__(self, kernel: Kernel, *arguments: Any) -> None:
        self.launched.append((kernel, arguments))

    def quickest(self, *ways: Way) -> Any:
        first, *_ = [ways[number](self) for number in self._go(ways)]
        return first

    def bound(self) -> Iterator[tuple[Instance, dict[str, Any]]]:
        """The instance of each launch, with its arguments by name."""
        for kernel, given in self.launched:
            arguments = kernel.bind(*given)
            yield Instance.bind(kernel, arguments), arguments


def _recorded(way: Way) -> Iterator[tuple[Instance, dict[str, Any]]]:
    recorder = _Recorder(lambda _: (0,))
    way(recorder)
    return recorder.bound()


def _runs(way: Way, target: Target) -> bool:
    """Whether every kernel of a way has a legal config on a target."""
    try:
        return all(options(instance, target).first for instance, _ in _recorded(way))
    except TargetError:
        return False


class _Timed(NamedTuple):
    """A kernel of a call, and how long it took with a config at some extents of its class; () where they are not known."""

    instance: Instance
    target: Target
    config: Config
    microseconds: float
    extents: tuple[tuple[str, int], ...]

    def here(self) -> float:
        """Its time at the extents of the call, as far as the space's model tells how that changes with them."""
        if not self.extents:
            return self.microseconds
        try:
            here, there = (self._modelled(extents) for extents in (self.instance.extents.dims, self.extents))
        except KptError:  # the config is none of a space at these extents
            return self.microseconds
        return self.microseconds * here / there

    def _modelled(self, extents: tuple[tuple[str, int], ...]) -> float:
        options = space(self.instance.with_dims(**dict(extents)), self.target)
        config = options.canonical(self.config)
        options.check(config)
        return options.seconds(config)


def _quickest(ways: Sequence[Way], backend: str) -> int:
    if len(ways) < 2:
        return 0
    recorded = [list(_recorded(way)) for way in ways]
    target = runtime.runtime(backend).target(recorded[0][0][1])
    return quickest([[instance for instance, _ in way] for way in recorded], target)


def quickest(ways: Sequence[Sequence[Instance]], target: Target) -> int:
    """Which of several ways takes the least time, as far as all kernels of all ways were measured for such a call; else 0."""
    timed = [_timed(way, target) for way in ways]
    known = [kernels for kernels in timed if kernels is not None]
    if len(known) < len(ways):
        return 0
    # What was tuned together, as a rule, was timed at one extent of each dim: then no model is needed, which errs more.
    extents = {extent for kernels in known for kernel in kernels for extent in kernel.extents}
    alike = len(extents) == len({dim for dim, _ in extents})
    times = [sum(kernel.microseconds if alike else kernel.here() for kernel in kernels) for kernels in known]
    return times.index(min(times))


def _timed(way: Sequence[Instance], target: Target) -> list[_Timed] | None:
    """The kernels of a way, None where one of them was not measured for such a call."""
    from autotune_db import lookup

    found = []
    for instance in way:
        try:
            answer = lookup.choose(instance, target)
        except KptError:  # no config of it is legal here
            return None
        measured = answer.provenance in ("measured", "imported", "shipped") and not answer.sibling
        if not measured or answer.entry is None or answer.entry.microseconds is None:
            return None
        found.append(_Timed(instance, target, answer.config, answer.entry.microseconds, answer.entry.extents))
    return found


def _gpu(arguments: tuple[Any, ...]) -> int | None:
    """The number of the GPU that the tensors are on."""
    first = next(a for a in arguments if isinstance(a, torch.Tensor))
    return first.device.index if first.is_cuda else None


def _prepared(kernel: Kernel, arguments: tuple[Any, ...], backend: str, device: int | None) -> _Prepared:
    """What runs the kernel on any arguments of the same dtypes, shapes, strides and alignment, on a GPU of that number."""
    assert len(arguments) == len(kernel.names), f"{kernel.name}: a launch has all arguments, None where absent"
    if device is not None:
        made = runtime.runtime(backend)
        if not _must_not_wait():
            return _Prepared.of(*made.prepared(kernel, arguments, device))
        if (known := made.known_launch(kernel, arguments, device)) is None:
            raise NotMadeError(f"{kernel.name} is not compiled yet")
        return _Prepared.of(*known)
    bound = kernel.bind(*arguments)
    instance = Instance.bind(kernel, bound)
    config, _ = runtime.chosen(instance, bound, backend)
    specialisation = instance.specialisation
    return _Prepared.of(lambda *given: runtime.run(instance, kernel.bind(*given), config, backend), specialisation)


def _describe(run: Run, backend: str, arguments: tuple[Any, ...]) -> tuple[KernelChoice, ...]:
    described = []
    recorder = _Recorder(lambda ways: (_quickest(ways, backend),))
    run(recorder, *arguments)
    for instance, bound in recorder.bound():
        config, provenance = runtime.chosen(instance, bound, backend)
        target = runtime.runtime(backend).target(bound)
        made = emit(instance, target, config).digest
        described.append(KernelChoice(instance.kernel.name, str(config), provenance, extents(instance, target), made))
    return tuple(described)
