"""A crew: worker processes that take jobs, where a crash, a hang or an exception costs the one job only.

``concurrent.futures`` loses every job in flight when one process dies and cannot stop one that hangs, so this is our own: a
pipe and a deadline a worker, and with each the group of processes that it started. Knows nothing of kernels.
"""

import contextlib
import os
import pickle
import signal
import socket
import struct
import subprocess
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

from kpt_dsl import children

START_SECONDS = 180.0
"""For a process to come up: Python and this package from a cold disk."""

_LOOK_SECONDS = 0.5
"""How often a busy process is looked at that says nothing."""

_END_SECONDS = 2.0
"""For a process that has closed its pipe to end by itself."""

_SEND_SECONDS = 10
"""For a process to read a job that does not fit into its pipe."""

_MOST_BYTES = 1 << 26
"""Of an answer."""

_WORDS_BYTES = 4000
"""Of what a process prints, how much is kept."""

_LENGTH = struct.Struct("!i")

_PACKAGES = ("kpt_dsl", "autotune_db", "kpt")
"""What a worker has in common with its parent, whatever else is installed."""

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
    """``size`` processes, each started when there is a job for it; ``nice``: how much lower their priority is (0 to 19).

    Functions are found by name in the child: define them in modules. Use as a context manager; leaving it ends the processes.
    """

    def __init__(self, size: int, nice: int = 0) -> None:
        self._nice = nice
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
        until = time.monotonic() + seconds
        while busy := [w for w in self._workers if w and w.task]:
            rest = min(*(w.deadline for w in busy), until, time.monotonic() + _LOOK_SECONDS) - time.monotonic()
            ready = wait([line for w in busy for line in w.lines], timeout=max(0.0, rest))
            replies = [reply for w in busy if (reply := w.reply(w.pipe in ready))]
            if replies or time.monotonic() >= until:
                self._workers = [None if w and w.gone else w for w in self._workers]
                self._hand_out()
                return [reply for reply in replies if reply.job is not _ABANDONED]
        return []

    def drop_waiting(self) -> None:
        """Forget the jobs that no worker has begun."""
        self._waiting.clear()

    def abandon(self) -> list[tuple[Hashable, float]]:
        """Forget all jobs. Workers end what they have begun, and nobody hears of it.

        Gives the jobs that were begun, and how many seconds ago.
        """
        self.drop_waiting()
        begun = []
        for worker in self._workers:
            if worker and worker.task and worker.task.job is not _ABANDONED:
                begun.append((worker.task.job, worker.busy_seconds))
                worker.task = replace(worker.task, job=_ABANDONED)
        return begun

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
            if worker and worker.is_lost():  # while it had nothing to do: no job is to blame
                worker.end()
                worker = None
            worker = worker or _Worker(self._nice)
            self._workers[place] = worker
            worker.take(self._waiting.popleft())


class _Worker:
    """One process, what it is doing, and until when it may. Nothing that it does or leaves undone is waited for without end."""

    def __init__(self, nice: int) -> None:
        mine, theirs = socket.socketpair()
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_SECONDS, 0))
        self._printed, printing = os.pipe()
        os.set_blocking(self._printed, False)
        code = (
            f"import os; os.nice({nice}); from autotune_db.worker import quiet, serve, watch; "
            f"quiet({printing}); watch({os.getpid()}); serve({theirs.fileno()})"
        )
        self._process = subprocess.Popen(
            children.command(code, _PACKAGES),
            pass_fds=(theirs.fileno(), printing),
            env=children.environment(),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # of which all are ended together: a compiler that it started, too
        )
        theirs.close()
        os.close(printing)
        self.pipe = Connection(mine.detach())
        self.lines: list[Connection | int] = [self.pipe, self._printed]
        """What shows when there is something to do: the pipe, and what the process prints until it closes that."""
        self.task: _Task | None = None
        self.deadline = time.monotonic() + START_SECONDS
        self.gone = False
        self._ready = False
        self._received = b""
        self._last_printed = b""

    def take(self, task: _Task) -> None:
        self.task = task
        if self._ready:
            self.deadline = time.monotonic() + task.seconds
        self._send((task.function, task.arguments))

    @property
    def busy_seconds(self) -> float:
        """For how long it has been at its task; 0 before it is ready."""
        assert self.task is not None
        return self.task.seconds - (self.deadline - time.monotonic()) if self._ready else 0.0

    def is_lost(self) -> bool:
        """Whether an idle process has ended or hung up: it has nothing to say."""
        return bool(wait([self.pipe], timeout=0)) or self._has_ended()

    def reply(self, ready: bool) -> Reply | None:
        """The end of the task, if it has come to one; then the worker is free, or gone."""
        assert self.task is not None
        self._listen()
        if not ready:
            if self._has_ended():  # and what it started holds the pipe open
                return self._lost("crash" if self._ready else "start", self._last_words())
            if time.monotonic() < self.deadline:
                return None
            if self._ready:
                return self._lost("timeout", f"no answer in {self.task.seconds:g} s")
            return self._lost("start", f"no start in {START_SECONDS:g} s")
        try:
            chunk = os.read(self.pipe.fileno(), 1 << 20)
            if not chunk:
                raise EOFError
            self._received += chunk
            while (message := self._message()) is not None:
                if message[0] == "ready":
                    self._ready = True
                    self.deadline = time.monotonic() + self.task.seconds
                    continue
                job, self.task = self.task.job, None
                if message[0] == "done":
                    return Reply(job, message[1])
                _, detail, kind, ends = message
                if ends:
                    self.end()
                return Reply(job, None, "error" if self._ready else "start", detail, kind)
        except (EOFError, OSError):
            return self._lost("crash" if self._ready else "start", self._last_words())
        except Exception as error:  # what it sent is no answer
            return self._lost("crash", f"the process sent what is no answer: {error!r}"[:300])
        return None

    def end(self) -> None:
        self.gone = True
        self.task = None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.pipe.close()
        os.close(self._printed)

    def _message(self) -> Any:
        """The next message that is there whole, as ``Connection`` writes them: four bytes of length before each."""
        if len(self._received) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._received)
        if not 0 <= length <= _MOST_BYTES:
            raise ValueError(f"{length} bytes")
        end = _LENGTH.size + length
        if len(self._received) < end:
            return None
        message, self._received = pickle.loads(self._received[_LENGTH.size : end]), self._received[end:]
        return message

    def _listen(self) -> None:
        """Take what the process has printed, and keep the end of it."""
        with contextlib.suppress(BlockingIOError):
            while heard := os.read(self._printed, 1 << 16):
                self._last_printed = (self._last_printed + heard)[-_WORDS_BYTES:]
                if len(heard) < 1 << 16:
                    return
            self.lines = [self.pipe]

    def _lost(self, failure: Failure, detail: str) -> Reply:
        assert self.task is not None
        job = self.task.job
        self.end()
        return Reply(job, None, failure, detail)

    def _has_ended(self) -> bool:
        """Whether the process is no more. Its number stays taken until it is waited for, and with it that of its group."""
        return self._end(os.WNOHANG) is not None

    def _end(self, how: int) -> tuple[int, int] | None:
        """How the process ended, as ``waitid`` says it: code and status; None for one that has not."""
        try:
            found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | how)
        except ChildProcessError:  # a program that ignores SIGCHLD is not told
            return os.CLD_EXITED, 0
        return (found.si_code, found.si_status) if found else None

    def _last_words(self) -> str:
        until = time.monotonic() + _END_SECONDS
        while not self._has_ended():
            if time.monotonic() > until:
                return "the process closed its pipe and went on"
            time.sleep(0.01)
        self._listen()
        code, status = self._end(0) or (os.CLD_EXITED, 0)
        lines = self._last_printed.decode(errors="replace").strip().splitlines()
        died = f"exit status {status}" if code == os.CLD_EXITED else f"signal {status}"
        return f"the process ended with {died}" + (f": {lines[-1][:300]}" if lines else "")

    def _send(self, message: Any) -> None:
        # A process that is dead, or does not read, shows itself when its answer is awaited.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
            self.pipe.send(message)
