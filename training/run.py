"""One training run: a model, its optimiser, and what is measured of them. Several runs take turns on one device."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from math import cos, pi
from statistics import median

import torch
from torch import Tensor

from kpt.ops.choice import Name, prefer
from training.model import GPT, Ops, Size

BETAS, WEIGHT_DECAY, LARGEST_NORM = (0.9, 0.95), 0.1, 1.0
WARM_UP, LAST_RATE = 0.1, 0.1
"""The learning rate rises over the first tenth of the steps, then falls along a cosine to a tenth of its height."""


@dataclass(frozen=True)
class Place:
    """Where and how precisely: autocast to bfloat16 on a GPU, float32 on a CPU. ``preferred``: who serves kpt's ops."""

    device: str
    preferred: Name | None = None

    @property
    def lowered(self) -> bool:
        return self.device == "cuda"

    def computing(self) -> AbstractContextManager[object]:
        return torch.autocast("cuda", torch.bfloat16) if self.lowered else nullcontext()

    def preferring(self) -> AbstractContextManager[object]:
        return nullcontext() if self.preferred is None else prefer(self.preferred)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Schedule:
    """Steps in all, and the highest learning rate."""

    steps: int
    rate: float

    def at(self, step: int) -> float:
        """The learning rate of a step."""
        warm = max(1, round(WARM_UP * self.steps))
        if step < warm:
            return self.rate * (step + 1) / warm
        done = (step - warm) / max(1, self.steps - warm)
        return self.rate * (LAST_RATE + (1 - LAST_RATE) * (1 + cos(pi * done)) / 2)


@dataclass
class Measured:
    """``losses`` in nats a byte, one a step; ``rates`` in tokens a second, one a turn; ``peak_bytes`` on the GPU, or None."""

    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    held_out: float | None = None

    @property
    def rate(self) -> float:
        """Tokens a second: the median of the turns without the first, which compiles and warms up."""
        return median(self.rates[1:] or self.rates)


class Run:
    """A model in training by AdamW."""

    def __init__(self, ops: Ops, size: Size, seed: int, schedule: Schedule, place: Place) -> None:
        self.model = GPT(size, ops, seed).to(place.device)
        self.place, self.schedule = place, schedule
        self.measured = Measured()
        self._steps = 0
        decayed, free = (
            [p for p in self.model.parameters() if (p.ndim == 2) is matrix] for matrix in (True, False)
        )  # norm weights are not decayed
        self.optimiser = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": free, "weight_decay": 0.0}],
            lr=schedule.rate,
            betas=BETAS,
            fused=place.device == "cuda",
        )

    def turn(self, batches: Tensor) -> None:
        """One step a batch (n, B, S + 1), timed together."""
        with self._memory():
            start = time.perf_counter()
            losses = torch.stack([self._step(batch) for batch in batches])
            self.place.wait()
            seconds = time.perf_counter() - start
        self.measured.losses += losses.tolist()
        self.measured.rates.append(batches.shape[0] * batches.shape[1] * (batches.shape[2] - 1) / seconds)

    def gradients(self, batch: Tensor) -> tuple[float, dict[str, Tensor]]:
        """The loss of a batch and its gradient by every parameter, at the weights as they are; nothing is kept of it."""
        with self.place.preferring():
            with self.place.computing():
                loss = self.model.loss(batch)
            names, parameters = zip(*self.model.named_parameters(), strict=True)
            return loss.item(), dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))

    @torch.no_grad()
    def hold_out(self, batches: Tensor) -> None:
        """The mean loss of text that no step has seen."""
        with self.place.preferring(), self.place.computing():
            self.measured.held_out = torch.stack([self.model.loss(batch) for batch in batches]).mean().item()

    def _step(self, batch: Tensor) -> Tensor:
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.at(self._steps)
        self._steps += 1
        with self.place.preferring():
            with self.place.computing():
                loss = self.model.loss(batch)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_NORM)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return loss.detach()

    @contextmanager
    def _memory(self) -> Iterator[None]:
        """The peak of this run alone: what the others keep on the device is taken off."""
        if self.place.device != "cuda":
            yield
            return
        others = torch.cuda.memory_allocated() - self._kept_bytes()
        torch.cuda.reset_peak_memory_stats()
        yield
        peak = torch.cuda.max_memory_allocated() - others
        self.measured.peak_bytes = max(peak, self.measured.peak_bytes or 0)

    def _kept_bytes(self) -> int:
        """Parameters, buffers and the optimiser's state; gradients do not outlive a step."""
        states = (t for state in self.optimiser.state.values() for t in state.values() if isinstance(t, Tensor))
        return sum(t.nbytes for t in (*self.model.parameters(), *self.model.buffers(), *states) if t.is_cuda)
