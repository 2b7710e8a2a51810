"""Trains the same model with kpt, with PyTorch and with PyTorch rounded otherwise: same weights, same batches, in turns."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

import kpt.ops
from training import ops, text
from training.model import GPT, Size
from training.run import Measured, Place, Run, Schedule
from training.verdict import CRITERIA, Gradient, Window, unserved, windows

BACKWARDS = tuple(f"{op}_backward" for op in ("rms_norm", "gated_act", "rotary", "flash_attention", "cross_entropy"))
"""Ops without whose generated kernels a training would not be kpt's."""

KPT, PYTORCH = "kpt", "PyTorch"

HELD_OUT_BATCHES = 4


@dataclass(frozen=True)
class Preset:
    """A model, ``batch`` sequences a step, the highest learning rate, the texts to learn, and how many steps a turn has."""

    size: Size
    batch: int
    steps: int
    rate: float
    texts: tuple[str, ...]
    turn: int


PRESETS = {
    "large": Preset(Size(12, 1024, 16, 4, 2816, 2048), 8, 200, 3e-4, ("topics", "docstrings"), 10),
    "miniature": Preset(Size(2, 64, 4, 2, 160, 64), 2, 8, 1e-3, ("topics",), 1),
}


@dataclass(frozen=True)
class Comparison:
    """What was trained, what was measured of each run, and how kpt's was judged."""

    preset: Preset
    parameters: int
    source: str
    digest: str
    runs: dict[str, Measured]
    gradients: list[Gradient]
    windows: list[Window]
    served: dict[str, dict[str, int]]

    @property
    def failures(self) -> list[str]:
        """What speaks against kpt's run, in words; nothing if it is PyTorch's within noise."""
        return [
            *(
                f"curves: steps {w.first} to {w.last - 1} differ by {w.difference:.2e}, allowed is {w.allowed:.2e}"
                for w in self.windows
                if not w.passed
            ),
            *(
                f"gradients: the error of {g.parameter} is {g.kpt:.2e}, PyTorch's {g.pytorch:.2e}"
                for g in self.gradients
                if not g.passed
            ),
            *(f"served: {problem}" for problem in unserved(self.served, BACKWARDS)),
        ]

    def document(self) -> dict[str, object]:
        """Everything, for JSON."""
        tokens = self.preset.batch * self.preset.size.length
        return {
            "preset": asdict(self.preset),
            "parameters": self.parameters,
            "text": {"source": self.source, "sha256": self.digest},
            "criteria": CRITERIA,
            "within noise": not self.failures,
            "failures": self.failures,
            "windows": [asdict(w) for w in self.windows],
            "gradients": [asdict(g) for g in self.gradients],
            "served": self.served,
            "tokens a step": tokens,
            "runs": {
                name: {
                    "tokens a second": round(m.rate),
                    "peak bytes": m.peak_bytes,
                    "held-out loss": m.held_out,
                    "losses": m.losses,
                }
                for name, m in self.runs.items()
            },
        }


def compare(preset: Preset, place: Place, seed: int, roundings: int, tell: Callable[[str], None]) -> Comparison:
    """Trains ``roundings`` + 2 models. ``tell`` gets a line now and then."""
    read = text.read(preset.texts)
    length = preset.size.length
    batches = text.batches(read.learnt, preset.steps, preset.batch, length, seed).to(place.device)
    held_out = text.batches(read.held_out, HELD_OUT_BATCHES, preset.batch, length, seed).to(place.device)
    before = _served()

    pytorch = ops.of_pytorch()
    computing = {KPT: ops.of_kpt(), PYTORCH: pytorch} | {
        f"{PYTORCH}, rounding {n}": ops.rounded_at_random(pytorch, seed + n, place.device)
        for n in range(1, roundings + 1)
    }
    schedule = Schedule(preset.steps, preset.rate)
    runs = {name: Run(chosen, preset.size, seed, schedule, place) for name, chosen in computing.items()}
    parameters = sum(p.numel() for p in runs[KPT].model.parameters())
    tell(f"{parameters:,} parameters, {preset.steps} steps of {preset.batch} x {length} bytes of {read.source}")

    gradients = _gradients(runs[KPT], runs[PYTORCH], preset.size, seed, batches[0])
    worst = max(gradients, key=lambda g: g.kpt / g.pytorch if g.pytorch else 0.0)
    tell(
        f"gradients before the first step: worst {worst.parameter}, error {worst.kpt:.2e}, PyTorch's {worst.pytorch:.2e}"
    )

    for turn in batches.split(preset.turn):
        for run in runs.values():
            run.turn(turn)
        tell(_line(runs, preset.turn))
    for run in runs.values():
        run.hold_out(held_out)

    measured = {name: run.measured for name, run in runs.items()}
    curves = [m.losses for name, m in measured.items() if name != KPT]
    judged = windows(measured[KPT].losses, curves)
    return Comparison(preset, parameters, read.source, read.digest, measured, gradients, judged, _since(before))


def _gradients(kpt_run: Run, pytorch_run: Run, size: Size, seed: int, batch: Tensor) -> list[Gradient]:
    """Errors at the starting weights, against PyTorch in float32 for bfloat16, in float64 for float32.

    The reference goes through the batch one sequence at a time, since in its precision PyTorch may keep whole score matrices.
    """
    place = pytorch_run.place
    model = GPT(size, ops.of_pytorch(), seed).to(place.device, torch.float32 if place.lowered else torch.float64)
    for sequence in batch:
        (model.loss(sequence[None]) / batch.shape[0]).backward()
    exact = {name: p.grad for name, p in model.named_parameters()}
    _, one = kpt_run.gradients(batch)
    _, other = pytorch_run.gradients(batch)
    return [Gradient(name, _error(one[name], g), _error(other[name], g)) for name, g in exact.items() if g is not None]


def _error(gradient: Tensor, exact: Tensor) -> float:
    wide = exact.double()
    return float((gradient.double() - wide).norm() / wide.norm())


def _served() -> dict[str, dict[str, int]]:
    """Calls of every op by implementation; only the model with kpt's ops makes any."""
    return {op: counts["served"] for op, counts in kpt.ops.counters().items()}


def _since(before: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    found = {}
    for op, calls in _served().items():
        new = {name: n - before[op].get(name, 0) for name, n in calls.items()}
        if any(new.values()):
            found[op] = {name: n for name, n in new.items() if n}
    return found


def _line(runs: dict[str, Run], last: int) -> str:
    """Means over the last turn."""

    def mean(name: str) -> float:
        losses = runs[name].measured.losses[-last:]
        return sum(losses) / len(losses)

    base, difference = mean(PYTORCH), mean(KPT) - mean(PYTORCH)
    noise = max((abs(mean(name) - base) for name in runs if name not in (KPT, PYTORCH)), default=0.0)
    rates = ", ".join(f"{name} {runs[name].measured.rates[-1]:,.0f}" for name in (KPT, PYTORCH))
    done, steps = len(runs[KPT].measured.losses), runs[KPT].schedule.steps
    return f"step {done:>4}/{steps}  loss {base:.4f}  kpt {difference:+.1e}  noise {noise:.1e}  tokens/s: {rates}"
