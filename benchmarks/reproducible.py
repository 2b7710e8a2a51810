"""Runs an op many times on the same input and compares every bit of every result with the first, on the device.

With torch.use_deterministic_algorithms(True), under which alone an op promises the same bits.

  python -m benchmarks.reproducible --op flash_attention --op flash_attention_backward --runs 10000 \\
      --shapes "B=4,H=16,G=16,M=4096,N=4096,D=128" --flags causal=true

Without --shapes, the shapes that the op lists for models. A second stream keeps the device unevenly busy meanwhile; results
are overwritten before their memory is used again, so that what a kernel leaves unwritten shows. Exits with 1 if a bit differs.

Under compute-sanitizer, which takes some hundred times as long, --small runs shapes that no tile divides, and --like gives them
the configs that dispatch uses for a large shape:

  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 \\
      python -m benchmarks.reproducible --op flash_attention_backward --runs 1 --small \\
      --like "B=4,H=16,G=16,M=4096,N=4096,D=128"
  compute-sanitizer --tool racecheck --error-exitcode 9 python -m benchmarks.reproducible ... (the same)

Without its cache PyTorch gives each tensor memory of its own, so that memcheck sees what runs over its end. Of warp-specialised
kernels racecheck names the bytes in which Triton tells warps what to run, one a warp, and nothing else (docs/decisions.md).
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, get_args

import torch

import autotune_db
from benchmarks.determinism import deterministic
from kpt.cli import parse
from kpt.ops import registry
from kpt.ops.choice import Name, choose, prefer, preferred
from kpt.ops.dispatch import DISPATCHERS
from kpt.ops.shapes import Shape
from kpt_dsl import KptError, configs, runtime
from kpt_dsl.errors import ConfigError, InputError

SMALL: Mapping[tuple[str, ...], tuple[Shape, ...]] = {
    ("B", "H", "G", "M", "N", "D"): tuple(
        Shape("small", {"B": 2, "H": 4, "G": 2, "M": m, "N": n, "D": d}, flags=flags)
        for m, n, d in ((199, 199, 128), (256, 256, 64), (37, 199, 64))
        for flags in ({"causal": True}, {})
    ),
    ("B", "H", "G", "T", "D", "R"): (Shape("small", {"B": 2, "H": 4, "G": 2, "T": 37, "D": 64, "R": 48}),),
    ("M", "N", "K"): tuple(Shape("small", {"M": m, "N": n, "K": k}) for m, n, k in ((264, 520, 136), (37, 199, 77))),
    ("M", "N"): tuple(Shape("small", {"M": m, "N": n}) for m, n in ((37, 760), (199, 1024), (5, 16384))),
}
"""By an op's dims: ragged and even, with strides that descriptors take and strides that they do not."""

BUSY_BYTES, BUSY_EVERY = 1 << 26, 7
"""What the other stream writes, and every so many runs."""

TOLD_EVERY = 1000


def main(words: list[str] | None = None) -> int:
    given = _parser().parse_args(words)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    checked = wrong = 0
    with deterministic(), nullcontext() if given.prefer is None else prefer(given.prefer):
        for name in given.op or registry.OPS:
            op = registry.get(name)
            for shape in _shapes(op, given):
                op.instances(shape.dims, shape.dtype, **shape.flags)  # refuses what the op does not have
                arguments = op.arguments(shape.dims, shape.dtype, device, **shape.flags)
                text = ",".join(f"{key}={value}" for key, value in {**shape.dims, **shape.flags}.items())
                try:
                    with _like(op, shape, given.like, given.prefer, device):
                        print(f"{name} {text} {shape.dtype}, served by {_served(op, arguments)}", flush=True)
                        differing = repeat(op, arguments, given.runs)
                except ConfigError as error:
                    if given.like is None:
                        raise
                    print(f"{name} {text} {shape.dtype} left out: {error}", flush=True)
                    continue
                checked, wrong = checked + 1, wrong + bool(differing)
                print(f"   {differing} of {given.runs} runs differ from the first", flush=True)
    if not checked:
        raise InputError(f"no shape can run with the configs of --like {given.like}")
    print("some results differ" if wrong else f"{checked} shapes: every result is the same, bit for bit")
    return 1 if wrong else 0


def repeat(op: registry.Op, arguments: tuple[Any, ...], runs: int) -> int:
    """How many of so many further runs give other bits than a first one. The host waits for the device at the end only."""
    dispatch = DISPATCHERS[op.name]
    expected = [_bits(t).clone() for t in _tensors(dispatch(*arguments))]
    device = expected[0].device
    differing = torch.zeros((), dtype=torch.int64, device=device)
    busy = _Busy() if device.type == "cuda" else None
    with torch.no_grad():
        for run in range(runs):
            if busy and run % BUSY_EVERY == 0:
                busy.write()
            got = [_bits(t) for t in _tensors(dispatch(*arguments))]
            differing += torch.stack([(a != b).any() for a, b in zip(got, expected, strict=True)]).any()
            for result in got:
                result.fill_(-1)
            if (run + 1) % TOLD_EVERY == 0 and run + 1 < runs:
                print(f"   {run + 1} runs", flush=True)
    return int(differing)


class _Busy:
    """A stream beside the present one that writes memory, so that programs do not always start in step."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._buffer = torch.empty(BUSY_BYTES, dtype=torch.int8, device="cuda")

    def write(self) -> None:
        with torch.cuda.stream(self._stream):
            self._buffer.zero_()


def _tensors(results: Any) -> list[torch.Tensor]:
    return [results] if isinstance(results, torch.Tensor) else list(results)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as integers: NaN is equal to itself there, and zero is not minus zero."""
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.view(integer)


def _served(op: registry.Op, arguments: tuple[Any, ...]) -> str:
    """The implementation that serves the call, and its kernels with their configs.

    Raises InputError where that is PyTorch, whose bits are not what is asked about.
    """
    choice = choose(op, arguments, False, preferred())
    if choice.implementation.name == "reference":
        why = choice.fallback_reason or "no generated implementation serves tensors of this device unasked"
        raise InputError(
            f"{op.name}: PyTorch would serve this call ({why}); --prefer numpy or triton runs generated code"
        )
    kernels = choice.implementation.describe(arguments)
    return "\n   ".join([choice.implementation.name, *(f"{k.kernel}: {k.config} ({k.provenance})" for k in kernels)])


def _shapes(op: registry.Op, given: argparse.Namespace) -> Iterator[Shape]:
    """What is asked for: given shapes, small ones, or the op's own; with the flags and dtype that were given, if any."""
    usual = op.shapes[-1].dtype if op.shapes else "bf16"
    if given.shapes:
        found: Iterable[Shape] = (Shape("given", dims, usual) for dims in parse.shapes(given.shapes))
    elif given.small:
        if op.dims not in SMALL:
            raise InputError(f"{op.name}: there are no small shapes for dims {', '.join(op.dims)}; give --shapes")
        found = (replace(s, dtype=usual) for s in SMALL[op.dims])
    else:
        found = op.shapes
    flags = parse.flags(given.flags)
    for shape in found:
        yield replace(shape, dtype=given.dtype or shape.dtype, flags={**shape.flags, **flags})


def _like(
    op: registry.Op, shape: Shape, like: str | None, preferred: Name | None, device: str
) -> AbstractContextManager[object]:
    """Within it, the op's kernels run a shape with the configs that they have for another."""
    if like is None:
        return nullcontext()
    target = runtime.runtime(preferred or "triton").target({"x": torch.empty(0, device=device)})
    (dims,) = parse.shapes([like])
    problems = op.instances(dims, shape.dtype, **shape.flags)
    return autotune_db.overlay({p.kernel: configs.choose(p, target)[0] for p in problems})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reproducible",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--op",
        action="append",
        choices=list(registry.OPS),
        help="an op, also a backward; may be given again (default: all)",
    )
    add("--runs", type=int, default=100, metavar="N", help="after the first (default: 100)")
    add("--shapes", action="append", default=[], metavar="DIMS", help="as in kpt-tune; may be given again")
    add("--flags", action="append", default=[], metavar="FLAGS", help="the op's options, as in kpt-tune: causal=true")
    add("--dtype", help="bf16, f16, f32, f8e4m3 (default: the shape's)")
    add("--small", action="store_true", help="small ragged shapes, for compute-sanitizer")
    add("--like", metavar="DIMS", help="take the configs of this shape")
    add("--prefer", choices=get_args(Name), help="who serves the calls")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KptError as error:
        print(f"benchmarks.reproducible: {error}", file=sys.stderr)
        sys.exit(2)
