"""What candidates do to the process that tries them; children import these by name."""

import ctypes
import math
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

from autotune_db.bench import Bench
from kpt_dsl import targets
from kpt_dsl.build import Report
from kpt_dsl.build.tpu_bundles import BELIEVED
from kpt_dsl.errors import CompileError, MissingPackageError
from kpt_dsl.instance import Instance
from kpt_dsl.space import Config


def add(a: int, b: int) -> int:
    return a + b


def pressed(*_: object) -> NoReturn:
    """Ctrl-C, at once."""
    raise KeyboardInterrupt


def crash() -> None:
    print("the last words of a compiler", flush=True)
    ctypes.string_at(0)


def leave() -> None:
    os._exit(3)


def hang() -> None:
    time.sleep(600)


def nap(seconds: float) -> None:
    time.sleep(seconds)


def _pipe() -> int:
    """The descriptor of this process's pipe to its parent: its only socket."""
    there = (fd for fd in range(3, 64) if Path(f"/proc/self/fd/{fd}").exists())
    return next(fd for fd in there if stat.S_ISSOCK(os.fstat(fd).st_mode))


def hang_up() -> None:
    os.close(_pipe())
    time.sleep(600)


def send(garbage: bytes) -> None:
    os.write(_pipe(), garbage)
    time.sleep(600)


def leave_a_child() -> None:
    if os.fork() == 0:
        time.sleep(600)
    os._exit(3)


def print_and_crash(length: int) -> None:
    sys.stderr.write(("x" * 99 + "\n") * (length // 100))
    crash()


def start_and_wait(file: str) -> None:
    Path(file).write_text(str(subprocess.Popen(["sleep", "600"]).pid))


def start_and_hang(file: str) -> None:
    start_and_wait(file)
    hang()


def start_and_crash(file: str) -> None:
    start_and_wait(file)
    crash()


def refuse() -> None:
    raise CompileError("it does not fit")


def fault() -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def pid() -> int:
    return os.getpid()


def meet(folder: str, number: int, together: int) -> int:
    """Ends only when so many processes are here at the same time."""
    (Path(folder) / str(number)).write_text("")
    until = time.monotonic() + 30
    while len(list(Path(folder).iterdir())) < together:
        if time.monotonic() > until:
            raise TimeoutError("nobody came")
        time.sleep(0.01)
    return os.getpid()


# ------------------------------------------------------------------ benches that make up times, by the block size
CRASHES, HANGS, FAULTS, LIES, FASTEST = 16, 32, 64, 128, 256


class MadeUpBench(Bench):
    """One candidate takes half the time of all others. Nothing runs, so that a test of what follows is quick."""

    def __init__(self, instance: Instance, target: str, device: int, seed: int) -> None:
        pass

    def time(self, config: Config, reference: Config | None) -> tuple[float, float | None]:
        return self._cost(config), None if reference is None else self._cost(reference)

    def compare(self, configs: list[Config], seconds: float) -> list[float]:
        return list(map(self._cost, configs))

    def wrong(self, config: Config) -> str:
        return ""

    def _cost(self, config: Config) -> float:
        return 50.0 if config["block_M"] == FASTEST else 100.0


class CriminalBench(MadeUpBench):
    """Some candidates crash, hang or exhaust memory, and one is fast but wrong."""

    def time(self, config: Config, reference: Config | None) -> tuple[float, float | None]:
        block = config["block_M"]
        if block == CRASHES:
            crash()
        if block == HANGS:
            hang()
        if block == FAULTS:
            raise RuntimeError("CUDA out of memory. Tried to allocate 3 GiB")
        return super().time(config, reference)

    def wrong(self, config: Config) -> str:
        return "y at 0:1: error 1 against float64" if config["block_M"] == LIES else ""

    def _cost(self, config: Config) -> float:
        return 1.0 if config["block_M"] == LIES else super()._cost(config)


class WorseOnSecondSight(MadeUpBench):
    """What looked fast in the search is slow in the final round."""

    def compare(self, configs: list[Config], seconds: float) -> list[float]:
        return [100.0 + 10 * place for place, _ in enumerate(configs)]


class FirstIsWrong(MadeUpBench):
    """The first config (the largest block) computes nonsense."""

    def wrong(self, config: Config) -> str:
        return "y: NaN" if config["block_M"] == 1024 else ""


class NoDevice(MadeUpBench):
    def __init__(self, instance: Instance, target: str, device: int, seed: int) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 300 GiB")


class NoPackage(MadeUpBench):
    def __init__(self, instance: Instance, target: str, device: int, seed: int) -> None:
        raise MissingPackageError("this takes the package jax")


class AllAreWrong(MadeUpBench):
    def wrong(self, config: Config) -> str:
        return "y: NaN"


def compile_or_not(instance: Instance, target: str, config: Config) -> Report:
    """Stands for the compiler: one config is refused, one spills, one crashes it."""
    if config["block_M"] == REFUSED:
        refuse()
    if config["block_M"] == COMPILER_CRASH:
        crash()
    return Report(target, str(config), registers=64, spills=8 if config["block_M"] == SPILLS else 0)


REFUSED, COMPILER_CRASH, SPILLS = 16, 32, 64


def compile_and_hang(instance: Instance, target: str, config: Config) -> Report:
    if config["block_M"] == COMPILER_HANG:
        hang()
    return Report(target, str(config))


COMPILER_HANG = 64


def compile_at_the_peak(instance: Instance, target: str, config: Config) -> Report:
    """Stands for a TPU's compiler that says of products what is the most that is believed, of some half."""
    chip = targets.get(target)
    flops = 2 * math.prod(extent for _, extent in instance.extents.dims)
    cycles = flops / (BELIEVED * chip.peak("bf16")) * chip.clock_hz * (2 if config["block_K"] == SLOWER else 1)
    return Report(target, str(config), cycles=round(cycles))


SLOWER = 256


def compile_never(instance: Instance, target: str, config: Config) -> Report:
    raise CompileError("no such instruction")


def compile_without_compiler(instance: Instance, target: str, config: Config) -> Report:
    raise MissingPackageError("triton is not installed; pip install triton")
