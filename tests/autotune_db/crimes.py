"""What candidates do to the process that tries them; children import these by name."""

import ctypes
import os
import time
from pathlib import Path

from kpt_dsl.errors import CompileError


def add(a: int, b: int) -> int:
    return a + b


def crash() -> None:
    print("the last words of a compiler", flush=True)
    ctypes.string_at(0)


def leave() -> None:
    os._exit(3)


def hang() -> None:
    time.sleep(600)


def refuse() -> None:
    raise CompileError("it does not fit")


def fault() -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def pid() -> int:
    return os.getpid()


class State:
    """A state that lives as long as its process."""

    def __init__(self, start: int) -> None:
        self.count = start

    def next(self) -> int:
        self.count += 1
        return self.count

    def crash(self) -> None:
        crash()


class BrokenState:
    def __init__(self) -> None:
        raise ValueError("no device")

    def next(self) -> int:
        return 0


def meet(folder: str, number: int, together: int) -> int:
    """Ends only when so many processes are here at the same time."""
    (Path(folder) / str(number)).write_text("")
    until = time.monotonic() + 30
    while len(list(Path(folder).iterdir())) < together:
        if time.monotonic() > until:
            raise TimeoutError("nobody came")
        time.sleep(0.01)
    return os.getpid()
