"""The child's side of ``crew``: a process that does one job after another for its parent, until the parent is gone.

Started by ``kpt_dsl.children.command``, not by forking: a child that inherits CUDA or a thread's locks cannot work, and one
that imports the parent's main script would run it again.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from kpt_dsl.errors import KptError

Job = tuple[Callable[..., Any], tuple[Any, ...]]


def serve(fd: int) -> None:
    """Sends ``("ready",)``, then receives jobs and sends ``("done", value)`` or ``("failed", detail, kind, ends)``."""
    # These are for the parent, which still needs what this process knows.
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, signal.SIG_IGN)
    parent = Connection(fd)
    try:
        parent.send(("ready",))
        while True:
            try:
                function, arguments = parent.recv()
            except KptError as error:  # the kernel means something else here than where it was sent from
                parent.send(_failed(error, ends=False))
                continue
            try:
                answer: tuple[Any, ...] = ("done", function(*arguments))
            except KptError as error:
                answer = _failed(error, ends=False)
            except Exception as error:
                # A device that has faulted stays faulted for its process: the parent starts another.
                parent.send(_failed(error, ends=True))
                return
            parent.send(answer)
    except EOFError:
        return
    except Exception as error:
        parent.send(_failed(error, ends=True))


def _failed(error: Exception, ends: bool) -> tuple[str, str, str, bool]:
    return "failed", str(error).strip()[:2000] or type(error).__name__, type(error).__name__, ends


def watch(parent: int) -> None:
    """Ends this process, and all that it started, when its parent is no more, whatever it is doing then."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=look, daemon=True).start()


def quiet(fd: int) -> None:
    """Sends what compilers print to the parent, which keeps the end of it for the case that this process dies."""
    os.dup2(fd, 1)
    os.dup2(fd, 2)
