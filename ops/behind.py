"""Calls that PyTorch serves while another process compiles for kpt: what is asked for, and what becomes of it.

``Dispatcher`` asks for a kind of call whose launch raised ``NotMadeError``, and gets a ``Pending``. A thread hears of the other
process, loads what it made, and has the dispatcher forget how such calls were served: the next one finds its launches. One that
was captured in a CUDA graph stays what it is.
"""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any

import torch

from autotune_db import handover, overlays
from autotune_db.behind import Behind
from autotune_db.crew import Reply
from autotune_db.jobs import COMPILE_SECONDS
from autotune_db.location import VARIABLE as DATABASE
from kpt.ops import compiling
from kpt.ops.backends import kin
from kpt.ops.capture import is_capturing, relaxed
from kpt.ops.compile_job import Answer, Request, Surroundings, make
from kpt.ops.eager import below_autograd, tensors_in
from kpt.ops.fingerprint import fingerprint
from kpt.ops.registry import Implementation, Missing, Op, Ready
from kpt_dsl.build import cache
from kpt_dsl.configs import generation
from kpt_dsl.runtime import triton
from kpt_dsl.runtime.precision import float32_products

log = logging.getLogger("kpt")

COMPILING = "compiling in another process"
"""The reason that such calls are counted under."""

_KEPT = 4096
"""Classes of calls that are remembered as asked for."""

_MOST_PROCESSES = 4

_SWITCH_SECONDS = 0.0005
"""How long a call waits for the interpreter, at most, while a launch is taken over; 0.005 by default."""


class Pending:
    """A class of calls that another process was asked to compile for, at the time ``since``.

    ``drop``: has the dispatcher forget how calls are served that wait for this. ``failure``: why there will be no binary.
    """

    def __init__(self, name: str, missing: Missing, drop: Callable[["Pending"], None]) -> None:
        self.name = name
        self.missing = missing
        self.drop = drop
        self.since = time.monotonic()
        self.failure = ""
        self.is_over = False

    @property
    def reason(self) -> str | None:
        """Why such a call is PyTorch's now; None where it need not be any more."""
        if self.failure:
            return f"{COMPILING} failed: {self.failure}"
        return None if self.is_over else COMPILING

    def __str__(self) -> str:
        if self.reason == COMPILING:
            return f"{COMPILING} since {time.monotonic() - self.since:.1f} s; PyTorch serves"
        return self.reason or "compiled"


class _Asked:
    """All that was asked for by this process; a child that is forked off has its own."""

    def __init__(self) -> None:
        processes = max(1, min(_MOST_PROCESSES, (os.cpu_count() or 1) // 2))
        self.behind = Behind(processes)
        self.classes: dict[Hashable, Pending] = {}
        self.lock = threading.Lock()


_asked = _Asked()


def ask(
    op: Op, served: Implementation, arguments: tuple[Any, ...], needs_grad: bool, drop: Callable[[Pending], None]
) -> Pending:
    """Have another process make what a call misses, unless one was asked already.

    What looks into a call may copy tensors: of one that is being captured nothing is asked.
    """
    asked, key = _asked, _key(op, arguments, needs_grad)
    pending = asked.classes.get(key)
    if pending is not None and pending.reason is not None:
        return pending
    missing = Missing() if is_capturing() else _look(op, served, arguments, needs_grad)
    new = Pending(f"{op.name}({_in_words(arguments)})", missing, drop)
    if not (missing.instances or missing.ways):  # or taken over a moment ago
        new.is_over = True
        return new
    with asked.lock:
        again = asked.classes.get(key)
        if again is not None and again.reason is not None:
            return again
        asked.classes.pop(key, None)
        while len(asked.classes) >= _KEPT:
            asked.classes.pop(next(iter(asked.classes)))
        asked.classes[key] = new
    if pending is not None and set(missing.instances) & set(pending.missing.instances):
        _fail(new, "what was made does not serve the call that it was made for")
        return new
    log.warning("%s compiles in another process; PyTorch serves until then", new.name)
    device = tensors_in(arguments)[0].device
    request = Request(
        op.name, tuple(map(_without_values, arguments)), needs_grad, missing.instances, [w.instances for w in missing.ways],
        triton.present(device.index or 0).name, _surroundings(),
    )  # fmt: skip
    kernels = len(missing.instances) + sum(map(len, request.ways)) + len(op.kernels)
    done = partial(_done, new, device.index or 0, triton.circumstances())
    asked.behind.submit(make, request, COMPILE_SECONDS * kernels, done)
    return new


def state(op: Op, served: Implementation, arguments: tuple[Any, ...], needs_grad: bool) -> str | None:
    """Why PyTorch would serve a call now, in words; None where nothing has to be compiled for it. Asks nobody to."""
    arguments = tuple([a.as_subclass(torch.Tensor) if isinstance(a, torch.Tensor) else a for a in arguments])
    missing = _look(op, served, arguments, needs_grad)
    if not (missing.instances or missing.ways):
        return None
    pending = _asked.classes.get(_key(op, arguments, needs_grad))
    return "not compiled, which its first call has another process do" if pending is None else str(pending)


def _key(op: Op, arguments: tuple[Any, ...], needs_grad: bool) -> Hashable:
    return kin(op.name, fingerprint(arguments)), needs_grad, triton.circumstances()


def _look(op: Op, served: Implementation, arguments: tuple[Any, ...], needs_grad: bool) -> Missing:
    def follow(ready: Ready) -> None:
        if not needs_grad:
            ready(*arguments)
            return
        assert op.gradient is not None
        given = (arguments[position] for position in op.differentiable)
        needed = tuple(isinstance(a, torch.Tensor) and a.requires_grad for a in given)
        op.gradient.forward(ready, needed, *arguments)

    with below_autograd():
        return served.missing(arguments, follow)


def _done(pending: Pending, device: int, circumstances: tuple[Hashable, ...], reply: Reply) -> None:
    """Take over what was made; runs in the thread that looks after the other processes."""
    try:
        if reply.failure:
            _fail(pending, reply.detail or reply.failure)
            return
        answer: Answer = reply.value
        with _quick_to_switch(), relaxed():
            for made in answer.made:
                handover.take(made, device, circumstances)
        for ways, number in zip(pending.missing.ways, answer.quickest, strict=True):
            ways.note[ways.names] = number
        pending.is_over = True
    except Exception as error:  # of the driver, say: no thread may end of it
        _fail(pending, f"{type(error).__name__}: {error}")
    finally:
        pending.drop(pending)


def _fail(pending: Pending, why: str) -> None:
    pending.failure = why.strip().partition("\n")[0]


@contextlib.contextmanager
def _quick_to_switch() -> Iterator[None]:
    """Other threads of Python get their turn sooner within the block."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, _SWITCH_SECONDS))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _surroundings() -> Surroundings:
    variables = tuple((name, os.environ.get(name)) for name in (DATABASE, cache.VARIABLE))
    return Surroundings(variables, generation(), overlays.overlaying(), float32_products(), cache.binaries())


def _without_values(value: Any) -> Any:
    """A tensor as one of the meta device, as it lies in memory."""
    if not isinstance(value, torch.Tensor):
        return value
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return made.requires_grad_(value.requires_grad)


def _in_words(arguments: tuple[Any, ...]) -> str:
    return ", ".join(f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in tensors_in(arguments))


def _wait_again() -> None:
    """Calls wait from now on: those that PyTorch serves for a while, or for good, are tried again."""
    for pending in list(_asked.classes.values()):
        if pending.reason is not None:
            pending.drop(pending)


def _start_anew() -> None:
    """In a child that was forked off: the thread, the processes and their pipes are its parent's."""
    global _asked
    theirs, _asked = _asked, _Asked()
    for pending in theirs.classes.values():
        pending.is_over = True
        pending.drop(pending)


compiling.told.append(_wait_again)
os.register_at_fork(after_in_child=_start_anew)
