"""A candidate that crashes, hangs or raises costs its own job only."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import pytest

from autotune_db import crew
from autotune_db.crew import Crew, Reply
from tests.autotune_db import crimes


def done(workers: Crew, seconds: float = 60.0) -> dict[Hashable, Reply]:
    """Every reply, by job."""
    found: dict[Hashable, Reply] = {}
    until = time.monotonic() + seconds
    while workers.unfinished:
        assert time.monotonic() < until
        for reply in workers.collect(1.0):
            assert reply.job not in found
            found[reply.job] = reply
    return found


def test_jobs_are_done_and_answered() -> None:
    with Crew(2) as workers:
        for i in range(10):
            workers.submit(i, crimes.add, i, 1, seconds=30)
        assert {job: reply.value for job, reply in done(workers).items()} == {i: i + 1 for i in range(10)}


def test_workers_work_at_the_same_time(tmp_path: Path) -> None:
    with Crew(3) as workers:
        for i in range(3):
            workers.submit(i, crimes.meet, str(tmp_path), i, 3, seconds=30)
        replies = done(workers)
    assert all(not reply.failure for reply in replies.values())
    assert len({reply.value for reply in replies.values()} | {os.getpid()}) == 4


@pytest.mark.parametrize(
    ("crime", "failure", "told"),
    [
        (crimes.crash, "crash", "signal 11: the last words of a compiler"),
        (crimes.leave, "crash", "exit status 3"),
        (crimes.hang, "timeout", "no answer in 0.3 s"),
        (crimes.refuse, "error", "it does not fit"),
        (crimes.fault, "error", "illegal memory access"),
    ],
)
def test_a_crime_costs_one_job(crime: Callable[[], Any], failure: str, told: str) -> None:
    with Crew(1) as workers:
        workers.submit("before", crimes.add, 1, 1, seconds=30)
        workers.submit("crime", crime, seconds=0.3 if crime is crimes.hang else 30)
        for i in range(3):
            workers.submit(i, crimes.add, i, i, seconds=30)
        replies = done(workers)
    assert replies["crime"].failure == failure
    assert told in replies["crime"].detail
    assert [replies[job].value for job in ("before", 0, 1, 2)] == [2, 0, 2, 4]


def test_a_crime_does_not_touch_the_jobs_of_others(tmp_path: Path) -> None:
    with Crew(2) as workers:
        workers.submit("crash", crimes.crash, seconds=30)
        for i in range(20):
            workers.submit(i, crimes.add, i, 0, seconds=30)
        replies = done(workers)
    assert replies.pop("crash").failure == "crash"
    assert {reply.value for reply in replies.values()} == set(range(20))


def test_the_kind_of_an_error_is_told() -> None:
    with Crew(1) as workers:
        workers.submit("refuse", crimes.refuse, seconds=30)
        assert done(workers)["refuse"].kind == "CompileError"


def test_a_refusal_keeps_the_process_and_a_fault_does_not() -> None:
    with Crew(1) as workers:
        for job, crime in enumerate((crimes.pid, crimes.refuse, crimes.pid, crimes.fault, crimes.pid)):
            workers.submit(job, crime, seconds=30)
        replies = done(workers)
    assert replies[0].value == replies[2].value != replies[4].value


def test_a_process_that_does_not_start_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "START_SECONDS", 0.0)
    with Crew(1) as workers:
        workers.submit("job", crimes.add, 1, 1, seconds=30)
        assert done(workers)["job"].failure == "start"


def test_leaving_ends_the_processes() -> None:
    with Crew(1) as workers:
        workers.submit("pid", crimes.pid, seconds=30)
        child = done(workers)["pid"].value
        workers.submit("hang", crimes.hang, seconds=600)
        workers.collect(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_waiting_jobs_can_be_dropped() -> None:
    with Crew(1) as workers:
        workers.submit(0, crimes.add, 1, 1, seconds=30)
        workers.collect(0.0)
        workers.submit(1, crimes.add, 1, 1, seconds=30)
        workers.drop_waiting()
        assert set(done(workers)) == {0}


def test_nobody_hears_of_abandoned_jobs(tmp_path: Path) -> None:
    """Their worker goes on to the next job when it is done with them."""
    with Crew(1) as workers:
        workers.submit("pid", crimes.pid, seconds=30)
        child = done(workers)["pid"].value
        workers.submit("begun", crimes.nap, 0.5, seconds=30)
        workers.submit("waiting", crimes.leave, seconds=30)
        workers.collect(0.0)
        workers.abandon()
        assert workers.unfinished == 0
        workers.submit("next", crimes.pid, seconds=30)
        assert {job: reply.value for job, reply in done(workers).items()} == {"next": child}


# ------------------------------------------------------------------ what workers leave behind, or hold on to
def test_a_worker_that_hangs_up_and_lives_is_ended() -> None:
    with Crew(1) as workers:
        workers.submit("hangs up", crimes.hang_up, seconds=30)
        workers.submit("next", crimes.add, 1, 1, seconds=30)
        replies = done(workers)
    assert replies["hangs up"].failure == "crash"
    assert "closed its pipe and went on" in replies["hangs up"].detail
    assert replies["next"].value == 2


def test_a_worker_that_dies_while_what_it_started_holds_its_pipe_is_noticed() -> None:
    with Crew(1) as workers:
        workers.submit("leaves", crimes.leave_a_child, seconds=600)
        assert done(workers, 30)["leaves"].failure == "crash"


@pytest.mark.parametrize("garbage", [b"\0\0\0\5hello", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\0\0\1\0half"])
def test_an_answer_that_is_none_hangs_nobody(garbage: bytes) -> None:
    with Crew(1) as workers:
        workers.submit("before", crimes.add, 1, 1, seconds=30)
        workers.submit("garbage", crimes.send, garbage, seconds=1)
        workers.submit("next", crimes.add, 1, 1, seconds=30)
        replies = done(workers)
    assert replies["garbage"].failure in ("crash", "timeout")
    assert (replies["before"].value, replies["next"].value) == (2, 2)


def test_what_a_worker_prints_is_bounded_and_does_not_hold_it_up() -> None:
    with Crew(1) as workers:
        workers.submit("prints", crimes.print_and_crash, 20_000_000, seconds=120)
        reply = done(workers, 120)["prints"]
    assert reply.failure == "crash"
    assert reply.detail.endswith("the last words of a compiler")
    assert len(reply.detail) < 500


def test_what_a_worker_started_ends_with_it(tmp_path: Path) -> None:
    for crime, seconds in ((crimes.start_and_hang, 1.0), (crimes.start_and_crash, 30.0), (crimes.start_and_wait, 30.0)):
        file = tmp_path / crime.__name__
        with Crew(1) as workers:
            workers.submit("starts", crime, str(file), seconds=seconds)
            done(workers)
        dies(int(file.read_text()))


def test_a_parent_that_is_killed_leaves_nobody(tmp_path: Path) -> None:
    """Neither the worker, whatever it is doing, nor what it started."""
    file = tmp_path / "pid"
    code = (
        "from autotune_db.crew import Crew\nfrom tests.autotune_db import crimes\n"
        f"workers = Crew(1)\nworkers.submit('starts', crimes.start_and_hang, {str(file)!r}, seconds=600)\n"
        "while True: workers.collect(1.0)"
    )
    path = os.pathsep.join(p or "." for p in sys.path)
    parent = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path})
    until = time.monotonic() + 60
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < until and parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    dies(int(file.read_text()))


def test_a_worker_that_died_with_nothing_to_do_costs_no_job() -> None:
    with Crew(1) as workers:
        workers.submit("pid", crimes.pid, seconds=30)
        child = done(workers)["pid"].value
        os.kill(child, signal.SIGKILL)
        time.sleep(0.2)
        workers.submit("next", crimes.add, 1, 1, seconds=30)
        assert done(workers)["next"].value == 2


def dies(process: int) -> None:
    """In a moment. One that is not waited for by whoever has inherited it is dead all the same."""
    until = time.monotonic() + 20
    with contextlib.suppress(OSError):
        while Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < until
            time.sleep(0.05)
