"""Which instances a command is about: an op, a stranger's kernel, or a preset, with shapes, dtype and flags."""

import difflib
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kpt.cli import parse
from kpt_dsl.classes import options
from kpt_dsl.errors import InputError
from kpt_dsl.instance import Instance
from kpt_dsl.kernel import from_name

if TYPE_CHECKING:
    from kpt.ops.calls import Calls
    from kpt.ops.registry import Op
    from kpt_dsl.targets import Target

DEFAULT_DTYPE = "bf16"


def instances(
    ops: Sequence[str],
    kernel: str | None,
    preset: str | None,
    shapes: Sequence[str],
    dtypes: Sequence[str],
    flags: Sequence[str],
    target: "Target",
    calls: "Calls | None" = None,
) -> list[Instance]:
    """Every kernel instance that is meant on a target, each once; those of ``calls`` by how much time they take, most first.

    Raises InputError for what is unknown, missing or does not go together.
    """
    if calls is not None:
        if ops or kernel or preset or shapes or dtypes or flags:
            raise InputError(
                "--calls, as --model, brings its own ops, shapes, dtypes and flags; leave --op, --kernel, --preset, --shapes, "
                "--dtype and --flags out"
            )
        return _of_calls(calls, target)
    if bool(ops) + bool(kernel) + bool(preset) - bool(ops and preset) != 1:
        raise InputError(
            "say which kernels: --op NAME, --kernel PACKAGE.MODULE:KERNEL, --preset NAME (with --op: only that op), or, where "
            "the command has them, --calls FILE, --model NAME"
        )
    if preset:
        if shapes or flags:
            raise InputError("--preset brings its own shapes and flags; leave --shapes and --flags out")
        return _unique(_of_preset(preset, ops, dtypes, target))
    if not shapes:
        raise InputError('no --shapes; write them like --shapes "M=4096,N=1024"')
    extents, options = parse.shapes(shapes), parse.flags(flags)
    if kernel:
        return _unique(_of_kernel(kernel, extents, dtypes or [DEFAULT_DTYPE], options))
    return _unique(_of_ops(ops, extents, dtypes, options, target))


def loaded(file: Path | None) -> "Calls | None":
    """The calls of a file. Raises InputError for one that has none."""
    from kpt.ops.calls import Calls

    return None if file is None else Calls.load(file)


def presets() -> dict[str, tuple[str, ...]]:
    """Name of each preset -> the ops that it has shapes for."""
    shapes = [(shape.model, name) for name, op in ops_by_name().items() for shape in op.shapes]
    return {model: tuple(dict.fromkeys(name for m, name in shapes if m == model)) for model, _ in sorted(shapes)}


def ops_by_name() -> "Mapping[str, Op]":
    """Every op; importing ``kpt.ops`` registers them."""
    import kpt.ops  # noqa: F401
    from kpt.ops.registry import OPS

    return OPS


def _op(name: str) -> "Op":
    known = ops_by_name()
    if name not in known:
        raise InputError(f"unknown op {name!r}{_guess(name, known)} known are {', '.join(known)}")
    return known[name]


def _of_calls(calls: "Calls", target: "Target") -> list[Instance]:
    taken: Counter[Instance] = Counter()
    for call in calls:
        for instance in call.instances(target):
            taken[instance] += call.often * _microseconds(instance, target)
    if not taken:
        raise InputError("there are no calls with kernels of kpt")
    return [instance for instance, _ in taken.most_common()]


def _microseconds(instance: Instance, target: "Target") -> int:
    """About how long a kernel takes, 1 or more."""
    space = options(instance, target)
    return 1 + round(space.seconds(space.first) * 1e6)


def _of_preset(preset: str, ops: Sequence[str], dtypes: Sequence[str], target: "Target") -> list[Instance]:
    known = presets()
    if preset not in known:
        raise InputError(f"unknown preset {preset!r}{_guess(preset, known)} known are {', '.join(known)}")
    chosen = [_op(name) for name in ops or known[preset]]
    found = [
        instance
        for op in chosen
        for shape in op.shapes
        if shape.model == preset
        for dtype in dtypes or [shape.dtype]
        for instance in op.instances(shape.dims, dtype, target, **shape.flags)
    ]
    if not found:
        raise InputError(
            f"preset {preset!r} has no shapes for {', '.join(ops)}; it has some for {', '.join(known[preset])}"
        )
    return found


def _of_ops(
    names: Sequence[str],
    extents: Sequence[dict[str, int]],
    dtypes: Sequence[str],
    flags: dict[str, parse.FlagValue],
    target: "Target",
) -> list[Instance]:
    found = []
    for op in map(_op, names):
        usual = {shape.dtype for shape in op.shapes}
        default = DEFAULT_DTYPE if DEFAULT_DTYPE in usual or not usual else min(usual)
        for dims in extents:
            for dtype in dtypes or [default]:
                found += op.instances(dims, dtype, target, **flags)
    return found


def _of_kernel(
    name: str, extents: Sequence[dict[str, int]], dtypes: Sequence[str], statics: dict[str, parse.FlagValue]
) -> list[Instance]:
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # a kernel in the present folder is found by its name; what is installed goes before it
    kernel = from_name(name)
    tensors = tuple(kernel.tensors)
    return [
        Instance.of_shapes(kernel, dims, parse.dtypes(dtype, tensors), statics) for dims in extents for dtype in dtypes
    ]


def _unique(found: Sequence[Instance]) -> list[Instance]:
    return list(dict.fromkeys(found))


def _guess(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=2)
    return f"; did you mean {' or '.join(close)}?" if close else ";"
