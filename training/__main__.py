"""Trains one small GPT several times from one seed: with kpt's ops, with PyTorch's, and with PyTorch's rounded at random.

The last show how far apart two correct trainings get by rounding alone; kpt's must stay as near to PyTorch's. Criteria,
curves, tokens/s and peak memory go to training.json, a picture to training.png. Exits with 1 if a criterion is not met.

  python -m training                        the large preset where a CUDA device is, the miniature elsewhere
  python -m training --preset miniature     on a CPU, in seconds: two layers, the generated code as NumPy
  python -m training --prefer triton        on a CPU: the generated Triton source in its interpreter, slower
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from benchmarks import report
from kpt.ops.choice import Name
from kpt_dsl import KptError
from training import plot
from training.comparison import KPT, PRESETS, PYTORCH, Comparison, compare
from training.run import Place


def main(words: list[str] | None = None) -> int:
    given = _parser().parse_args(words)
    gpu = torch.cuda.is_available()
    name = given.preset or ("large" if gpu else "miniature")
    preset = PRESETS[name]
    if given.steps is not None:
        preset = replace(preset, steps=given.steps)
    place = Place("cuda", given.prefer) if gpu else Place("cpu", given.prefer or "numpy")
    print(f"preset {name} on {report.device()}", flush=True)
    found = compare(preset, place, given.seed, given.roundings, lambda line: print(line, flush=True))
    title = f"A GPT of {found.parameters / 1e6:.3g} million parameters, with kpt and with PyTorch"
    path = report.save(given.out, "training", title, found.document(), "training")
    plot.draw(
        path.with_suffix(".png"),
        f"{title} — {report.device()}",
        {name: m.losses for name, m in found.runs.items()},
        found.windows,
    )
    print(_summary(found))
    print(f"{path} {path.with_suffix('.png')}")
    return 1 if found.failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--preset", choices=PRESETS, help="the model and its training (default: by device)")
    add("--steps", type=_positive, metavar="N", help="steps, instead of the preset's")
    add("--seed", type=int, default=0, help="of weights, batches and roundings (default: 0)")
    add("--roundings", type=_positive, default=3, metavar="N", help="PyTorch runs rounded at random (default: 3)")
    add("--prefer", choices=get_args(Name), help="who serves kpt's ops (default: the registry; on a CPU numpy)")
    add(
        "--out", type=Path, default=Path("results"), help="folder for training.json and training.png (default: results)"
    )
    return parser


def _positive(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number, 1 or more")
    return int(word)


def _summary(found: Comparison) -> str:
    lines = []
    for name in (KPT, PYTORCH):
        measured = found.runs[name]
        memory = "" if measured.peak_bytes is None else f", peak memory {measured.peak_bytes / 2**30:.2f} GiB"
        loss = f"loss {measured.losses[0]:.4f} to {measured.losses[-1]:.4f}, held out {measured.held_out:.4f}"
        lines.append(f"{name:<8} {loss}; {measured.rate:,.0f} tokens/s{memory}")
    verdict = "not PyTorch's within noise" if found.failures else "PyTorch's within noise, by every criterion"
    return "\n".join([*lines, f"kpt's training is {verdict}", *(f"  {failure}" for failure in found.failures)])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KptError as error:
        print(f"training: {error}", file=sys.stderr)
        sys.exit(2)
