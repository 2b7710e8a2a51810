"""Jobs for other processes while the program goes on: a crew that a thread looks after. Knows nothing of kernels.

Thread and processes start with the first job. The processes have the lowest priority, and end when there was nothing to do for
a while, and with the program: at its exit, and within a second or so of its being killed (``worker.watch``).
"""

import atexit
import itertools
import pickle
import queue
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from autotune_db.crew import Crew, Reply

IDLE_SECONDS = 60.0
"""How long processes without a job are kept: one takes some seconds to start, and some hundred MB."""

NICE = 19
"""The lowest priority that a process can have: the program goes first."""

_LOOK_SECONDS = 0.05
"""How long a new job waits, at most, while others are being done."""

_END_SECONDS = 2.0

Done = Callable[[Reply], None]
"""Is told of the end of a job, in the thread that looks after the crew. Must not raise."""


@dataclass(frozen=True)
class _Job:
    function: Callable[[bytes], Any]
    argument: object
    seconds: float
    done: Done


class Behind:
    """At most ``size`` processes for jobs that nobody waits for."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def submit(self, function: Callable[[bytes], Any], argument: object, seconds: float, done: Done) -> None:
        """Have ``function(pickled argument)`` run within so many seconds; ``done`` hears of every job once."""
        self._jobs.put(_Job(function, argument, seconds, done))
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="kpt behind", daemon=True)
                self._thread.start()
                atexit.register(self._end)

    def _end(self) -> None:
        self._jobs.put(None)
        assert self._thread is not None
        self._thread.join(_END_SECONDS)

    def _serve(self) -> None:
        crew = Crew(self._size, NICE)
        begun: dict[Hashable, Done] = {}
        numbers = itertools.count()
        while True:
            try:
                job = self._jobs.get(block=not begun, timeout=IDLE_SECONDS)
            except queue.Empty:
                if not begun:
                    crew.close()
                    continue
            else:
                if job is None:
                    crew.close()
                    return
                try:
                    crew.submit(number := next(numbers), job.function, pickle.dumps(job.argument), seconds=job.seconds)
                    begun[number] = job.done
                except Exception as error:  # a kernel of a notebook, say, which no other process can import
                    job.done(Reply(None, None, "error", f"it cannot be sent to another process: {error}"))
                continue
            try:
                replies = crew.collect(_LOOK_SECONDS)
            except Exception as error:  # no memory for a process, no files left
                crew.close()
                replies = [Reply(number, None, "start", f"no process can be started: {error}") for number in begun]
            for reply in replies:
                begun.pop(reply.job)(reply)
