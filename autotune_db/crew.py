"""A crew: worker processes that take jobs, where a crash, a hang or an exception costs the one job only.

``concurrent.futures`` loses every job in flight when one process dies and cannot stop one that hangs, so this is our own: a
pipe and a deadline a worker. Knows nothing of kernels.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, Any, Literal

START_SECONDS = 180.0
"""For a process to come up: Python and this package from a cold disk."""

Failure = Literal["", "error", "crash", "timeout", "start"]


@dataclass(frozen=True)
class Reply:
    """What became of a job. ``kind`` is the name of the exception of an ``error``; ``start``: the process never got ready."""

    job: Hashable
    value: Any = None
    failure: Failure = ""
    detail: str = ""
    kind: str = ""


_ABANDONED = object()
"""What stands for a job that nobody waits for any more."""


@dataclass(frozen=True)
class _Task:
    job: Hashable
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    seconds: float


class Crew:
    """``size`` processes, each started when there is a job for it.

    Functions are found by name in the child: define them in modules. Use as a context manager; leaving it ends the processes.
    """

    def __init__(self, size: int) -> None:
        self._waiting: deque[_Task] = deque()
        self._workers: list[_Worker | None] = [None] * size

    def submit(self, job: Hashable, function: Callable[..., Any], *arguments: Any, seconds: float) -> None:
        """Queue a job; it may run for so many seconds once a worker has begun it."""
        self._waiting.append(_Task(job, function, arguments, seconds))

    @property
    def unfinished(self) -> int:
        """Jobs waiting or running."""
        return len(self._waiting) + sum(1 for w in self._workers if w and w.task and w.task.job is not _ABANDONED)

    @property
    def size(self) -> int:
        return len(self._workers)

    def collect(self, seconds: float) -> list[Reply]:
        """Hand out jobs and wait up to so many seconds for the first that ends; every reply there is by then, maybe none."""
        self._hand_out()
        busy = [w for w in self._workers if w and w.task]
        if not busy:
            return []
        until = min(*(w.deadline for w in busy), time.monotonic() + seconds)
        ready = wait([w.pipe for w in busy], timeout=max(0.0, until - time.monotonic()))
        replies = [reply for w in busy if (reply := w.reply(w.pipe in ready))]
        self._workers = [None if w and w.gone else w for w in self._workers]
        self._hand_out()
        return [reply for reply in replies if reply.job is not _ABANDONED]

    def drop_waiting(self) -> None:
        """Forget the jobs that no worker has begun."""
        self._waiting.clear()

    def abandon(self) -> None:
        """Forget all jobs. Workers end what they have begun, and nobody hears of it."""
        self.drop_waiting()
        for worker in self._workers:
            if worker and worker.task:
                worker.task = replace(worker.task, job=_ABANDONED)

    def close(self) -> None:
        """End every process."""
        for worker in self._workers:
            if worker:
                worker.end()
        self._workers = [None] * len(self._workers)
        self._waiting.clear()

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hand_out(self) -> None:
        for place, worker in enumerate(self._workers):
            if not self._waiting:
                return
            if worker and worker.task:
                continue
            worker = worker or _Worker()
            self._workers[place] = worker
            worker.take(self._waiting.popleft())


class _Worker:
    """One process, what it is doing, and until when it may."""

    def __init__(self) -> None:
        mine, theirs = socket.socketpair()
        self._printed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `end`)
        code = f"from autotune_db.worker import quiet, serve; quiet({self._printed.fileno()}); serve({theirs.fileno()})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=(theirs.fileno(), self._printed.fileno()),
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)},
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self.pipe = Connection(mine.detach())
        self.task: _Task | None = None
        self.deadline = time.monotonic() + START_SECONDS
        self.gone = False
        self._ready = False

    def take(self, task: _Task) -> None:
        self.task = task
        if self._ready:
            self.deadline = time.monotonic() + task.seconds
        self._send((task.function, task.arguments))

    def reply(self, ready: bool) -> Reply | None:
        """The end of the task, if it has come to one; then the worker is free, or gone."""
        assert self.task is not None
        if not ready:
            if time.monotonic() < self.deadline:
                return None
            if self._ready:
                return self._lost("timeout", f"no answer in {self.task.seconds:g} s")
            return self._lost("start", f"no start in {START_SECONDS:g} s")
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            self._process.wait()
            return self._lost("crash" if self._ready else "start", self._last_words())
        if message[0] == "ready":
            self._ready = True
            self.deadline = time.monotonic() + self.task.seconds
            return None
        job, self.task = self.task.job, None
        if message[0] == "done":
            return Reply(job, message[1])
        _, detail, kind, ends = message
        if ends:
            self.end()
        return Reply(job, None, "error" if self._ready else "start", detail, kind)

    def end(self) -> None:
        self.gone = True
        self.task = None
        self._process.kill()
        self._process.wait()
        self.pipe.close()
        self._printed.close()

    def _lost(self, failure: Failure, detail: str) -> Reply:
        assert self.task is not None
        job = self.task.job
        self.end()
        return Reply(job, None, failure, detail)

    def _last_words(self) -> str:
        self._printed.seek(0)
        lines = self._printed.read()[-4000:].decode(errors="replace").strip().splitlines()
        code = self._process.returncode
        died = f"signal {-code}" if code < 0 else f"exit status {code}"
        return f"the process ended with {died}" + (f": {lines[-1][:300]}" if lines else "")

    def _send(self, message: Any) -> None:
        # A process that is already dead shows itself when its answer is read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send(message)
