"""Runs a program on every backend and compares: with what its text means, and a config with another.

A backend agrees, or refuses with a KptError; whatever else happens is a ``Finding``.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import numpy as np
import torch

from kpt_dsl import runtime, targets
from kpt_dsl.emit.triton.facts import WARP_SPECIALISED
from kpt_dsl.errors import KptError
from kpt_dsl.instance import Instance
from kpt_dsl.kernel import Kernel
from kpt_dsl.runtime.binding import bind
from kpt_dsl.runtime.numpy import run as run_numpy
from kpt_dsl.runtime.triton import interpret_for
from kpt_dsl.space import Config, space
from tests.generated.configs import any_legal
from tests.programs.meaning import Meaning, meaning
from tests.programs.program import NUMPY, UNWRITTEN, Array, Call, Program, Tensor, loaded
from tests.programs.values import INTEGERS, LARGEST
from tests.tolerances import rounding

BACKENDS = ("numpy", "triton", "gluon", "pallas")
CHIPS = ("nvidia-h200", "nvidia-h200", "nvidia-h200", "amd-mi300x", "nvidia-a100")
"""Whose code Triton's interpreter runs; without schedules of their own."""
MOST_STEPS = 60
LENGTHS = (1, 3, 8, 16, 31, 32, 64, 128)
"""Of tiles, under NumPy."""
F64_SLACK = 1e-9
_TRIES = 40


class Finding(AssertionError):
    """A backend did something else than the program means. ``kind`` is the same for findings that are likely one fault."""

    def __init__(self, backend: str, kind: str, told: str) -> None:
        super().__init__(f"{backend}: {told}")
        self.backend, self.kind = backend, f"{backend}: {kind}"


@dataclass
class Tally:
    """How many programs each backend served and refused, by reason."""

    served: Counter[str] = field(default_factory=Counter)
    refused: dict[str, Counter[str]] = field(default_factory=lambda: {b: Counter() for b in BACKENDS})
    rightly: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*BACKENDS, "f64"), 0.0))
    tags: Counter[str] = field(default_factory=Counter)
    programs: int = 0

    def add(self, other: "Tally") -> None:
        self.served += other.served
        self.rightly += other.rightly
        for backend, spent in other.seconds.items():
            self.seconds[backend] += spent
        self.tags += other.tags
        self.programs += other.programs
        for backend, reasons in other.refused.items():
            self.refused[backend] += reasons


# ------------------------------------------------------------------ configs
def steps(call: Call, instance: Instance, config: Mapping[str, object]) -> int:
    """How many turns of loops a run takes, all programs together."""
    around: list[tuple[int, int]] = []
    grid, inner = 1, 1
    for dim, tiled, level in call.loops:
        extent, block = call.extents.get(dim, 1), config.get(f"block_{dim}", 1)
        assert isinstance(block, int)
        turns = -(-extent // block) if tiled else extent
        if level == 0:
            grid *= turns
            continue
        around = [x for x in around if x[0] < level]
        around.append((level, turns))
        inner += int(np.prod([x[1] for x in around]))
    return grid * inner


def any_lengths(call: Call, instance: Instance, random: Random) -> Config:
    """A config for NumPy, where tiles may have any length."""
    for _ in range(_TRIES):
        values: dict[str, Any] = {f"block_{dim}": random.choice(LENGTHS) for dim, tiled, _ in call.loops if tiled}
        for name, options in instance.lower().choices:
            values[name] = random.choice(options)
        if steps(call, instance, values) <= 20 * MOST_STEPS:
            break
    return Config(values)


@cache
def chip(name: str) -> targets.Target:
    """A target without schedules of its own, which Triton's interpreter does not know."""
    from dataclasses import replace

    return replace(targets.get(name), schedules=())


def warp_specialised(instance: Instance, random: Random) -> Config | None:
    """A config with a producer and consumers, where the kernel has that form."""
    options = space(instance, targets.get("nvidia-h200"))
    variants = [v for v in options.variants if v.choices.get("schedule") == WARP_SPECIALISED]
    for _ in range(10 * _TRIES if variants else 0):
        variant = random.choice(variants)
        config = variant.choices | {name: random.choice(values) for name, values in variant.knobs.items()}
        if options.why_illegal(config) is None:
            return config
    return None


# ------------------------------------------------------------------ arguments
class Run:
    """One program in one module, with what it means."""

    def __init__(self, program: Program, module: ModuleType) -> None:
        self.program, self.call, self.module = program, program.call, module
        self.kernel: Kernel = module.drawn
        self.random = Random(program.call.seed)
        self.values = program.call.values()
        self.outputs = [t for t in program.call.tensors if t.role == "out" and not t.absent]
        self.configs: list[Config] = []
        self.meanings: dict[str, dict[str, Meaning]] = {}

    def statics(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {n: getattr(self.module, x) if n in self.call.functions else x for n, x in given.items()}

    def tensors(self) -> dict[str, Any]:
        """Tensors as they are passed, by name."""
        found: dict[str, Any] = {}
        for t in self.call.tensors:
            if t.absent:
                found[t.name] = None
            elif t.over is not None:
                found[t.name] = found[t.over]
            elif t.role == "in":
                found[t.name] = t.tensor(self.values[t.name])
            else:
                found[t.name] = t.empty(self.call.shape(t))
                if t.added:
                    found[t.name].zero_()
        return found

    def exact_arrays(self, fill: float) -> dict[str, Any]:
        """Contiguous NumPy arrays; outputs of floats in float64."""
        found: dict[str, Any] = {t.name: None for t in self.call.tensors if t.absent}
        for t in self.call.tensors:
            if t.name in self.values:
                found[t.name] = self.values[t.name].astype(NUMPY[t.dtype])
        for t in self.outputs:
            kind = np.float64 if t.dtype in LARGEST else NUMPY[t.dtype]
            found[t.name] = np.full(self.call.shape(t), 0 if t.added else fill, kind)
        return found

    def meaning(self, statics: Mapping[str, Any], constants: Mapping[str, Any]) -> dict[str, Meaning]:
        key = repr((statics, constants))
        if key not in self.meanings:
            self.meanings[key] = meaning(self.program, statics, constants, {})
        return self.meanings[key]

    # -------------------------------------------------------------- backends
    def exact(self) -> None:
        """NumPy in float64 is what the text means, and what one config gives another gives too."""
        wanted = self.meaning(self.call.statics, {})
        for fill in (1234.0, -77.0):
            arrays = self.exact_arrays(fill)
            given = {**arrays, **self.call.scalars, **self.statics(self.call.statics)}
            instance, _ = self.bound(self.tensors() | self.call.scalars | self.statics(self.call.statics))
            config = self.chosen(any_lengths(self.call, instance, self.random))
            run_numpy(instance, given, config, precision="f64")
            for t in self.outputs:
                self.compare_exactly(t, arrays[t.name], wanted[t.name], fill)

    def bound(self, given: Mapping[str, Any]) -> tuple[Instance, Mapping[str, Any]]:
        """The instance, and the arguments as a runtime takes them, as a call makes them."""
        instance, arguments = bind(self.kernel, given)
        if self.kernel.integers:
            instance.check_integers(arguments)
        return instance, arguments

    def chosen(self, config: Config) -> Config:
        self.configs.append(config)
        return config

    def once(self, backend: str) -> None:
        """One run and its comparison."""
        tensors = self.tensors()
        given = {**tensors, **self.call.scalars, **self.statics(self.call.statics)}
        before = {n: memory(x).copy() for n, x in tensors.items() if x is not None}
        instance, given = self.bound(given)
        count = partial(steps, self.call)
        if backend == "numpy":
            run_numpy(instance, given, self.chosen(any_lengths(self.call, instance, self.random)))
        elif backend == "triton":
            target = chip(self.random.choice(CHIPS))
            config = self.chosen(any_legal(instance, target, self.random.randrange(1 << 20), MOST_STEPS, count))
            interpret_for(target, instance, given, config)
        elif backend == "gluon":
            gluon = warp_specialised(instance, self.random)
            assert gluon is not None
            interpret_for(targets.get("nvidia-h200"), instance, given, self.chosen(gluon))
        else:
            target = targets.get("tpu-v6e")
            config = self.chosen(any_legal(instance, target, self.random.randrange(1 << 20), MOST_STEPS, count))
            runtime.run(instance, given, config, "pallas")
        self.compare(backend, tensors, before, self.meaning(self.call.statics, {}))

    def called(self, backend: str, statics: Mapping[str, Any], constants: Mapping[str, Any], what: str) -> None:
        """A call as users make it: with the config that is found for it. ``what``: what differs from a first call."""
        tensors = self.tensors()
        before = {n: memory(x).copy() for n, x in tensors.items() if x is not None}
        given = {**tensors, **self.call.scalars, **self.statics(statics)}
        instance, _ = self.bound(given)
        if steps(self.call, instance, runtime.chosen(instance, given, backend)[0]) > 4 * MOST_STEPS:
            return  # what is first by rule is meant for a device, not for an interpreter
        self.kernel(**given, backend=backend)
        self.compare(backend, tensors, before, self.meaning(statics, constants), what)

    def history(self, backend: str) -> None:
        """Calls with other static arguments, then another value of a module's constant: none may leave a trace."""
        for statics in (*self.call.before, self.call.statics):
            self.called(backend, statics, {}, "with other static arguments")
        for name, value in self.call.globals.items():
            setattr(self.module, name, value)
        if self.call.globals:
            try:
                self.called(backend, self.call.statics, self.call.globals, "with another global")
            finally:
                for name in self.call.globals:
                    setattr(self.module, name, self.constant(name))

    def constant(self, name: str) -> float:
        found = re.search(rf"^{name} = (.+)$", self.program.text, re.MULTILINE)
        assert found is not None
        return float(found[1])

    # -------------------------------------------------------------- comparing
    def compare_exactly(self, t: Tensor, got: Array, wanted: Meaning, fill: float) -> None:
        unset = 0 if t.added else np.asarray(fill).astype(got.dtype)
        expected = np.where(wanted.written, wanted.values, unset).astype(np.float64)
        with np.errstate(invalid="ignore"):
            allowed = F64_SLACK * (1 + np.abs(expected)) if t.off else 0.0
        self._assert("f64", t, got.astype(np.float64), expected, allowed, np.ones_like(wanted.written))

    def compare(self, backend: str, tensors: Mapping[str, Any], before: Mapping[str, Array], wanted: Mapping[str, Meaning],
                what: str = "") -> None:  # fmt: skip
        for t in self.outputs:
            here = wanted[t.name]
            with np.errstate(all="ignore"):
                expected = rounded(here.values, t.dtype)
                allowed = t.off + rounding(t.dtype, expected) if t.off else 0.0
            looked_at = np.ones_like(here.written)
            if t.added or t.over is not None:
                pass
            elif backend == "pallas":
                looked_at = here.written
            else:
                unset = UNWRITTEN if t.dtype in INTEGERS else 0.0 if t.dtype == "bool" else np.nan
                expected = np.where(here.written, expected, unset)
            got = as_float64(tensors[t.name])
            self._assert(backend, t, got, expected, allowed, looked_at, what)
        for name, held in before.items():
            self._assert_untouched(backend, name, tensors[name], held)

    def _assert(self, backend: str, t: Tensor, got: Array, expected: Array, allowed: Any, looked_at: Array,
                what: str = "") -> None:  # fmt: skip
        with np.errstate(invalid="ignore"):
            same = (got == expected) | (np.isnan(got) & np.isnan(expected))
            near = np.isfinite(expected) & (np.abs(got - expected) <= allowed)
        wrong = looked_at & ~(same | near)
        if wrong.any():
            first = tuple(int(i) for i in np.argwhere(wrong)[0])
            told = (
                f"{t.name} has {int(wrong.sum())} wrong elements of {wrong.size}, the first at {first}: {got[first]:.9g}, "
                f"right is {expected[first]:.9g}"
            )
            raise Finding(backend, f"wrong value {what}".strip(), f"{told} {what}".strip())

    def _assert_untouched(self, backend: str, name: str, tensor: torch.Tensor, before: Array) -> None:
        """Nothing but an output's own elements changed."""
        output = any(t.name == name or t.over == name for t in self.outputs)
        changed = before != memory(tensor)
        if output:
            size = tensor.element_size()
            inside = torch.zeros(len(before) // size, dtype=torch.bool)
            inside.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).fill_(True)
            changed &= ~np.repeat(inside.numpy(), size)
        if changed.any():
            raise Finding(backend, "stray write", f"memory of {name} that is not its own was written")


def rounded(values: Array, dtype: str) -> Array:
    """In float64, what a type holds of these values."""
    if dtype in (*INTEGERS, "bool"):
        return values.astype(np.float64)
    if dtype.startswith("f8"):
        values = np.clip(values, -LARGEST[dtype], LARGEST[dtype])
    return values.astype(NUMPY[dtype]).astype(np.float64)


def memory(tensor: torch.Tensor) -> Array:
    """All the bytes that a tensor is a view of."""
    found: Array = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy()
    return found


def as_float64(tensor: torch.Tensor) -> Array:
    found: Array = tensor.detach().resolve_neg().to(torch.float64).numpy()
    return found


# ------------------------------------------------------------------ one program
def reason(error: BaseException) -> str:
    """An error's first line without the names and numbers of one program."""
    line = str(error).splitlines()[0] if str(error) else ""
    line = re.sub(r"<kpt[^>]*>, line \d+", "…", line)
    line = re.sub(r"drawn_\d+\.py:\d+: |drawn(\[.*?\])?:? ?", "", line)
    line = re.sub(r"\b(x|y|v|acc|row|flag|scale|count|last|bound|apply)\d+\b|\b[a-z]\d+\b|\b[A-Z]\b", "…", line)
    return f"{type(error).__name__}: {re.sub(r'-?[0-9.]+', '#', line)}"[:110]


@contextmanager
def judged(backend: str, tally: Tally) -> Iterator[None]:
    """A refusal is counted; what is neither that nor a finding becomes one."""
    try:
        yield
    except Finding:
        raise
    except KptError as error:
        tally.refused[backend][reason(error)] += 1
    except Exception as error:
        raise Finding(backend, reason(error), f"{type(error).__name__}: {error}") from error
    else:
        tally.served[backend] += 1


def check(program: Program, folder: Path, backends: Sequence[str], tally: Tally) -> None:
    """Run a program on backends. Raises Finding, with the configs that were run in its notes."""
    tally.programs += 1
    tally.tags.update(program.call.tags)
    with loaded(program.text, folder) as module, np.errstate(all="ignore"):
        run = Run(program, module)
        try:
            _check(run, backends, tally)
        except Finding as finding:
            finding.add_note("configs: " + "; ".join(map(str, run.configs)))
            raise


def _check(run: Run, backends: Sequence[str], tally: Tally) -> None:
    clock = Clock(tally)
    if run.call.refused:
        for backend in backends:
            if backend in run.call.refusing:
                _must_refuse(run, backend, tally)
                clock.lap(backend)
        return
    with judged("numpy", Tally()):
        run.exact()
    clock.lap("f64")
    for backend in backends:
        if backend == "gluon" and not _has_gluon(run):
            continue
        with judged(backend, tally):
            run.once(backend)
            if backend != "gluon" and (run.call.before or run.call.globals):
                run.history(backend)
        clock.lap(backend)


def _has_gluon(run: Run) -> bool:
    """Whether the kernel has a warp-specialised form. What lies beyond a loop's bounds enters its products as zero times itself
    (docs/decisions.md), so that infinities are drawn for it where a loop has no bounds."""
    odd = any(t.odd for t in run.call.tensors)
    if "products" not in run.call.tags or (odd and ("start=" in run.program.text or "stop=" in run.program.text)):
        return False
    try:
        instance, _ = run.bound({**run.tensors(), **run.call.scalars, **run.statics(run.call.statics)})
        return warp_specialised(instance, run.random) is not None
    except KptError:
        return False


def _must_refuse(run: Run, backend: str, tally: Tally) -> None:
    try:
        tensors = run.tensors()
        run.kernel(**tensors, **run.call.scalars, **run.statics(run.call.statics), backend=backend)
    except KptError:
        tally.rightly[backend] += 1
    except Exception as error:
        told = f"{run.call.refused}: raised {type(error).__name__} ({error}), not a KptError"
        raise Finding(backend, f"{run.call.refused}: {type(error).__name__}", told) from error
    else:
        raise Finding(backend, f"{run.call.refused}: not refused", f"{run.call.refused}, and nothing was raised")


class Clock:
    """Seconds by backend."""

    def __init__(self, tally: Tally) -> None:
        self.tally, self.last = tally, time.perf_counter()

    def lap(self, backend: str) -> None:
        now = time.perf_counter()
        self.tally.seconds[backend] += now - self.last
        self.last = now
