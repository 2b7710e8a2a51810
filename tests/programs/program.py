"""What a drawn program is: the text of a module with one kernel ``drawn``, and all that one call of it takes.

Its repr is all that is needed to run it again: ``module`` writes both into a file that runs by itself.
"""

import importlib.util
import itertools
import linecache
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from tests.generated.arrays import TORCH, Layout
from tests.programs.values import INTEGERS

Array = NDArray[Any]

NUMPY: dict[str, Any] = {
    "f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16, "i32": np.int32, "i64": np.int64, "bool": np.bool_,
    "i8": np.int8, "u8": np.uint8,
    "f8e4m3": ml_dtypes.float8_e4m3fn, "f8e5m2": ml_dtypes.float8_e5m2,
}  # fmt: skip
_TORCH = TORCH | {"i8": torch.int8, "u8": torch.uint8, "i64": torch.int64, "bool": torch.bool}

UNWRITTEN = 77
"""What outputs of integers hold before a kernel writes them; those of floats hold NaN."""


_PLAIN = Layout(())


@dataclass(frozen=True)
class Tensor:
    """A tensor argument. ``fill``: "steps" of 2**grain from -most to most; "index" of a dim of extent ``most`` (and, where
    ``odd``, beyond it); "length" from 0 to beyond ``most``; "starts" of groups within ``most``, the first
    of them beyond it where ``odd``. ``odd``: infinities and NaN are among floats, too. ``absent``: None
    is passed. ``negated``: a view with PyTorch's negative bit. ``over``: an output that lies in this input's memory. ``added``:
    an output that is added to. ``off``: how far float32 may be from it. ``broken``: what makes its elements share memory.
    """

    name: str
    dims: tuple[str, ...]
    dtype: str
    role: Literal["in", "out"] = "in"
    fill: Literal["steps", "index", "length", "starts"] = "steps"
    most: int = 8
    grain: int = 0
    odd: bool = False
    layout: Layout = _PLAIN
    absent: bool = False
    negated: bool = False
    over: str | None = None
    added: bool = False
    off: float = 0.0
    broken: str = ""

    @property
    def order(self) -> tuple[int, ...]:
        return self.layout.order or tuple(range(len(self.dims)))

    def values(self, extents: Mapping[str, int], random: np.random.Generator) -> Array:
        """What an input holds, in float64, int64 or bool."""
        shape = tuple(extents[d] for d in self.dims)
        if self.dtype == "bool":
            return random.random(shape) < 0.5
        if self.fill == "index":
            low, high = (-1, self.most + 1) if self.odd else (0, max(1, self.most))
            found = random.integers(low, high, shape)
            if self.odd and found.size:
                found.reshape(-1)[-1] = random.choice([-1, self.most, self.most + 1000])
            return found
        if self.fill == "starts":
            found = np.sort(random.integers(0, self.most + 1, shape))
            found[:1] += self.odd * (self.most + 1)
            return found
        if self.fill == "length":
            return random.integers(-1, self.most + 3, shape)
        steps = random.integers(-self.most, self.most + 1, shape)
        if self.dtype in INTEGERS:
            return np.abs(steps) if self.dtype == "u8" else steps
        found = steps * 2.0**self.grain
        if self.odd:
            kinds = [np.nan, np.nan, np.inf, -np.inf][: 2 if self.dtype == "f8e4m3" else 4]
            # Few: what is NaN all over shows nothing.
            found = np.where(random.random(shape) < 0.03, random.choice(kinds, shape), found)
        return found

    def empty(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Unwritten memory of this layout, inside a larger buffer."""
        order, gap = self.order, self.layout.gap
        if self.broken == "stride":
            return torch.zeros(1, dtype=_TORCH[self.dtype]).expand(shape)
        if self.broken == "overlap":
            flat = torch.zeros(sum(shape) + 1, dtype=_TORCH[self.dtype])
            return flat.as_strided(shape, (1,) * len(shape))
        storage = [shape[d] + 2 * gap for d in order]
        if self.dtype.startswith("f8"):
            buffer = torch.full(storage, 0x7F, dtype=torch.uint8).view(_TORCH[self.dtype])
        elif self.dtype in INTEGERS:
            buffer = torch.full(storage, UNWRITTEN, dtype=_TORCH[self.dtype])
        else:
            fill = False if self.dtype == "bool" else float("nan")
            buffer = torch.full(storage, fill, dtype=_TORCH[self.dtype])
        for axis, dim in enumerate(order):
            buffer = buffer.narrow(axis, gap, shape[dim])
        return buffer.permute([order.index(d) for d in range(len(shape))])

    def tensor(self, values: Array) -> torch.Tensor:
        """The values in memory."""
        found = self.empty(values.shape)
        exact = torch.from_numpy(np.ascontiguousarray(values))
        found.copy_((-exact if self.negated else exact).to(_TORCH[self.dtype]))
        return torch._neg_view(found) if self.negated else found

    def __repr__(self) -> str:
        said = [f"{self.name!r}", f"{self.dims!r}", f"{self.dtype!r}"]
        said += [f"{f.name}={v!r}" for f in fields(self)[3:] if (v := getattr(self, f.name)) != f.default]
        return f"Tensor({', '.join(said)})"


@dataclass(frozen=True)
class Call:
    """One call of a kernel. ``before``: static arguments of calls that come first; ``globals``: what the module's constants
    become after a first run. ``loops``: dim, and whether in tiles, of each loop on the way to the innermost one.
    ``refused``: why the kernel must be refused, "" where it must not, with the backends that must refuse it.
    """

    tensors: tuple[Tensor, ...]
    extents: Mapping[str, int]
    scalars: Mapping[str, Any] = field(default_factory=dict)
    statics: Mapping[str, Any] = field(default_factory=dict)
    functions: tuple[str, ...] = ()
    before: tuple[Mapping[str, Any], ...] = ()
    globals: Mapping[str, Any] = field(default_factory=dict)
    loops: tuple[tuple[str, bool, int], ...] = ()
    refused: str = ""
    refusing: tuple[str, ...] = ("numpy", "triton", "pallas")
    seed: int = 0
    tags: tuple[str, ...] = ()

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        return tuple(self.extents[d] for d in tensor.dims)

    def values(self) -> dict[str, Array]:
        """What inputs hold, absent ones left out."""
        return {
            t.name: t.values(self.extents, np.random.default_rng((self.seed, i)))
            for i, t in enumerate(self.tensors)
            if t.role == "in" and not t.absent
        }

    def __repr__(self) -> str:
        said = [f"    {f.name}={v!r}," for f in fields(self) if (v := getattr(self, f.name)) or f.name == "tensors"]
        return "\n".join(["Call(", *said, ")"])


@dataclass(frozen=True)
class Program:
    """A module's text and a call of its kernel ``drawn``."""

    text: str
    call: Call

    def module(self, told: str) -> str:
        """A file that runs it again; ``told`` is what went wrong."""
        comment = "\n".join(f"# {line}".rstrip() for line in told.splitlines())
        return (
            f"{comment}\n# Run it with: python -m tests.programs FILE\n"
            "from tests.generated.arrays import Layout\nfrom tests.programs.program import Call, Tensor\n\n"
            f"{self.text}\n\nCALL = {self.call!r}\n"
        )

    def __str__(self) -> str:
        return f"{self.text}\n{self.call!r}"


_count = itertools.count()


@contextmanager
def loaded(text: str, folder: Path) -> Iterator[ModuleType]:
    """A module of this text, in a file of its own for as long as it is needed."""
    file = folder / f"drawn_{next(_count)}.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[file.stem]
        linecache.cache.pop(str(file), None)
        file.unlink()


def read(file: Path) -> Program:
    """A program that ``Program.module`` wrote."""
    scope: dict[str, Any] = {"__name__": file.stem, "__file__": str(file)}
    text = file.read_text()
    kernel = text[text.index("import kpt_dsl as kd") : text.index("\nCALL = ")].rstrip("\n") + "\n"
    code = text[text.index("\nCALL = ") :]
    exec(compile("from tests.generated.arrays import Layout\nfrom tests.programs.program import Call, Tensor\n" + code,
                 str(file), "exec"), scope)  # fmt: skip
    return Program(kernel, scope["CALL"])
