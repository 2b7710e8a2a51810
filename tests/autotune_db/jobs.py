"""What processes of tests are asked to do; they find it by its name."""

import os
import pickle
import time
from pathlib import Path


def niceness(_: bytes) -> tuple[int, int]:
    return os.getpid(), os.nice(0)


def refuse(_: bytes) -> None:
    raise ValueError("refused")


def die(_: bytes) -> None:
    os._exit(3)


def note_and_sleep(pickled: bytes) -> None:
    """Writes this process's number to a file, and takes its time."""
    Path(pickle.loads(pickled)).write_text(str(os.getpid()))
    time.sleep(60)
