"""Processes that work while the program goes on, and end with it, however it ends."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from autotune_db import behind
from autotune_db.behind import Behind
from autotune_db.crew import Crew, Reply
from tests.autotune_db import jobs

PROGRAM = """
import sys, time
from autotune_db.behind import Behind
from tests.autotune_db import jobs
behind = Behind(1)
behind.submit(jobs.note_and_sleep, sys.argv[1], 90.0, print)
{then}
"""


def ask(processes: Behind, function: Any, argument: object = None, seconds: float = 60.0) -> Reply:
    replies: queue.SimpleQueue[Reply] = queue.SimpleQueue()
    processes.submit(function, argument, seconds, replies.put)
    return replies.get(timeout=90.0)


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(what: Any, seconds: float = 60.0) -> bool:
    until = time.monotonic() + seconds
    while not what():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def test_jobs_are_done_at_the_lowest_priority_and_failures_are_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behind, "IDLE_SECONDS", 0.5)
    processes = Behind(1)
    process, nice = ask(processes, jobs.niceness).value
    assert nice == behind.NICE
    assert ask(processes, jobs.refuse).detail == "refused"
    assert ask(processes, jobs.die).failure == "crash"
    assert "cannot be sent" in ask(processes, jobs.niceness, lambda: None).detail
    last, _ = ask(processes, jobs.niceness).value
    assert wait_for(lambda: not is_there(process)) and wait_for(lambda: not is_there(last)), "none is kept without a job"
    assert ask(processes, jobs.niceness).value[0] not in (process, last)
    processes._end()


def test_a_machine_on_which_no_process_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(Crew, "collect", refuse)
        processes = Behind(1)
        reply = ask(processes, jobs.niceness)
    assert reply.failure == "start" and "no memory" in reply.detail
    assert not ask(processes, jobs.niceness).failure, "it is tried again"
    processes._end()


@pytest.mark.parametrize("how", ["killed", "ends", "raises"])
def test_they_end_with_the_program(how: str, tmp_path: Path, repository: Path) -> None:
    file = tmp_path / "process"
    wait = "while not open(sys.argv[1], 'a+').tell(): time.sleep(0.05)\n"
    then = {"killed": "time.sleep(90)", "ends": wait, "raises": f"{wait}raise SystemExit(3)"}[how]
    program = subprocess.Popen([sys.executable, "-c", PROGRAM.format(then=then), str(file)], cwd=repository)
    try:
        assert wait_for(lambda: file.is_file() and file.read_text())
        process = int(file.read_text())
        if how == "killed":
            assert is_there(process)
            program.kill()
        assert program.wait(10) == {"killed": -signal.SIGKILL, "ends": 0, "raises": 3}[how]
        # A program that ends by itself ends them first.
        assert wait_for(lambda: not is_there(process), 5.0 if how == "killed" else 0.2)
    finally:
        program.kill()
        program.wait()
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(file.read_text()), signal.SIGKILL)
