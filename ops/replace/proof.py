"""Showing on a few drawn rows that a module computes what an op computes.

The op is stood for by its reference in float64, which is the law that its kernels are held to elsewhere; the module's own
``forward`` runs in each type that kernels take, and is held to the same tolerances. Values are drawn at several scales, for at
1 neither a misplaced eps nor a square that leaves its type can be seen. The module itself is never run: a twin of it is, with
its attributes, what was drawn, and no hooks. Knows no form of modules.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from math import sqrt
from types import MappingProxyType, MethodType
from typing import Any

import torch
from torch import nn

from kpt.ops.replace.rules import CHANGED, PLACE

ROUNDINGS = {torch.float32: 16 * 2.0**-23, torch.float16: 2 * 2.0**-10, torch.bfloat16: 2 * 2.0**-7}
"""By type, how far a result may be from float64 by rounding, as a part of the largest: what kernels are held to as well."""

SUMMING = 4 * 2.0**-23
"""The same for a sum in float32, times the square root of how many terms it has."""

SEED = 20

@dataclass(frozen=True, slots=True)
class Case:
    """What is drawn: of what type all is, how large inputs and parameters are, how many rows the input has."""

    dtype: torch.dtype
    x: float
    parameters: float
    rows: tuple[int, ...] = (2, 3)
    """Of one dim: the first row is zero."""
    gradients: bool = False
    training: bool = False
    terms: int = 1
    """How many terms sums have, where that is more than the last dim of a result."""

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{name}, inputs around {self.x:.2g}, parameters around {self.parameters:.2g}"


Law = Callable[..., torch.Tensor]
"""What a module should make of the tensors of a run, in their order; all in float64."""

Draw = Callable[..., torch.Tensor]
"""``draw(*shape, scale=1.0)``: normal numbers of a case's type."""


@dataclass(frozen=True, slots=True)
class Run:
    """A module's own forward on what was drawn: all that its result hangs on, by what a report calls it, and the call."""

    given: Mapping[str, torch.Tensor]
    forward: Callable[[], Any]


Trial = Callable[[Case, Draw], Run]


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs, and after how many cases that agreed."""

    passed: int
    what: str


def cases(own: torch.dtype, smallest: float = 1e-3) -> Iterator[Case]:
    """Those that tell a misplaced eps, missing float32, and other dims apart. ``own``: the module's type. ``smallest``: where
    its eps is as large as the mean square of the inputs."""
    for x, parameters in ((1.0, 1.0), (1e-3, 1.0), (smallest, 1.0), (1e3, 1.0), (1.0, 1e-3), (1.0, 1e3)):
        yield Case(torch.float32, x, parameters, gradients=True, training=x == 1.0)
    yield Case(torch.float32, 1.0, 1.0, gradients=True)
    for rows in ((5,), (2, 3, 4)):
        yield Case(torch.float32, 1.0, 1.0, rows)
    for dtype in (torch.bfloat16, torch.float16):
        for x, parameters in ((1.0, 1.0), (1e-3, 1.0), (1e3, 1.0), (1.0, 1e-3), (1.0, 1e3)):
            yield Case(dtype, x, parameters, gradients=dtype == own and x == parameters, training=x == 1e3)


def difference(trial: Trial, law: Law, tests: Sequence[Case], device: torch.device) -> Difference | None:
    """Where a module's own forward first differs from the law; None where it never does."""
    with undisturbed(device):
        for passed, case in enumerate(tests):
            try:
                reason = _difference(trial, law, case, device)
            except Exception as error:  # whatever a stranger's code raises
                reason = f"its forward fails: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            if reason is not None:
                return Difference(passed, f"{reason} ({case})")
    return None


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Within the block, nothing hangs on the modes of whoever replaces, and their random state is not touched."""
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield


def twin(
    module: nn.Module,
    training: bool,
    parameters: Mapping[str, torch.Tensor] = MappingProxyType({}),
    children: Mapping[str, nn.Module] = MappingProxyType({}),
) -> nn.Module:
    """A module of the same class and attributes with these parameters and children, or twins of its own; without hooks."""
    other = type(module).__new__(type(module))
    for name, value in attributes(module).items():
        vars(other)[name] = copy(value) if type(value) in (list, dict, set) else value  # a forward may fill them
    vars(other).update(vars(nn.Module()), training=training)
    vars(other)["_parameters"] = {**module._parameters, **parameters}
    vars(other)["_modules"] = {
        name: children.get(name) or twin(child, training) for name, child in module._modules.items() if child is not None
    }
    return other


def called(subject: nn.Module, x: torch.Tensor) -> Any:
    """What the forward of a twin gives. Raises ValueError where it leaves something in an attribute, for somebody to read."""
    before = {part: _left_in(part) for part in subject.modules()}
    y = type(subject).forward(subject, x)
    for part, known in before.items():
        now = _left_in(part)
        for name in now.keys() | known.keys():
            if now.get(name) != known.get(name):
                raise ValueError(f"it leaves something in {name}")
    return y


def _left_in(module: nn.Module) -> dict[str, Any]:
    """What the attributes of a module count as, with what is in those that may be filled."""
    return {
        name: (told(value), [id(inner) for inner in (*value, *(value.values() if isinstance(value, dict) else ()))])
        if isinstance(value, (list, dict, set))
        else told(value)
        for name, value in attributes(module).items()
    }


def device_of(module: nn.Module) -> torch.device:
    """Where its parameters are, if that is a GPU: its code may ask. Parameters elsewhere are drawn on the CPU."""
    device = next((p.device for p in module.parameters()), None)
    return device if device is not None and device.type == "cuda" else torch.device("cpu")


def attributes(module: nn.Module) -> dict[str, Any]:
    """What a module has besides parameters, buffers, children and hooks."""
    return {name: value for name, value in vars(module).items() if name not in MACHINERY}


MACHINERY = frozenset({*vars(nn.Module()), PLACE, CHANGED, "forward", "_old_forward", "_hf_hook", "_compiled_call_impl"})
"""Attributes that are PyTorch's or kpt's, or that others laid around the forward of an instance."""

PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)
"""Types of attributes that are the same where they are equal; others where they are one object."""


def told(value: Any) -> Any:
    """What an attribute counts as: numbers, words and tuples of them by what they are, all else by which object it is."""
    if isinstance(value, tuple):
        return tuple, tuple(map(told, value))
    return type(value), value if isinstance(value, PLAIN) else id(value)


def is_kept(value: Any) -> bool:
    """Whether an attribute may be compared with another and pickled beside its module: what is plain, and functions."""
    is_function = callable(value) and not isinstance(value, (nn.Module, MethodType))
    return is_function or isinstance(value, PLAIN) or (isinstance(value, tuple) and all(map(is_kept, value)))


def _difference(trial: Trial, law: Law, case: Case, device: torch.device) -> str | None:
    generator = torch.Generator().manual_seed(SEED)

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator, device="cpu", dtype=torch.float32) * scale).to(device, case.dtype)

    run = trial(case, draw)
    exact = [t.detach().double().requires_grad_(case.gradients) for t in run.given.values()]
    for t in run.given.values():
        t.requires_grad_(case.gradients)
    y, expected = run.forward(), law(*exact)
    if not isinstance(y, torch.Tensor):
        return f"its output is a {type(y).__name__}"
    if (reason := _off(y, expected, case, "its output")) is not None or not case.gradients:
        return reason
    dy = draw(*y.shape)
    found: Any = torch.autograd.grad(y, list(run.given.values()), dy, allow_unused=True)
    wanted: Any = torch.autograd.grad(expected, exact, dy.double(), allow_unused=True)
    for name, g, w in zip(run.given, found, wanted, strict=True):
        if g is None or w is None:
            if g is not w:
                return f"one of the two has no gradient of {name}"
        elif (reason := _off(g, w, case, f"its gradient of {name}")) is not None:
            return reason
    return None


def _off(got: torch.Tensor, expected: torch.Tensor, case: Case, what: str) -> str | None:
    if got.shape != expected.shape:
        return f"{what} has shape {tuple(got.shape)}, not {tuple(expected.shape)}"
    if got.dtype != case.dtype:
        return f"{what} is {got.dtype}"
    largest = float(expected.detach().abs().max())
    allowed = (ROUNDINGS[case.dtype] + SUMMING * sqrt(max(expected.shape[-1], case.terms))) * largest
    off = float((got.detach().double() - expected.detach()).abs().max())
    if off <= allowed:  # NaN is not
        return None
    return f"{what} is off by {off:.2g} of {largest:.2g}, allowed {allowed:.2g}"
